//! Reading JSON objects by dotted path. What is missing or of another type reads as empty.

use serde_json::Value;

static NULL: Value = Value::Null;

/// The value at `path` (`spec.template.spec`), null when absent. The empty path is the value itself.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    let steps = path.split('.').filter(|step| !step.is_empty());
    steps.fold(value, |value, step| value.get(step).unwrap_or(&NULL))
}

/// Text at `path`, empty when absent.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// Whole number at `path`.
pub(crate) fn int(value: &Value, path: &str) -> Option<i64> {
    at(value, path).as_i64()
}

/// Boolean at `path`, false when absent.
pub(crate) fn flag(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or_default()
}

/// Items of the list at `path`.
pub(crate) fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// Entries of the map at `path`.
pub(crate) fn entries<'a>(
    value: &'a Value,
    path: &str,
) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    at(value, path)
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

/// Whether there is anything at `path`.
pub(crate) fn has(value: &Value, path: &str) -> bool {
    !at(value, path).is_null()
}

/// Whether two values mean the same: absent, null, `{}` and `[]` are alike.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter()
                .all(|(key, value)| same(value, b.get(key).unwrap_or(&NULL)))
                && b.iter()
                    .all(|(key, value)| a.contains_key(key) || is_empty(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) if is_empty(a) && is_empty(b) => true,
        (a, b) => a == b,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_read_what_is_there() {
        let v = json!({"a": {"b": [1], "c": true}});
        assert_eq!(
            (list(&v, "a.b").len(), flag(&v, "a.c"), text(&v, "a.x.y")),
            (1, true, "")
        );
    }

    #[test]
    fn absent_and_empty_are_the_same() {
        assert!(same(
            &json!({"a": 1, "b": {}}),
            &json!({"a": 1, "c": null, "d": {"e": []}})
        ));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "c": 0})));
        assert!(!same(&json!([1]), &json!([1, 2])) && same(&json!(null), &json!([])));
    }
}
