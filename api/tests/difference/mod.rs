//! Where two values differ.

use serde_json::Value;

/// The first place where two values differ, as a path with both sides.
pub fn difference(ours: &Value, theirs: &Value, path: &str) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            difference(&ours[key], &theirs[key], &format!("{path}.{key}")).or_else(|| {
                (a.contains_key(key) != b.contains_key(key)).then(|| format!("{path}.{key}: only one has it"))
            })
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| difference(a, b, &format!("{path}[{i}]"))),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ => (ours != theirs).then(|| format!("{path}: ours {ours}, theirs {theirs}")),
    }
}
