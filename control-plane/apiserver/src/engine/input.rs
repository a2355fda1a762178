//! From a request body to an object that may be looked at: decoded, of the right type, without unknown fields, with
//! defaults, in the storage version.

use std::sync::Arc;

use api::catalog::Resource;
use api::meta::{Meta, metadata_mut};
use api::schema::Schema;
use api::status::Status;
use serde_json::Value;

use crate::call::Call;
use crate::error::{Failure, Result, fail};
use crate::negotiate::{Encoding, JSON, PROTOBUF, YAML};
use crate::options::{FieldValidation, WriteOptions};

/// What a body is to be: a kind in a group and version, with its schema.
pub(crate) struct Wanted<'a> {
    pub(crate) api_version: String,
    pub(crate) kind: &'a str,
    pub(crate) schema: &'a Schema,
    pub(crate) message: Option<&'a str>,
}

impl<'a> From<&'a Resource> for Wanted<'a> {
    fn from(res: &'a Resource) -> Self {
        Self {
            api_version: res.api_version(),
            kind: &res.kind,
            schema: &res.schema,
            message: res.proto.as_deref(),
        }
    }
}

/// The object in the body of a create or replace, in the storage version, with defaults.
pub(crate) fn object(call: &Call, body: &[u8], validation: FieldValidation) -> Result<Value> {
    let mut value = decode(call, body, &Wanted::from(&*call.res), validation)?;
    check_namespace(call, &value)?;
    complete(call, &mut value)?;
    Ok(value)
}

/// Defaults, and the change to the storage version.
pub(crate) fn complete(call: &Call, value: &mut Value) -> Result<()> {
    api::defaults::apply(&call.res.schema, value);
    api::kinds::defaults(&call.res, value);
    if !Arc::ptr_eq(&call.res, &call.stored) {
        api::convert::convert(&call.res, &call.stored, value);
    }
    api::meta::metadata_mut(value);
    Ok(())
}

/// Decodes a body of any kind: JSON, YAML or protobuf. Fields the schema does not know are dropped and, as the client
/// wishes, ignored, warned of or refused.
pub(crate) fn decode(
    call: &Call,
    body: &[u8],
    wanted: &Wanted<'_>,
    validation: FieldValidation,
) -> Result<Value> {
    let (mut value, duplicates) = parse(call, body, wanted)?;
    check_type(&mut value, wanted)?;
    check_fields(call, &mut value, wanted, duplicates, validation)?;
    Ok(value)
}

fn parse(call: &Call, body: &[u8], wanted: &Wanted<'_>) -> Result<(Value, Vec<String>)> {
    let media = call.content_type();
    let unreadable = |e: &dyn std::fmt::Display| {
        let text = format!(
            "the object provided is unrecognized (must be of type {}): {e}",
            wanted.kind
        );
        Failure::from(Status::bad_request(text))
    };
    match Encoding::of(&media) {
        Some(Encoding::Json) => {
            let parsed = api::json::parse(body).map_err(|e| unreadable(&e))?;
            Ok((parsed.value, parsed.duplicates))
        }
        Some(Encoding::Yaml) => {
            let parsed = api::yaml::parse(body).map_err(|e| unreadable(&e))?;
            Ok((parsed.value, parsed.duplicates))
        }
        Some(Encoding::Protobuf) => Ok((protobuf(body, wanted.message)?, Vec::new())),
        None => fail(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// Decodes a `k8s\0` envelope as this message, with `apiVersion` and `kind` from the envelope.
pub(crate) fn protobuf(body: &[u8], message: Option<&str>) -> Result<Value> {
    let bad = |e: &dyn std::fmt::Display| Failure::from(Status::bad_request(e.to_string()));
    let Some(message) = message else {
        return fail(Status::unsupported_media_type(&[JSON, YAML]));
    };
    let (meta, raw) = api::proto::unwrap(body).map_err(|e| bad(&e))?;
    let mut value = api::proto::decode(message, raw).map_err(|e| bad(&e))?;
    for (field, text) in [("kind", meta.kind), ("apiVersion", meta.api_version)] {
        if !text.is_empty() {
            value[field] = text.into();
        }
    }
    Ok(value)
}

fn check_type(value: &mut Value, wanted: &Wanted<'_>) -> Result<()> {
    let Value::Object(fields) = value else {
        return fail(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): it is not an object",
            wanted.kind
        )));
    };
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if !api_version.is_empty() && api_version != wanted.api_version {
        return fail(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            wanted.api_version
        )));
    }
    if !kind.is_empty() && kind != wanted.kind {
        let version = wanted.api_version.rsplit('/').next().unwrap_or_default();
        return fail(Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {}: the request is for another kind",
            wanted.kind
        )));
    }
    fields.insert("apiVersion".into(), wanted.api_version.clone().into());
    fields.insert("kind".into(), wanted.kind.into());
    Ok(())
}

fn check_fields(
    call: &Call,
    value: &mut Value,
    wanted: &Wanted<'_>,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<()> {
    let report = api::fields::check(wanted.schema, value);
    if !report.unreadable.is_empty() {
        let version = wanted.api_version.rsplit('/').next().unwrap_or_default();
        let message = format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {}",
            report.unreadable.join(", "),
            kind = wanted.kind
        );
        return fail(Status::bad_request(message));
    }
    let unknown = report
        .unknown
        .iter()
        .map(|path| format!("unknown field \"{path}\""));
    let twice = duplicates
        .iter()
        .map(|path| format!("duplicate field \"{path}\""));
    let found: Vec<String> = unknown.chain(twice).collect();
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            let version = wanted.api_version.rsplit('/').next().unwrap_or_default();
            return fail(Status::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
                found.join(", "),
                kind = wanted.kind
            )));
        }
        FieldValidation::Warn => found.into_iter().for_each(|text| call.warn(text)),
        _ => {}
    }
    api::fields::prune(wanted.schema, value);
    Ok(())
}

fn check_namespace(call: &Call, value: &Value) -> Result<()> {
    let in_body = Meta::of(value).namespace();
    let in_path = call.namespace().unwrap_or_default();
    if call.res.namespaced && !in_body.is_empty() && in_body != in_path {
        return fail(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Notes in `managedFields` what this write changed.
pub(crate) fn track(call: &Call, old: Option<&Value>, new: &mut Value, options: &WriteOptions) {
    if old.is_none() {
        metadata_mut(new).shift_remove("managedFields");
    }
    let manager = call.manager(options);
    let subresource = call.info.subresource.as_deref();
    api::apply::track_update(
        &call.stored.schema,
        old,
        new,
        &manager,
        "Update",
        subresource,
        call.now,
    );
}
