//! What an update of a Pod may change: images, the deadline, more tolerations, fewer scheduling gates.

use super::super::access::{at, int, list, same, text};
use super::{Causes, pod};
use crate::status::Cause;
use serde_json::Value;

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn update(new: &Value, old: &Value, out: &mut Causes) {
    pod::create(new, Some(old), out);
    for group in ["containers", "initContainers"] {
        if !same_containers(new, old, group, out) {
            return;
        }
    }
    if !deadline(new, old, out) {
        return;
    }
    added_tolerations(new, old, out);
    deleted_gates(new, old, out);
    let expected = with_changeable_parts(new, old);
    if !same(&expected, at(old, "spec")) {
        out.push(Cause::forbidden(
            "spec",
            &format!("{CHANGEABLE}\n{}", differences(&expected, at(old, "spec"))),
        ));
    }
}

fn same_containers(new: &Value, old: &Value, group: &str, out: &mut Causes) -> bool {
    let path = format!("spec.{group}");
    let (containers, before) = (list(new, &path), list(old, &path));
    if containers.len() != before.len() {
        out.push(Cause::forbidden(
            path,
            "pod updates may not add or remove containers",
        ));
        return false;
    }
    for (index, container) in containers.iter().enumerate() {
        let image = text(container, "image");
        if image.trim() != image {
            let why = "must not have leading or trailing whitespace";
            out.push(Cause::invalid_str(format!("{path}[{index}].image"), image, why));
        }
    }
    true
}

fn deadline(new: &Value, old: &Value, out: &mut Causes) -> bool {
    let path = "spec.activeDeadlineSeconds";
    match (int(new, path), int(old, path)) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            out.push(Cause::invalid(
                path,
                &new.into(),
                "must be between 0 and 2147483647, inclusive",
            ));
            false
        }
        (Some(new), Some(old)) if old < new => {
            out.push(Cause::invalid(
                path,
                &new.into(),
                "must be less than or equal to previous value",
            ));
            false
        }
        (None, Some(_)) => {
            out.push(Cause::invalid(
                path,
                &Value::Null,
                "must not update from a positive integer to nil value",
            ));
            true
        }
        _ => true,
    }
}

fn added_tolerations(new: &Value, old: &Value, out: &mut Causes) {
    let path = "spec.tolerations";
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.shift_remove("tolerationSeconds");
        }
        toleration
    };
    let now: Vec<Value> = list(new, path).iter().map(without_seconds).collect();
    if !list(old, path)
        .iter()
        .all(|before| now.iter().any(|have| same(have, &without_seconds(before))))
    {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        out.push(Cause::forbidden(path, why));
    }
}

fn deleted_gates(new: &Value, old: &Value, out: &mut Causes) {
    let path = "spec.schedulingGates";
    for (index, gate) in list(new, path).iter().enumerate() {
        if !list(old, path).contains(gate) {
            let why = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                text(gate, "name")
            );
            out.push(Cause::forbidden(format!("{path}[{index}]"), &why));
        }
    }
}

/// The new spec with the parts that may change as they were: what is left must be equal to the old one.
fn with_changeable_parts(new: &Value, old: &Value) -> Value {
    let mut spec = at(new, "spec").clone();
    let before = at(old, "spec");
    for group in ["containers", "initContainers"] {
        let containers = spec
            .get_mut(group)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for (container, before) in containers.zip(list(before, group)) {
            if let Some(container) = container.as_object_mut() {
                container.insert("image".into(), at(before, "image").clone());
            }
        }
    }
    let mut fields = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    let grace = "terminationGracePeriodSeconds";
    if int(before, grace).is_some_and(|old| old < 0) && int(&spec, grace) == Some(1) {
        fields.push(grace);
    }
    if !list(before, "schedulingGates").is_empty() {
        // A gated pod may still be steered to nodes.
        fields.extend(["nodeSelector", "affinity"]);
    }
    for field in fields {
        if let Some(spec) = spec.as_object_mut() {
            spec.insert(field.to_owned(), at(before, field).clone());
        }
    }
    spec
}

/// The changed fields in words, for the person who made the update.
fn differences(new: &Value, old: &Value) -> String {
    let keys = super::super::access::entries(new, "").chain(super::super::access::entries(old, ""));
    let mut changed: Vec<&str> = keys
        .map(|(key, _)| key)
        .filter(|key| !same(at(new, key), at(old, key)))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    let lines = changed
        .iter()
        .map(|key| format!("{key}: {} -> {}", at(old, key), at(new, key)));
    lines.collect::<Vec<_>>().join("\n")
}
