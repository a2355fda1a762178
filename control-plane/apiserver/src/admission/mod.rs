//! Admission: what the cluster's state says about a write that is well formed. All of it reads one snapshot.

mod limits;
mod namespace;
mod node;
mod pod;
mod priority;
pub(crate) mod quota;
mod runtime_class;
mod service_account;
mod storage;

use control_plane_store::Snapshot;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::Result;
use crate::object::storage;

/// Admission of a new object, in upstream's order.
pub(crate) fn create(call: &Call, snapshot: &Snapshot, object: &mut Value) -> Result<()> {
    namespace::exists_and_lives(call, snapshot, object)?;
    match storage(&call.stored) {
        "pods" => {
            limits::pod(call, snapshot, object)?;
            service_account::admit(call, snapshot, object)?;
            node::pod(call, object)?;
            runtime_class::admit(call, snapshot, object)?;
            priority::admit(call, snapshot, object)?;
            pod::default_tolerations(object);
        }
        "nodes" => {
            node::own(call, object)?;
            node::labels(call, None, object)?;
            not_ready_until_told(object);
        }
        "coordination.k8s.io/leases" => node::own(call, object)?,
        "persistentvolumeclaims" => {
            limits::claim(call, snapshot, object)?;
            storage::default_class(snapshot, object)?;
            storage::protect(object, "kubernetes.io/pvc-protection");
        }
        "networking.k8s.io/ingresses" => storage::default_ingress_class(snapshot, object)?,
        "persistentvolumes" => storage::protect(object, "kubernetes.io/pv-protection"),
        _ => {}
    }
    Ok(())
}

/// Admission of a change.
pub(crate) fn update(call: &Call, _snapshot: &Snapshot, old: &Value, new: &mut Value) -> Result<()> {
    match (storage(&call.stored), &call.info.subresource) {
        ("pods", None) => pod::default_tolerations(new),
        ("nodes", _) => node::labels(call, Some(old), new)?,
        _ => {}
    }
    Ok(())
}

/// Admission of a delete.
pub(crate) fn delete(call: &Call, object: &Value) -> Result<()> {
    namespace::may_be_deleted(call, object)
}

/// TaintNodesByCondition: a new node takes no pods before its conditions were looked at.
fn not_ready_until_told(node: &mut Value) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    let taints = api::meta::map_mut(node, "spec")
        .entry("taints")
        .or_insert_with(|| json!([]));
    if taints.is_null() {
        *taints = json!([]);
    }
    let Some(taints) = taints.as_array_mut() else {
        return;
    };
    if !taints
        .iter()
        .any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule")
    {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}
