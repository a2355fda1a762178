//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use api::meta::{Meta, metadata_mut};
use api::status::Status;
use serde_json::Value;

use crate::call::{Call, Reply};
use crate::engine::{create, input, update};
use crate::error::{Failure, Result, fail};
use crate::options::{FieldValidation, WriteOptions};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY_YAML: &str = "application/apply-patch+yaml";
const APPLY: [&str; 2] = [APPLY_YAML, "application/apply-patch"];

/// Serves a patch.
pub(crate) async fn patch(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let media = call.content_type();
    if APPLY.contains(&media.as_str()) {
        return apply(call, body, &options).await;
    }
    if options.force {
        return fail(Status::bad_request(
            "force is forbidden for patches other than apply",
        ));
    }
    if ![JSON_PATCH, MERGE_PATCH, STRATEGIC].contains(&media.as_str()) {
        return fail(Status::unsupported_media_type(&[
            JSON_PATCH,
            MERGE_PATCH,
            STRATEGIC,
            APPLY_YAML,
        ]));
    }
    let parsed = api::json::parse(body).map_err(|e| Status::bad_request(e.to_string()))?;
    update::change(call, &options, "Update", |old| {
        patched(call, &media, old, &parsed.value, &options)
    })
    .await
}

/// The object after the patch, decoded and checked like one that was sent whole.
fn patched(call: &Call, media: &str, old: &Value, patch: &Value, options: &WriteOptions) -> Result<Value> {
    let live = served(call, old);
    let result = apply_patch(media, &call.res.schema, &live, patch);
    let mut new = result.map_err(|e| Failure::from(e.status()))?;
    check_unmoved(call, &live, &new)?;
    recheck(call, &mut new, options.field_validation)?;
    Ok(new)
}

/// Applies one of the three patch types that need no field ownership.
pub(crate) fn apply_patch(
    media: &str,
    schema: &api::schema::Schema,
    live: &Value,
    patch: &Value,
) -> Result<Value, api::patch::PatchError> {
    match media {
        JSON_PATCH => api::patch::json(live, patch),
        MERGE_PATCH => api::patch::merge(live, patch),
        _ => api::patch::strategic(schema, live, patch),
    }
}

/// The object in the version the client speaks.
pub(crate) fn served(call: &Call, stored: &Value) -> Value {
    let mut value = stored.clone();
    if !Arc::ptr_eq(&call.res, &call.stored) {
        api::convert::convert(&call.stored, &call.res, &mut value);
    }
    value
}

fn check_unmoved(call: &Call, live: &Value, new: &Value) -> Result<()> {
    let (was, is) = (Meta::of(live), Meta::of(new));
    if was.name() != is.name() {
        return fail(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            is.name(),
            was.name()
        )));
    }
    if was.namespace() != is.namespace() {
        return fail(Status::bad_request(
            "the namespace of the object does not match the namespace on the request",
        ));
    }
    let type_changed = ["apiVersion", "kind"].iter().any(|f| live.get(f) != new.get(f));
    if type_changed {
        return fail(Status::bad_request(format!(
            "a patch may not change apiVersion or kind of {}",
            call.res.kind
        )));
    }
    Ok(())
}

fn recheck(call: &Call, new: &mut Value, validation: FieldValidation) -> Result<()> {
    let mut report = api::fields::check(&call.res.schema, new);
    if call.info.subresource.as_deref() == Some("status") {
        // Whatever else such a patch says is not taken over: it may leave it out, or even take it away.
        let counts = |field: &str| field.starts_with("status") || field.starts_with("metadata");
        report
            .causes
            .retain(|cause| cause.reason != "FieldValueRequired" || counts(&cause.field));
    }
    if !report.causes.is_empty() {
        let name = Meta::of(new).name().to_owned();
        return fail(Status::invalid(call.group_kind(), &name, report.causes));
    }
    match validation {
        FieldValidation::Strict if !report.unknown.is_empty() => {
            let all: Vec<String> = report
                .unknown
                .iter()
                .map(|p| format!("unknown field \"{p}\""))
                .collect();
            return fail(Status::bad_request(format!(
                "strict decoding error: {}",
                all.join(", ")
            )));
        }
        FieldValidation::Warn => {
            report
                .unknown
                .iter()
                .for_each(|path| call.warn(format!("unknown field \"{path}\"")));
        }
        _ => {}
    }
    api::fields::prune(&call.res.schema, new);
    input::complete(call, new)
}

/// Server-side apply.
async fn apply(call: &Call, body: &[u8], options: &WriteOptions) -> Result<Reply> {
    let Some(manager) = options.field_manager.clone() else {
        return fail(Status::bad_request("fieldManager is required for apply patch"));
    };
    let parsed = api::yaml::parse(body).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut applied = parsed.value;
    check_applied(call, &mut applied, options)?;
    let exists = call.server.inner.store.fresh().await?.get(&call.key()?).is_some();
    if exists {
        let merge = |old: &Value| merged(call, Some(old), &applied, &manager, options.force);
        return update::change(call, options, "Apply", merge).await;
    }
    if call.info.subresource.is_some() {
        return fail(call.not_found());
    }
    let object = merged(call, None, &applied, &manager, options.force)?;
    create::create_object(call, object, options, "Apply").await
}

/// An applied configuration names its type and, if at all, the object of the path.
fn check_applied(call: &Call, applied: &mut Value, options: &WriteOptions) -> Result<()> {
    let text = |name: &str| {
        applied
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    if text("apiVersion") != call.res.api_version() || text("kind") != call.res.kind {
        return fail(Status::bad_request(format!(
            "the applied configuration must be of apiVersion {} and kind {}",
            call.res.api_version(),
            call.res.kind
        )));
    }
    let name = Meta::of(applied).name().to_owned();
    if !name.is_empty() && name != call.name()? {
        return fail(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()?
        )));
    }
    if Meta::of(applied).get("managedFields").is_some() {
        return fail(Status::bad_request("metadata.managedFields must be nil"));
    }
    let report = api::fields::check(&call.res.schema, applied);
    if options.field_validation == FieldValidation::Strict && !report.unknown.is_empty() {
        let all: Vec<String> = report
            .unknown
            .iter()
            .map(|p| format!("unknown field \"{p}\""))
            .collect();
        return fail(Status::bad_request(format!(
            "strict decoding error: {}",
            all.join(", ")
        )));
    }
    api::fields::prune(&call.res.schema, applied);
    let name = call.name()?.to_owned();
    let namespace = call.namespace().map(str::to_owned);
    let meta = metadata_mut(applied);
    meta.insert("name".into(), name.into());
    if let Some(namespace) = namespace {
        meta.insert("namespace".into(), namespace.into());
    }
    Ok(())
}

fn merged(call: &Call, old: Option<&Value>, applied: &Value, manager: &str, force: bool) -> Result<Value> {
    let live = old.map(|old| served(call, old));
    let subresource = call.info.subresource.as_deref();
    let result = api::apply::apply(
        &call.res.schema,
        live.as_ref(),
        applied,
        manager,
        force,
        subresource,
        call.now,
    );
    let mut new = result.map_err(|conflicts| Failure::from(conflicts.status()))?;
    recheck(call, &mut new, FieldValidation::Ignore)?;
    Ok(new)
}
