//! Putting and removing: the last steps of every write.

use std::sync::Arc;
use std::time::Duration;

use api::meta::Meta;
use api::status::Status;
use bytes::Bytes;
use control_plane_store::{Entry, Expect, Revision, StoreError};
use serde_json::Value;

use crate::call::Call;
use crate::error::{Failure, Result, fail};
use crate::object;

/// Why a compare-and-put did not happen.
pub(crate) enum PutError {
    /// Someone else was faster.
    Raced,
    /// The request is over.
    Failed(Failure),
}

/// What was stored, and where in history it stands.
pub(crate) struct Written {
    pub(crate) entry: Bytes,
    pub(crate) modified: Revision,
}

/// Stores an object if its key is as expected.
pub(crate) async fn put(
    call: &Call,
    key: Vec<u8>,
    object: &Value,
    expect: Expect,
) -> Result<Written, PutError> {
    let entry = object::encode(object).map_err(PutError::Failed)?;
    let put = call
        .server
        .inner
        .store
        .put(key, entry.clone(), expect, time_to_live(call))
        .await;
    match put {
        Ok(modified) => {
            notice(call);
            Ok(Written { entry, modified })
        }
        Err(StoreError::Conflict { .. }) => Err(PutError::Raced),
        Err(other) => Err(PutError::Failed(other.into())),
    }
}

/// Removes an object if it is still as it was read.
pub(crate) async fn remove(
    call: &Call,
    key: Vec<u8>,
    old: &Value,
    entry: &Entry,
) -> Result<Written, PutError> {
    match call
        .server
        .inner
        .store
        .delete(key, Expect::Modified(entry.modified))
        .await
    {
        Ok((modified, _)) => {
            call.server.inner.services.release(&call.stored, old);
            notice(call);
            Ok(Written {
                entry: entry.value.clone(),
                modified,
            })
        }
        Err(StoreError::Conflict { .. }) => Err(PutError::Raced),
        Err(other) => Err(PutError::Failed(other.into())),
    }
}

/// A request after this one sees roles as they are now; other servers' changes come by the watch of roles.
fn notice(call: &Call) {
    if call.res.group == "rbac.authorization.k8s.io" {
        call.server.inner.authorizer.forget();
    }
}

fn time_to_live(call: &Call) -> Option<Duration> {
    (call.stored.plural == "events" && matches!(call.stored.group.as_str(), "" | "events.k8s.io"))
        .then_some(call.server.inner.config.event_ttl)
}

/// The stored object that the path names.
pub(crate) async fn current(call: &Call, key: &[u8]) -> Result<Arc<Entry>> {
    // Our own tree may be behind another server's writes; only a miss is worth the question.
    let found = call.server.inner.store.snapshot().get(key).cloned();
    let found = match found {
        Some(entry) => Some(entry),
        None => call.server.inner.store.fresh().await?.get(key).cloned(),
    };
    found.ok_or_else(|| call.not_found().into())
}

/// Whether nothing keeps an object that is being deleted.
pub(crate) fn is_free(object: &Value) -> bool {
    let meta = Meta::of(object);
    let spec_finalizers = object["kind"] == "Namespace"
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|f| !f.is_empty());
    meta.is_terminating()
        && meta.deletion_grace_period_seconds().unwrap_or(0) == 0
        && meta.finalizers().next().is_none()
        && !spec_finalizers
}

/// 409 or nothing: the uid and resource version a client insists on.
pub(crate) fn check_preconditions(call: &Call, object: &Value, uid: &str, version: &str) -> Result<()> {
    let meta = Meta::of(object);
    let differs = |what: &str, wanted: &str, is: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
        fail(Status::conflict(call.group_resource(), meta.name(), &why))
    };
    if !uid.is_empty() && uid != meta.uid() {
        return differs("UID", uid, meta.uid());
    }
    if !version.is_empty() && version != meta.resource_version() {
        return differs("ResourceVersion", version, meta.resource_version());
    }
    Ok(())
}

/// Changes a stored object past the rules of its kind, for subresources that are rules of their own. `change` is
/// called again when somebody else was faster.
pub(crate) async fn rewrite(
    call: &Call,
    key: Vec<u8>,
    res: &api::catalog::Resource,
    name: &str,
    dry_run: bool,
    change: impl Fn(&mut Value) -> Result<()>,
) -> Result<Value> {
    let group_resource = (res.group.as_str(), res.plural.as_str());
    for _ in 0..30 {
        let snapshot = call.server.inner.store.fresh().await?;
        let Some(entry) = snapshot.get(&key) else {
            return fail(Status::not_found(group_resource, name));
        };
        let mut object = object::value(entry)?;
        change(&mut object)?;
        if dry_run {
            return Ok(object);
        }
        match put(call, key.clone(), &object, Expect::Modified(entry.modified)).await {
            Ok(written) => {
                object::set_version(&mut object, written.modified);
                return Ok(object);
            }
            Err(PutError::Raced) => {}
            Err(PutError::Failed(failure)) => return Err(failure),
        }
    }
    fail(Status::modified(group_resource, name))
}
