//! `serviceaccounts/token`: TokenRequest.

use api::meta::{Meta, time};
use api::status::{Cause, Status};
use jiff::ToSpan as _;
use serde_json::{Value, json};

use crate::call::{Call, Reply};
use crate::engine::input::{self, Wanted};
use crate::engine::write;
use crate::error::{Failure, Result, fail};
use crate::object;
use crate::options::WriteOptions;
use crate::tokens::{Bound, Claims, Reference};

/// The least and the longest life of a token, in seconds.
const LIFE: std::ops::RangeInclusive<i64> = 600..=(1 << 32);
/// The life that pods' volumes ask for, and the one they get, so that old clients that read the file once live on.
const WARN_AFTER: i64 = 3607;
const EXTENDED: i64 = 365 * 24 * 3600;

/// Issues a token for the service account of the path.
pub(crate) async fn create(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let schema = api::catalog::catalog().kind_schema("authentication.k8s.io", "v1", "TokenRequest");
    let schema = schema.ok_or_else(|| Failure::from(Status::internal("no schema for TokenRequest")))?;
    let wanted = Wanted {
        api_version: "authentication.k8s.io/v1".into(),
        kind: "TokenRequest",
        schema: &schema,
        message: Some("k8s.io.api.authentication.v1.TokenRequest"),
    };
    let mut request = input::decode(call, body, &wanted, options.field_validation)?;
    let account = object::value(&*write::current(call, &call.key()?).await?)?;
    let signer = &call.server.inner.signer;
    let audiences: Vec<String> = match request["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.iter().filter_map(Value::as_str).map(Into::into).collect(),
        _ => vec![signer.issuer().to_owned()],
    };
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    check_life(seconds)?;
    let bound = bound(call, &account, &request["spec"]["boundObjectRef"])?;
    node_restriction(call, &bound)?;
    // Known to the client is what it asked for; the token itself lives longer when a pod's volume asked.
    let extended = seconds == WARN_AFTER && bound.pod.is_some() && audiences == [signer.issuer()];
    let issued = call.now.as_second();
    let claims = Claims {
        aud: audiences.clone(),
        exp: issued + if extended { EXTENDED } else { seconds },
        iat: issued,
        nbf: issued,
        iss: signer.issuer().into(),
        jti: crate::random::uuid(),
        sub: format!(
            "system:serviceaccount:{}:{}",
            bound.namespace, bound.serviceaccount.name
        ),
        bound,
    };
    let token = signer
        .sign(&claims)
        .map_err(|e| Failure::from(Status::internal(e)))?;
    let expires = call.now.saturating_add(seconds.seconds()).unwrap_or(call.now);
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["metadata"] = json!({"name": Meta::of(&account).name(), "namespace": Meta::of(&account).namespace(),
        "creationTimestamp": time(call.now)});
    request["status"] = json!({"token": token, "expirationTimestamp": time(expires)});
    Ok(Reply::Other {
        code: 201,
        value: request,
    })
}

fn check_life(seconds: i64) -> Result<()> {
    let field = "spec.expirationSeconds";
    let cause = match seconds {
        s if s < *LIFE.start() => Cause::invalid(
            field,
            &s.into(),
            "may not specify a duration less than 10 minutes",
        ),
        s if s > *LIFE.end() => Cause::invalid(
            field,
            &s.into(),
            "may not specify a duration larger than 2^32 seconds",
        ),
        _ => return Ok(()),
    };
    fail(Status::invalid(
        ("authentication.k8s.io", "TokenRequest"),
        "",
        vec![cause],
    ))
}

/// What the token lives and dies with.
fn bound(call: &Call, account: &Value, reference: &Value) -> Result<Bound> {
    let meta = Meta::of(account);
    let mut bound = Bound {
        namespace: meta.namespace().into(),
        serviceaccount: Reference {
            name: meta.name().into(),
            uid: meta.uid().into(),
        },
        ..Bound::default()
    };
    if !reference.is_object() {
        return Ok(bound);
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let namespaced = |resource: &str| -> Result<Value> {
        let key = format!("/registry/{resource}/{}/{}", meta.namespace(), text("name"));
        find(call, key, resource, text("name"))
    };
    let found = match text("kind") {
        "Pod" => namespaced("pods")?,
        "Secret" => namespaced("secrets")?,
        "Node" => find(
            call,
            format!("/registry/nodes/{}", text("name")),
            "nodes",
            text("name"),
        )?,
        other => {
            return fail(Status::bad_request(format!(
                "cannot bind token for unsupported kind {other:?}"
            )));
        }
    };
    let uid = Meta::of(&found).uid();
    if !text("uid").is_empty() && text("uid") != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        );
        return fail(Status::conflict(("", "serviceaccounts"), meta.name(), &why));
    }
    let reference = Some(Reference {
        name: text("name").into(),
        uid: uid.into(),
    });
    match text("kind") {
        "Pod" => {
            bound.pod = reference;
            bound.node = node_of(call, &found);
        }
        "Secret" => bound.secret = reference,
        _ => bound.node = reference,
    }
    Ok(bound)
}

/// A node gets tokens for the pods that run on it and for nobody else.
fn node_restriction(call: &Call, bound: &Bound) -> Result<()> {
    let Some(node) = call.identity.node_name() else {
        return Ok(());
    };
    let why = match (&bound.pod, &bound.node) {
        (Some(_), Some(home)) if home.name == node => return Ok(()),
        (Some(_), _) => "node requested token bound to a pod scheduled on a different node",
        (None, _) => "node requested token not bound to a pod",
    };
    fail(Status::forbidden(
        call.group_resource(),
        &bound.serviceaccount.name,
        why,
    ))
}

fn node_of(call: &Call, pod: &Value) -> Option<Reference> {
    let name = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty())?;
    let node = find(call, format!("/registry/nodes/{name}"), "nodes", name).ok();
    let uid = node
        .as_ref()
        .map(|n| Meta::of(n).uid().to_owned())
        .unwrap_or_default();
    Some(Reference {
        name: name.into(),
        uid,
    })
}

fn find(call: &Call, key: String, resource: &str, name: &str) -> Result<Value> {
    match call.server.inner.store.snapshot().get(key.as_bytes()) {
        Some(entry) => object::value(entry),
        None => fail(Status::not_found(("", resource), name)),
    }
}
