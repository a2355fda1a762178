//! Turns a status into the patch that reports it.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Lists that a strategic patch would merge by address: they are replaced, or old addresses would stay.
const REPLACED: [&str; 2] = ["podIPs", "hostIPs"];

/// The strategic merge patch from `old` to `new`; none when nothing changed. The uid makes it fail on a pod of the
/// same name that came later.
#[must_use]
pub fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Option<Value> {
    let old = fields(old);
    let new = fields(Some(new));
    let mut changed = Map::new();
    for (name, value) in &new {
        if old.get(name) != Some(value) {
            changed.insert(name.clone(), directive(name, value, old.get(name)));
        }
    }
    for name in old.keys().filter(|n| !new.contains_key(*n)) {
        changed.insert(name.clone(), Value::Null);
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

fn fields(status: Option<&PodStatus>) -> Map<String, Value> {
    match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    }
}

fn directive(name: &str, new: &Value, old: Option<&Value>) -> Value {
    let list = new.as_array().cloned().unwrap_or_default();
    if REPLACED.contains(&name) {
        return std::iter::once(json!({"$patch": "replace"}))
            .chain(list)
            .collect();
    }
    if name == "conditions" {
        return conditions(&list, old);
    }
    new.clone()
}

/// Only the conditions that changed; lost fields are set to null, as the lists are merged by type.
fn conditions(new: &[Value], old: Option<&Value>) -> Value {
    let old = old.and_then(Value::as_array).cloned().unwrap_or_default();
    let before = |c: &Value| old.iter().find(|o| o["type"] == c["type"]).cloned();
    let changed = new.iter().filter(|c| before(c).as_ref() != Some(*c));
    changed
        .map(|c| {
            let mut c = c.clone();
            for name in ["reason", "message"] {
                if c.get(name).is_none() && before(&c).is_some_and(|o| o.get(name).is_some()) {
                    c[name] = Value::Null;
                }
            }
            c
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_unchanged_status_needs_no_patch() {
        let same = status(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}));
        assert_eq!(patch("u", Some(&same), &same), None);
    }

    #[test]
    fn addresses_are_replaced_and_lost_fields_nulled() {
        let old = status(json!({"phase": "Running", "reason": "x", "podIPs": [{"ip": "10.0.0.1"}]}));
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}]}));
        let expected = json!({"metadata": {"uid": "u"}, "status": {
            "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}], "reason": null}});
        assert_eq!(patch("u", Some(&old), &new), Some(expected));
    }

    #[test]
    fn only_changed_conditions_travel_and_their_old_reason_goes() {
        let old = status(json!({"conditions": [
            {"type": "A", "status": "True"}, {"type": "B", "status": "False", "reason": "R", "message": "M"}]}));
        let new = status(json!({"conditions": [
            {"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}));
        let got = patch("u", Some(&old), &new).unwrap();
        let expected = json!([{"type": "B", "status": "True", "reason": null, "message": null}]);
        assert_eq!(got["status"]["conditions"], expected);
    }
}
