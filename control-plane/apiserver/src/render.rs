//! From a handler's answer to bytes: JSON, YAML or protobuf; object, table or partial object.
//!
//! The common case, JSON in the stored version, copies stored bytes and splices the resource version in; a list is
//! produced chunk by chunk while it is sent, so its size does not show in memory.

mod event;
mod list;
mod shape;

pub(crate) use event::EventEncoder;

use std::sync::Arc;

use bytes::Bytes;
use control_plane_store::Revision;
use http::Response;
use http::header::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::body::{self, Body};
use crate::call::{Call, Reply};
use crate::error::Result;
use crate::negotiate::{Encoding, Output, Shape};
use crate::object;
use shape::Shaper;

/// Encodes the answer of a handler.
pub(crate) fn reply(call: &Call, reply: Reply) -> Result<Response<Body>> {
    let mut response = match reply {
        Reply::Stored {
            code,
            entry,
            modified,
        } => stored(call, code, &entry, modified)?,
        Reply::Object { code, value } => {
            let shaped = Shaper::new(call).object(value)?;
            encoded(code, &shaped, call.output, call.pretty())?
        }
        Reply::Other { code, value } => encoded(code, &value, call.output, call.pretty())?,
        Reply::List(listing) => list::respond(call, listing)?,
        Reply::Http(response) => response,
    };
    let warnings = call
        .warnings
        .lock()
        .expect("no panic while the list of warnings is held");
    for text in warnings.iter() {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response
                .headers_mut()
                .append(HeaderName::from_static("warning"), value);
        }
    }
    Ok(response)
}

fn stored(call: &Call, code: u16, entry: &Bytes, modified: Revision) -> Result<Response<Body>> {
    let plain =
        call.output.shape == Shape::Object && call.output.encoding == Encoding::Json && !call.pretty();
    if plain && Arc::ptr_eq(&call.res, &call.stored) {
        let mut out = Vec::with_capacity(entry.len() + 40);
        object::splice(&mut out, entry, modified);
        return Ok(body::response(
            code,
            Encoding::Json.content_type(),
            body::full(out),
        ));
    }
    let shaped = Shaper::new(call).object(object::decode(entry, modified)?)?;
    encoded(code, &shaped, call.output, call.pretty())
}

/// An answer with this value. Values that have no protobuf form are sent as JSON.
pub(crate) fn encoded(code: u16, value: &Value, output: Output, pretty: bool) -> Result<Response<Body>> {
    let (encoding, bytes) = bytes(value, output.encoding, pretty)?;
    Ok(body::response(code, encoding.content_type(), body::full(bytes)))
}

fn bytes(value: &Value, encoding: Encoding, pretty: bool) -> Result<(Encoding, Vec<u8>)> {
    match encoding {
        Encoding::Protobuf => match protobuf(value)? {
            Some(bytes) => Ok((Encoding::Protobuf, bytes)),
            None => Ok((Encoding::Json, json(value, pretty))),
        },
        Encoding::Json => Ok((Encoding::Json, json(value, pretty))),
        Encoding::Yaml => Ok((Encoding::Yaml, yaml(value))),
    }
}

fn json(value: &Value, pretty: bool) -> Vec<u8> {
    let bytes = if pretty {
        serde_json::to_vec_pretty(value)
    } else {
        serde_json::to_vec(value)
    };
    bytes.expect("a JSON value always serialises")
}

/// YAML; JSON, which is YAML too, should the printer refuse.
fn yaml(value: &Value) -> Vec<u8> {
    serde_saphyr::to_string(value).map_or_else(|_| json(value, true), String::into_bytes)
}

/// The `k8s\0` envelope around a value of a known kind; `None` when the kind has no protobuf form.
pub(crate) fn protobuf(value: &Value) -> Result<Option<Vec<u8>>> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let gvk = api::catalog::Gvk::from_api_version(text("apiVersion"), text("kind"));
    shape::message_of(&gvk)
        .map(|message| shape::wrapped(&gvk, &message, value))
        .transpose()
}
