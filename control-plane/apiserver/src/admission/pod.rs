//! Small admissions of pods: default tolerations, and which pods a node may make.

use api::meta::Meta;
use api::status::Status;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::{Result, fail};

/// How long a pod stays on a node that is not ready or unreachable, in seconds, when it does not say.
const STAY: i64 = 300;

/// DefaultTolerationSeconds.
pub(super) fn default_tolerations(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else {
        return;
    };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let (of, effect) = (
                t["key"].as_str().unwrap_or_default(),
                t["effect"].as_str().unwrap_or_default(),
            );
            (of == key || of.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if !list.iter().any(tolerates) {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY}),
            );
        }
    }
}

/// A node may only make mirror pods of its own.
pub(super) fn node_restriction(call: &Call, pod: &Value) -> Result<()> {
    let Some(node) = call.identity.node_name() else {
        return Ok(());
    };
    let meta = Meta::of(pod);
    let mirror = meta.annotation("kubernetes.io/config.mirror").is_some();
    if mirror && pod["spec"]["nodeName"] == node {
        return Ok(());
    }
    let why = format!("node \"{node}\" can only create mirror pods bound to itself");
    fail(Status::forbidden(call.group_resource(), meta.name(), &why))
}
