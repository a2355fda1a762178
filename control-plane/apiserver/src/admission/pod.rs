//! A small admission of pods: default tolerations.

use serde_json::{Value, json};

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
