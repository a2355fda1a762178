//! PUT, and the loop that every change of an existing object goes through.

use api::meta::{Meta, metadata_mut};
use api::status::{Cause, Status};
use control_plane_store::{Entry, Expect};
use serde_json::Value;

use crate::admission;
use crate::call::{Call, Reply};
use crate::engine::write::{self, PutError};
use crate::engine::{create, input};
use crate::error::{Result, fail};
use crate::object;
use crate::options::WriteOptions;
use crate::strategy;

/// How often a change that names no version is tried again when others are faster.
const ATTEMPTS: u32 = 30;

/// Serves a replace.
pub(crate) async fn update(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let new = input::object(call, body, options.field_validation)?;
    check_name(call, &new)?;
    if strategy::creates_on_update(&call.stored) && call.info.subresource.is_none() {
        let known = call.server.inner.store.snapshot().get(&call.key()?).is_some();
        if !known && Meta::of(&new).resource_version().is_empty() {
            return create::create_object(call, new, &options, "Update").await;
        }
    }
    change(call, &options, "Update", |_| Ok(new.clone())).await
}

fn check_name(call: &Call, new: &Value) -> Result<()> {
    let name = Meta::of(new).name();
    let wanted = call.name()?;
    if name.is_empty() {
        return fail(Status::bad_request(
            "the name of the object could not be determined: name must be provided",
        ));
    }
    if name != wanted {
        return fail(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        )));
    }
    Ok(())
}

/// Changes the object the path names. `make` gets it as it is (storage version, with its resource version) and
/// returns what it is to become; it is called again when somebody else was faster.
pub(crate) async fn change(
    call: &Call,
    options: &WriteOptions,
    operation: &str,
    make: impl Fn(&Value) -> Result<Value> + Send + Sync,
) -> Result<Reply> {
    let key = call.key()?;
    for _ in 0..ATTEMPTS {
        let entry = write::current(call, &key).await?;
        let old = object::value(&entry)?;
        let new = make(&old)?;
        check_versions(call, &old, &new)?;
        match attempt(call, &key, &entry, &old, new, options, operation).await {
            Ok(reply) => return Ok(reply),
            Err(PutError::Failed(failure)) => return Err(failure),
            // Tried again on the newest state; a version the client named is refused there.
            Err(PutError::Raced) => {
                call.server.inner.store.fresh().await?;
            }
        }
    }
    fail(Status::modified(call.group_resource(), call.name()?))
}

fn check_versions(call: &Call, old: &Value, new: &Value) -> Result<()> {
    let (was, is) = (Meta::of(old), Meta::of(new));
    if !is.uid().is_empty() && is.uid() != was.uid() {
        return write::check_preconditions(call, old, is.uid(), "");
    }
    if is.resource_version().is_empty() || is.resource_version() == "0" {
        if strategy::needs_version(&call.stored) {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &0.into(),
                "must be specified for an update",
            );
            return fail(Status::invalid(call.group_kind(), was.name(), vec![cause]));
        }
        return Ok(());
    }
    if is.resource_version() != was.resource_version() {
        return fail(Status::modified(call.group_resource(), was.name()));
    }
    Ok(())
}

async fn attempt(
    call: &Call,
    key: &[u8],
    entry: &Entry,
    old: &Value,
    mut new: Value,
    options: &WriteOptions,
    operation: &str,
) -> Result<Reply, PutError> {
    let claim = prepare(call, old, &mut new, options, operation).map_err(PutError::Failed)?;
    if write::is_free(&new) && !options.dry_run {
        let gone = write::remove(call, key.to_vec(), &new, entry).await?;
        object::set_version(&mut new, gone.modified);
        return Ok(Reply::Object {
            code: 200,
            value: new,
        });
    }
    object::set_version(&mut new, entry.modified);
    if new == *old || options.dry_run {
        return Ok(Reply::Object {
            code: 200,
            value: new,
        });
    }
    let written = write::put(call, key.to_vec(), &new, Expect::Modified(entry.modified)).await?;
    claim.keep();
    Ok(Reply::Stored {
        code: 200,
        entry: written.entry,
        modified: written.modified,
    })
}

/// Everything between what the client sent and what may be stored.
fn prepare(
    call: &Call,
    old: &Value,
    new: &mut Value,
    options: &WriteOptions,
    operation: &str,
) -> Result<strategy::Claim> {
    keep_system_fields(old, new);
    api::kinds::prepare_update(&call.stored, new, old, &call.context());
    admission::update(call, &call.server.inner.store.snapshot(), old, new)?;
    let claim = strategy::before_update(call, old, new)?;
    if operation == "Update" {
        input::track(call, Some(old), new, options);
    }
    let subresource = call.info.subresource.as_deref();
    let causes = api::kinds::validate_update_of(&call.stored, subresource, new, old);
    if !causes.is_empty() {
        return fail(Status::invalid(call.group_kind(), Meta::of(old).name(), causes));
    }
    Ok(claim)
}

/// What no client may change about an object, whatever it sends.
fn keep_system_fields(old: &Value, new: &mut Value) {
    let was = Meta::of(old);
    let meta = metadata_mut(new);
    meta.shift_remove("selfLink");
    let fields = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "namespace",
        "name",
    ];
    for field in fields {
        match was.get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.shift_remove(field),
        };
    }
}
