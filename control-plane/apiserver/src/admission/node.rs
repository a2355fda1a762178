//! NodeRestriction: what a node may say in the objects that it is allowed to write.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>

use api::meta::Meta;
use api::status::Status;
use serde_json::Value;

use crate::call::Call;
use crate::error::{Result, fail};

/// Labels that only others than the node may set, so that pods can be kept from nodes that were taken over.
const RESERVED: &str = "node-restriction.kubernetes.io/";

/// A node makes mirror pods of its own and no others.
pub(super) fn pod(call: &Call, pod: &Value) -> Result<()> {
    let Some(node) = call.identity.node_name() else {
        return Ok(());
    };
    let mirror = Meta::of(pod).annotation("kubernetes.io/config.mirror").is_some();
    if mirror && pod["spec"]["nodeName"] == node {
        return Ok(());
    }
    refuse(
        call,
        pod,
        &format!("node \"{node}\" can only create mirror pods bound to itself"),
    )
}

/// A node makes the object that bears its own name: itself, or its lease.
pub(super) fn own(call: &Call, object: &Value) -> Result<()> {
    let Some(node) = call.identity.node_name() else {
        return Ok(());
    };
    let name = Meta::of(object).name();
    if name == node {
        return Ok(());
    }
    let kind = call.res.kind.to_lowercase();
    refuse(
        call,
        object,
        &format!("node \"{node}\" is not allowed to modify {kind} \"{name}\""),
    )
}

/// A node sets no label, of itself, that is reserved for others. `old` is there on a change.
pub(super) fn labels(call: &Call, old: Option<&Value>, new: &Value) -> Result<()> {
    let Some(node) = call.identity.node_name() else {
        return Ok(());
    };
    let before = old.map(|old| &old["metadata"]["labels"]);
    let now = &new["metadata"]["labels"];
    let all = [Some(now), before]
        .into_iter()
        .flatten()
        .filter_map(Value::as_object);
    let mut changed = all
        .flat_map(|labels| labels.keys())
        .filter(|key| now.get(key) != before.and_then(|b| b.get(key)));
    match changed.find(|key| key.starts_with(RESERVED)) {
        None => Ok(()),
        Some(label) => refuse(
            call,
            new,
            &format!("is not allowed to modify labels: node \"{node}\" may not set {label}"),
        ),
    }
}

fn refuse(call: &Call, object: &Value, why: &str) -> Result<()> {
    fail(Status::forbidden(
        call.group_resource(),
        Meta::of(object).name(),
        why,
    ))
}
