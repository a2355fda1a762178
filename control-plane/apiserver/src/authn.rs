//! Who asks: client certificates, bearer tokens, impersonation.

use api::meta::Meta;
use api::status::Status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ApiServer;
use crate::authz::{Attributes, Decision};
use crate::error::{Result, fail};
use crate::identity::{AUTHENTICATED, Identity};
use crate::tokens::{Claims, TokenError};

/// Why a token does not tell who asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthnError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the {0} the token is bound to is gone")]
    Gone(&'static str),
}

/// The user a client certificate names: common name, organisations as groups. TLS has checked it already.
#[must_use]
pub fn certificate(der: &[u8]) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    Some(Identity::new(user, &groups))
}

/// The caller of a request, given what its connection proved.
pub(crate) fn authenticate(
    server: &ApiServer,
    peer: Option<Identity>,
    headers: &HeaderMap,
) -> Result<Identity> {
    let identity = match (peer, bearer(headers)) {
        (Some(identity), _) => identity,
        (None, Some(presented)) => {
            let issuer = server.inner.signer.issuer();
            match token(server, presented, &[issuer], Timestamp::now()) {
                Ok((identity, _)) => identity,
                Err(error) => {
                    tracing::debug!(%error, "bearer token refused");
                    return fail(Status::unauthorized());
                }
            }
        }
        (None, None) => Identity::anonymous(),
    };
    impersonated(server, identity, headers)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The service account a token stands for, if it and what it is bound to still exist.
pub(crate) fn token(
    server: &ApiServer,
    token: &str,
    audiences: &[&str],
    now: Timestamp,
) -> Result<(Identity, Claims), AuthnError> {
    let claims = server.inner.signer.verify(token, now.as_second(), audiences)?;
    let bound = &claims.bound;
    let account = &bound.serviceaccount;
    let exists = |what, key: String, uid: &str| {
        let snapshot = server.inner.store.snapshot();
        let found = snapshot
            .get(key.as_bytes())
            .and_then(|e| crate::object::value(e).ok());
        match found {
            Some(object) if uid.is_empty() || Meta::of(&object).uid() == uid => Ok(()),
            _ => Err(AuthnError::Gone(what)),
        }
    };
    let namespace = &bound.namespace;
    exists(
        "service account",
        format!("/registry/serviceaccounts/{namespace}/{}", account.name),
        &account.uid,
    )?;
    if let Some(pod) = &bound.pod {
        exists(
            "pod",
            format!("/registry/pods/{namespace}/{}", pod.name),
            &pod.uid,
        )?;
    }
    if let Some(secret) = &bound.secret {
        exists(
            "secret",
            format!("/registry/secrets/{namespace}/{}", secret.name),
            &secret.uid,
        )?;
    }
    Ok((account_identity(&claims), claims))
}

fn account_identity(claims: &Claims) -> Identity {
    let bound = &claims.bound;
    let namespace_group = format!("system:serviceaccounts:{}", bound.namespace);
    let mut identity = Identity::new(
        &claims.sub,
        &["system:serviceaccounts", &namespace_group, AUTHENTICATED],
    );
    identity.uid = bound.serviceaccount.uid.clone();
    let mut extra = |key: &str, value: &str| {
        identity.extra.insert(
            format!("authentication.kubernetes.io/{key}"),
            vec![value.to_owned()],
        );
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    identity
}

/// `Impersonate-User` and `Impersonate-Group`, for those who may.
fn impersonated(server: &ApiServer, identity: Identity, headers: &HeaderMap) -> Result<Identity> {
    let texts = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(Into::into)
            .collect()
    };
    let (user, groups) = (texts("impersonate-user"), texts("impersonate-group"));
    let Some(user) = user.first() else {
        return if groups.is_empty() {
            Ok(identity)
        } else {
            fail(Status::bad_request(
                "requested groups without impersonating a user",
            ))
        };
    };
    let asked = groups.iter().map(|g| ("groups", g)).chain([("users", user)]);
    for (resource, name) in asked {
        let attributes = Attributes {
            verb: "impersonate",
            resource,
            name,
            ..Attributes::default()
        };
        if let Decision::Deny = server
            .inner
            .authorizer
            .decide(&server.inner.store, &identity, &attributes)
        {
            return fail(crate::authz::refusal(&identity, &attributes));
        }
    }
    let mut groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let namespace_group;
    if let Some((namespace, _)) = user
        .strip_prefix("system:serviceaccount:")
        .and_then(|s| s.split_once(':'))
        && groups.is_empty()
    {
        namespace_group = format!("system:serviceaccounts:{namespace}");
        groups = vec!["system:serviceaccounts", &namespace_group];
    }
    if user == crate::identity::ANONYMOUS {
        return Ok(Identity::anonymous());
    }
    Ok(Identity::new(user, &groups))
}
