//! The protobuf form of built-in kinds, as Go clients ask for it.
//!
//! The tables say which field has which number; the published Go types say what is written when a field has its zero
//! value (values always, pointers when set). Both directions follow them, so that bytes made here equal the bytes made
//! there, and what is read here equals what is read there.

mod decode;
mod encode;
mod envelope;
pub(crate) mod wire;

pub use envelope::{MAGIC, TypeMeta, list, unwrap, watch_event, wrap};

use serde_json::{Map, Value};

use crate::catalog::{Gvk, catalog, type_schema};
use crate::schema::Schema;

/// Deeper messages are refused.
const MAX_DEPTH: usize = 100;

/// Why protobuf could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The body does not begin with `k8s\0`.
    #[error("the body is not Kubernetes protobuf: it does not begin with \"k8s\\0\"")]
    NoMagic,
    /// The bytes end within a field, or a number is too long.
    #[error("the protobuf message ends too early or is damaged")]
    Damaged,
    /// Nested too deep.
    #[error("the protobuf message is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A field holds another wire type than the schema says.
    #[error("field {field} has protobuf wire type {wire_type}, which does not fit its schema")]
    WireType {
        /// JSON name of the field.
        field: String,
        /// Wire type as read.
        wire_type: u8,
    },
    /// Embedded JSON that is none.
    #[error("embedded JSON cannot be read: {0}")]
    Json(String),
    /// A value that has no protobuf form.
    #[error("{0} does not fit its schema and has no protobuf form")]
    Value(String),
    /// No such message.
    #[error("{0} has no protobuf form")]
    Unknown(String),
}

/// Reads a message, named as in the published `.proto` files (`k8s.io.api.core.v1.Pod`) or by definition name.
/// `apiVersion` and `kind` are not part of a message; [`decode_object`] adds them.
///
/// # Errors
/// When the message is not known or the bytes are damaged.
pub fn decode(message: &str, bytes: &[u8]) -> Result<Value, ProtoError> {
    decode_schema(schema_of(message)?, bytes)
}

/// Writes a message, named as for [`decode`].
///
/// # Errors
/// When the message is not known or the value does not fit its schema.
pub fn encode(message: &str, value: &Value) -> Result<Vec<u8>, ProtoError> {
    encode_schema(schema_of(message)?, value)
}

/// Reads a message of a schema at hand.
///
/// # Errors
/// When the bytes are damaged.
pub fn decode_schema(schema: &Schema, bytes: &[u8]) -> Result<Value, ProtoError> {
    decode::message(schema, bytes, 0)
}

/// Writes a message of a schema at hand.
///
/// # Errors
/// When the value does not fit its schema.
pub fn encode_schema(schema: &Schema, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::with_capacity(512);
    encode::message(schema, value, &mut out)?;
    Ok(out)
}

/// Reads a whole body with its envelope; `apiVersion` and `kind` come first in the result.
///
/// # Errors
/// When there is no envelope, its kind is not known, or the bytes are damaged.
pub fn decode_object(body: &[u8]) -> Result<Value, ProtoError> {
    decode_object_at(body, 0)
}

fn decode_object_at(body: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let (type_meta, raw) = unwrap(body)?;
    if raw.first() == Some(&b'{') {
        return serde_json::from_slice(raw).map_err(|error| ProtoError::Json(error.to_string()));
    }
    let value = decode::message(&*schema_of_kind(&type_meta)?, raw, depth)?;
    let mut object = Map::new();
    for (name, text) in [("kind", type_meta.kind), ("apiVersion", type_meta.api_version)] {
        if !text.is_empty() {
            object.insert(name.to_owned(), Value::String(text));
        }
    }
    if let Value::Object(fields) = value {
        object.extend(fields);
    }
    Ok(Value::Object(object))
}

/// Writes a whole body with its envelope, by the object's own `apiVersion` and `kind`.
///
/// # Errors
/// When the kind has no protobuf form or the value does not fit its schema.
pub fn encode_object(object: &Value) -> Result<Vec<u8>, ProtoError> {
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let type_meta = TypeMeta {
        api_version: text("apiVersion"),
        kind: text("kind"),
    };
    let raw = encode_schema(&*schema_of_kind(&type_meta)?, object)?;
    Ok(wrap(&type_meta, &raw))
}

fn schema_of(message: &str) -> Result<&'static Schema, ProtoError> {
    type_schema(message).ok_or_else(|| ProtoError::Unknown(message.to_owned()))
}

fn schema_of_kind(type_meta: &TypeMeta) -> Result<std::sync::Arc<Schema>, ProtoError> {
    let Gvk { group, version, kind } = Gvk::from_api_version(&type_meta.api_version, &type_meta.kind);
    let schema = catalog().kind_schema(&group, &version, &kind);
    schema.ok_or_else(|| ProtoError::Unknown(format!("{} {}", type_meta.api_version, type_meta.kind)))
}

#[cfg(test)]
mod tests;
