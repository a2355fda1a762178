//! What is put around a message: the `k8s\0` envelope with its kind, lists, watch events.

use serde_json::Value;

use super::wire::{Fields, Payload, put_bytes, put_message};
use super::{ProtoError, encode};

/// How every Kubernetes protobuf body begins.
pub const MAGIC: &[u8] = b"k8s\0";

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Which kind a body holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeMeta {
    /// `apps/v1` or `v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
}

/// Takes the envelope off: the kind and the bytes of the message.
///
/// # Errors
/// When there is no envelope or it is damaged.
pub fn unwrap(body: &[u8]) -> Result<(TypeMeta, &[u8]), ProtoError> {
    let unknown = body.strip_prefix(MAGIC).ok_or(ProtoError::NoMagic)?;
    let (mut type_meta, mut raw) = (TypeMeta::default(), &[][..]);
    for entry in Fields(unknown) {
        match entry? {
            (1, Payload::Bytes(bytes)) => type_meta = read_type_meta(bytes)?,
            (2, Payload::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    Ok((type_meta, raw))
}

fn read_type_meta(bytes: &[u8]) -> Result<TypeMeta, ProtoError> {
    let mut type_meta = TypeMeta::default();
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Bytes(text)) => type_meta.api_version = String::from_utf8_lossy(text).into_owned(),
            (2, Payload::Bytes(text)) => type_meta.kind = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    Ok(type_meta)
}

/// Puts the envelope around the bytes of a message.
pub fn wrap(type_meta: &TypeMeta, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 64);
    out.extend_from_slice(MAGIC);
    let written: Result<(), ProtoError> = put_message(&mut out, 1, |out| {
        put_bytes(out, 1, type_meta.api_version.as_bytes());
        put_bytes(out, 2, type_meta.kind.as_bytes());
        Ok(())
    });
    debug_assert!(written.is_ok(), "writing two texts cannot fail");
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// A whole list body with its envelope, from `metadata` in JSON and the messages of the items (without envelopes).
///
/// # Errors
/// When `metadata` is no list metadata.
pub fn list<'a>(
    type_meta: &TypeMeta,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ProtoError> {
    let mut raw = Vec::new();
    put_bytes(&mut raw, 1, &encode(LIST_META, metadata)?);
    for item in items {
        put_bytes(&mut raw, 2, item);
    }
    Ok(wrap(type_meta, &raw))
}

/// One event of a watch: its type (`ADDED`) and the object with its envelope. The event itself has no envelope; on the
/// wire each is preceded by its length in four bytes, big end first.
pub fn watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    put_bytes(&mut out, 1, event_type.as_bytes());
    let mut extension = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut extension, 1, object);
    put_bytes(&mut out, 2, &extension);
    out
}
