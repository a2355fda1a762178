//! Service-account tokens: ES256-signed JWTs as upstream issues them (bound to an object, an audience and a time),
//! and the key set that lets others check them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Why a token is not valid, or could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not a JWT, or not one of ours.
    #[error("the token is malformed")]
    Malformed,
    /// Signed by another key.
    #[error("the token's signature does not fit this cluster's key")]
    Signature,
    /// Outside its time.
    #[error("the token has expired or is not valid yet")]
    Expired,
    /// Meant for somebody else.
    #[error("the token is for another issuer or audience")]
    Audience,
    /// The key cannot sign.
    #[error("the service account key (sa.key) is unusable; delete it to have it made again")]
    Key,
}

/// An object by name and uid, as it stands in a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// Unique id; empty when the object was not there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The node the bound pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod the token lives with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret the token lives with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The service account itself.
    pub serviceaccount: Reference,
}

/// The claims of a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Issue time, seconds since 1970.
    pub iat: i64,
    /// Issuer URL.
    pub iss: String,
    /// Unique id of this token.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Not valid before, seconds since 1970.
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

/// Signs and checks tokens with the cluster's key.
pub struct TokenSigner {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
    issuer: String,
}

impl TokenSigner {
    /// Takes a P-256 key (PKCS#8 DER) and the issuer URL.
    ///
    /// # Errors
    /// [`TokenError::Key`] when the key is of another kind.
    pub fn new(pkcs8: &[u8], issuer: &str) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|_| TokenError::Key)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self {
            key,
            random,
            key_id: URL_SAFE_NO_PAD.encode(digest),
            issuer: issuer.into(),
        })
    }

    /// The issuer URL of all tokens.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A signed token with these claims.
    ///
    /// # Errors
    /// [`TokenError::Key`] when signing fails.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let body = serde_json::to_vec(claims).map_err(|_| TokenError::Malformed)?;
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(body)
        );
        let signature = self
            .key
            .sign(&self.random, signed.as_bytes())
            .map_err(|_| TokenError::Key)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, issuer, time (seconds since 1970) and audience; any of `audiences` will do.
    ///
    /// # Errors
    /// [`TokenError`] says which check failed.
    pub fn verify(&self, token: &str, now: i64, audiences: &[&str]) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header["alg"] != "ES256" {
            return Err(TokenError::Malformed);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != self.issuer || !audiences.iter().any(|a| claims.aud.iter().any(|b| a == b)) {
            return Err(TokenError::Audience);
        }
        if now >= claims.exp || now + 60 < claims.nbf {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    /// The public key as a JSON Web Key Set, served at `/openid/v1/jwks`.
    #[must_use]
    pub fn key_set(&self) -> Value {
        // An uncompressed point: 0x04, then 32 bytes of x and 32 of y.
        let point = self.key.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": part(1..33), "y": part(33..65)}]})
    }

    /// The discovery document, served at `/.well-known/openid-configuration`.
    #[must_use]
    pub fn discovery(&self) -> Value {
        json!({"issuer": self.issuer, "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> TokenSigner {
        let key = rcgen::KeyPair::generate().unwrap();
        TokenSigner::new(&key.serialize_der(), "https://kubernetes.default.svc").unwrap()
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp: 1000,
            iss: "https://kubernetes.default.svc".into(),
            sub: "system:serviceaccount:a:b".into(),
            ..Claims::default()
        }
    }

    #[test]
    fn a_token_is_accepted_until_it_expires_and_for_its_audience_only() {
        let signer = signer();
        let token = signer.sign(&claims()).unwrap();
        assert_eq!(signer.verify(&token, 999, &["api"]).unwrap(), claims());
        assert_eq!(signer.verify(&token, 1000, &["api"]), Err(TokenError::Expired));
        assert_eq!(signer.verify(&token, 999, &["vault"]), Err(TokenError::Audience));
    }

    #[test]
    fn a_changed_token_or_one_of_another_key_is_refused() {
        let (ours, theirs) = (signer(), signer());
        let token = theirs.sign(&claims()).unwrap();
        assert_eq!(ours.verify(&token, 1, &["api"]), Err(TokenError::Signature));
        assert_eq!(ours.verify("a.b", 1, &["api"]), Err(TokenError::Malformed));
    }
}
