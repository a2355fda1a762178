//! The parts of a Pod that have a subresource of their own: debug containers that are added to a running pod, and the
//! resources of its containers, changed in place.
//! <https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use super::super::access::{at, entries, has, list, same, text};
use super::super::qos::qos_class;
use super::{Causes, pod};
use crate::status::Cause;
use serde_json::Value;

/// The resources a running container can be given more or less of.
const RESIZABLE: &[&str] = &["cpu", "memory"];

/// An update through `ephemeralcontainers`: containers may be added; those that are there stay as they are.
pub(super) fn ephemeral(new: &Value, old: &Value, out: &mut Causes) {
    pod::create(new, Some(old), out);
    let path = "spec.ephemeralContainers";
    for before in list(old, path) {
        let name = text(before, "name");
        let now = list(new, path).iter().position(|c| text(c, "name") == name);
        match now {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                out.push(Cause::forbidden(path, &why));
            }
            Some(index) if !same(&list(new, path)[index], before) => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                out.push(Cause::forbidden(format!("{path}[{index}]"), &why));
            }
            Some(_) => {}
        }
    }
}

/// An update through `resize`: other amounts of CPU and memory, within the pod's class of service.
pub(super) fn resize(new: &Value, old: &Value, out: &mut Causes) {
    pod::create(new, Some(old), out);
    let class = text(old, "status.qosClass");
    let class = if class.is_empty() { qos_class(old) } else { class };
    if qos_class(new) != class {
        let why = "Pod QOS Class may not change as a result of resizing";
        out.push(Cause::invalid_str("spec", qos_class(new), why));
    }
    for group in ["containers", "initContainers"] {
        let path = format!("spec.{group}");
        for (index, (now, before)) in list(new, &path).iter().zip(list(old, &path)).enumerate() {
            container(now, before, group, &format!("{path}[{index}]"), out);
        }
    }
}

fn container(now: &Value, before: &Value, group: &str, path: &str, out: &mut Causes) {
    if same(at(now, "resources"), at(before, "resources")) {
        return;
    }
    let path = format!("{path}.resources");
    if group == "initContainers" && text(before, "restartPolicy") != "Always" {
        let why = "only restartable init containers (sidecars) can be resized";
        out.push(Cause::forbidden(path, why));
        return;
    }
    if !same(at(now, "resources.claims"), at(before, "resources.claims")) {
        out.push(Cause::forbidden(
            format!("{path}.claims"),
            "claims may not be changed by a resize",
        ));
    }
    for side in ["requests", "limits"] {
        amounts(now, before, side, &format!("{path}.{side}"), out);
    }
}

/// Amounts may be added and changed, not taken away; only those a running container can take.
fn amounts(now: &Value, before: &Value, side: &str, path: &str, out: &mut Causes) {
    let of = format!("resources.{side}");
    let (now, before) = (at(now, &of), at(before, &of));
    for (name, _) in entries(before, "") {
        if !has(now, name) {
            out.push(Cause::forbidden(
                path,
                &format!("resource {side} cannot be removed"),
            ));
            return;
        }
    }
    let changed = entries(now, "").filter(|(name, value)| before.get(name) != Some(value));
    for (name, _) in changed.filter(|(name, _)| !RESIZABLE.contains(name)) {
        let why = "only cpu and memory resources are mutable";
        out.push(Cause::forbidden(format!("{path}[{name}]"), why));
    }
}
