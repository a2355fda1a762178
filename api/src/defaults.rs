//! Defaults that the schema knows.

use serde_json::{Map, Value};

use crate::fields::zero_value;
use crate::schema::{Field, Kind, Object, Schema, Zero};

/// Fills in the defaults of the schema below every object that is there, and the fields that the published types
/// always write (`status: {}`, `resources: {}`, `containerPort: 0`, `rules: null`). Most defaults of built-in kinds
/// are not in the schema: `kinds::defaults` has them and runs afterwards.
pub fn apply(schema: &Schema, value: &mut Value) {
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => apply_object(object, map),
        (Kind::Map(entry), Value::Object(map)) => map.values_mut().for_each(|v| apply(&entry.value, v)),
        (Kind::List(list), Value::Array(items)) => items.iter_mut().for_each(|v| apply(&list.items, v)),
        _ => {}
    }
}

fn apply_object(object: &Object, map: &mut Map<String, Value>) {
    for field in object.fields() {
        if let Some(value) = map.get_mut(&field.name) {
            let stays = !value.is_null() || field.schema.nullable || field.default.is_none();
            if stays {
                apply(&field.schema, value);
                continue;
            }
        }
        if let Some(mut value) = when_absent(field, map) {
            apply(&field.schema, &mut value);
            map.insert(field.name.clone(), value);
        }
    }
}

fn when_absent(field: &Field, map: &Map<String, Value>) -> Option<Value> {
    if field.default.is_some() {
        return field.default.clone();
    }
    match field.zero {
        _ if map.contains_key(&field.name) => None,
        Zero::Write => Some(zero_value(&field.schema)),
        Zero::Null => Some(Value::Null),
        Zero::Keep | Zero::Omit => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;
    use serde_json::json;

    fn defaulted(group: &str, kind: &str, mut value: Value) -> Value {
        apply(&catalog().by_kind(group, "v1", kind).unwrap().schema, &mut value);
        value
    }

    #[test]
    fn defaults_stand_only_below_parents_that_are_there() {
        let service = defaulted("", "Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            service,
            json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 0}]}, "metadata": {}, "status": {"loadBalancer": {}}})
        );
        let pod = defaulted("", "Pod", json!({"spec": {"containers": [{"name": "a"}]}}));
        assert_eq!(
            pod,
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {}}]}, "status": {}})
        );
    }

    #[test]
    fn lists_that_are_always_written_are_null_when_absent() {
        let role = defaulted("rbac.authorization.k8s.io", "ClusterRole", json!({}));
        assert_eq!(role, json!({"metadata": {}, "rules": null}));
    }

    #[test]
    fn what_is_given_stays() {
        let given = json!({"metadata": {}, "spec": {"ports": [{"port": 1, "protocol": "UDP", "targetPort": "x"}]}, "status": {"loadBalancer": {}}});
        assert_eq!(defaulted("", "Service", given.clone()), given);
    }
}
