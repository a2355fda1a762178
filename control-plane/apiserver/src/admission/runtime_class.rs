//! RuntimeClass: a pod's class has to be there; its overhead and its nodes become the pod's.
//! <https://kubernetes.io/docs/concepts/containers/runtime-class/>

use api::meta::{Meta, map_mut};
use api::status::Status;
use control_plane_store::Snapshot;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::{Result, fail};
use crate::object;

/// Resolves `runtimeClassName`.
pub(super) fn admit(call: &Call, snapshot: &Snapshot, pod: &mut Value) -> Result<()> {
    let name = pod["spec"]["runtimeClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let refuse = |pod: &Value, why: &str| {
        let name = Meta::of(pod).name();
        fail(Status::forbidden(
            call.group_resource(),
            name,
            &format!("pod rejected: {why}"),
        ))
    };
    let stated = pod["spec"]["overhead"]
        .as_object()
        .is_some_and(|overhead| !overhead.is_empty());
    if name.is_empty() {
        return if stated {
            refuse(
                pod,
                "Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )
        } else {
            Ok(())
        };
    }
    let key = format!("/registry/node.k8s.io/runtimeclasses/{name}");
    let Some(entry) = snapshot.get(key.as_bytes()) else {
        return refuse(pod, &format!("RuntimeClass \"{name}\" not found"));
    };
    let class = object::value(entry)?;
    let overhead = &class["overhead"]["podFixed"];
    if stated && pod["spec"]["overhead"] != *overhead {
        return refuse(
            pod,
            "Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        );
    }
    if overhead.is_object() {
        pod["spec"]["overhead"] = overhead.clone();
    }
    if let Some(clash) = placed(pod, &class["scheduling"]) {
        return refuse(
            pod,
            &format!("conflict: runtimeClass.scheduling.nodeSelector[{clash}] differs from the pod's"),
        );
    }
    Ok(())
}

/// Merges the class's nodes and tolerations into the pod's; the key of a node label that both want differently.
fn placed(pod: &mut Value, scheduling: &Value) -> Option<String> {
    if let Some(wanted) = scheduling["nodeSelector"].as_object() {
        map_mut(pod, "spec");
        let selector = map_mut(&mut pod["spec"], "nodeSelector");
        for (key, value) in wanted {
            if selector.get(key).is_some_and(|held| held != value) {
                return Some(key.clone());
            }
            selector.insert(key.clone(), value.clone());
        }
    }
    if let Some(wanted) = scheduling["tolerations"].as_array() {
        let spec = map_mut(pod, "spec");
        let held = spec.entry("tolerations").or_insert_with(|| json!([]));
        let mut all = held.as_array().cloned().unwrap_or_default();
        let new: Vec<Value> = wanted.iter().filter(|one| !all.contains(one)).cloned().collect();
        all.extend(new);
        *held = Value::Array(all);
    }
    None
}
