//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going; some namespaces stay.

use api::meta::Meta;
use api::status::{Cause, Status};
use control_plane_store::Snapshot;
use serde_json::Value;

use crate::call::Call;
use crate::error::{Result, fail};
use crate::object;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses objects in a namespace that is missing (404) or terminating (403).
pub(super) fn exists_and_lives(call: &Call, snapshot: &Snapshot, new: &Value) -> Result<()> {
    let Some(namespace) = call.namespace() else {
        return Ok(());
    };
    let Some(entry) = snapshot.get(format!("/registry/namespaces/{namespace}").as_bytes()) else {
        return fail(Status::not_found(("", "namespaces"), namespace));
    };
    if !Meta::of(&object::value(entry)?).is_terminating() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = Cause {
        reason: "NamespaceTerminating",
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    };
    fail(Status::forbidden(call.group_resource(), Meta::of(new).name(), &why).with_causes(vec![cause]))
}

/// Refuses to delete the namespaces that the cluster needs, and a second delete of one that is going.
pub(super) fn may_be_deleted(call: &Call, object: &Value) -> Result<()> {
    if object::storage(&call.stored) != "namespaces" {
        return Ok(());
    }
    let meta = Meta::of(object);
    if IMMORTAL.contains(&meta.name()) {
        return fail(Status::forbidden(
            call.group_resource(),
            meta.name(),
            "this namespace may not be deleted",
        ));
    }
    if meta.is_terminating() {
        let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace \
                   will automatically be purged by the system.";
        return fail(Status::conflict(call.group_resource(), meta.name(), why));
    }
    Ok(())
}
