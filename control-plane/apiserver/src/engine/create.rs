//! POST: making an object.

use api::meta::{Meta, metadata_mut};
use api::names;
use api::status::{Cause, Status};
use control_plane_store::Expect;
use serde_json::Value;

use crate::admission;
use crate::call::{Call, Reply};
use crate::engine::input;
use crate::engine::write::{self, PutError};
use crate::error::{Result, fail};
use crate::options::WriteOptions;
use crate::strategy;

/// How often a generated name is drawn again when it is taken, as upstream.
const NAME_DRAWS: u32 = 8;

/// Serves a create.
pub(crate) async fn create(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let object = input::object(call, body, options.field_validation)?;
    create_object(call, object, &options, "Update").await
}

/// Makes an object (storage version, checked and with defaults). `operation` is `Update` or `Apply`, for its
/// managed fields.
pub(crate) async fn create_object(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
    operation: &str,
) -> Result<Reply> {
    begin(call, &mut object)?;
    for draw in 1..=NAME_DRAWS {
        let mut named = object.clone();
        let generated = name(call, &mut named)?;
        match attempt(call, named, options, operation).await? {
            Some(reply) => return Ok(reply),
            None if generated.is_none() => {
                return fail(Status::already_exists(
                    call.group_resource(),
                    Meta::of(&object).name(),
                ));
            }
            None if draw == NAME_DRAWS => {
                let name = generated.unwrap_or_default();
                return fail(Status::generate_name_conflict(call.group_resource(), &name, 1));
            }
            None => {}
        }
    }
    fail(Status::internal("no name was drawn"))
}

/// One attempt under one name; `None` when the name is taken.
async fn attempt(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
    operation: &str,
) -> Result<Option<Reply>> {
    let snapshot = call.server.inner.store.snapshot();
    admission::create(call, &snapshot, &mut object)?;
    api::kinds::prepare_create(&call.stored, &mut object, &call.context());
    let key = crate::object::key(&call.stored, call.namespace(), Meta::of(&object).name());
    if snapshot.get(&key).is_some() {
        return Ok(None);
    }
    let claim = strategy::before_create(call, &mut object)?;
    if operation == "Update" {
        input::track(call, None, &mut object, options);
    }
    let causes = api::kinds::validate_create(&call.stored, &object);
    if !causes.is_empty() {
        return fail(Status::invalid(
            call.group_kind(),
            Meta::of(&object).name(),
            causes,
        ));
    }
    if options.dry_run {
        admission::quota::charge(call, &object, true).await?;
        return Ok(Some(Reply::Object {
            code: 201,
            value: object,
        }));
    }
    let charge = admission::quota::charge(call, &object, false).await?;
    let put = write::put(call, key, &object, Expect::Absent).await;
    if put.is_err() {
        charge.refund(call).await;
    }
    match put {
        Ok(written) => {
            claim.keep();
            Ok(Some(Reply::Stored {
                code: 201,
                entry: written.entry,
                modified: written.modified,
            }))
        }
        Err(PutError::Raced) => Ok(None),
        Err(PutError::Failed(failure)) => Err(failure),
    }
}

/// The fields that only the server sets.
fn begin(call: &Call, object: &mut Value) -> Result<()> {
    if !Meta::of(object).resource_version().is_empty() {
        return fail(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let meta = metadata_mut(object);
    for field in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        meta.shift_remove(field);
    }
    meta.insert("uid".into(), crate::random::uuid().into());
    meta.insert("creationTimestamp".into(), api::meta::time(call.now).into());
    if call.res.namespaced {
        let namespace = call.namespace().unwrap_or_default();
        meta.insert("namespace".into(), namespace.into());
    } else {
        meta.shift_remove("namespace");
    }
    Ok(())
}

/// Draws a name from `generateName` when there is none; the name drawn.
fn name(call: &Call, object: &mut Value) -> Result<Option<String>> {
    let meta = Meta::of(object);
    if !meta.name().is_empty() {
        return Ok(None);
    }
    if meta.generate_name().is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return fail(Status::invalid(call.group_kind(), "", vec![cause]));
    }
    let drawn = names::generate_name(meta.generate_name(), crate::random::number());
    metadata_mut(object).insert("name".into(), drawn.clone().into());
    Ok(Some(drawn))
}
