//! Whatever shape an object has, no rule may panic: requests reach the rules before every type is known to be right.

use super::*;
use crate::catalog::{Resource, catalog};
use crate::schema::{Kind, Schema};
use serde_json::{Map, Value, json};

/// An object with every field of the schema, in which everything `cut` steps deep is `junk`.
fn sample(schema: &Schema, depth: usize, cut: usize, junk: &Value) -> Value {
    if depth >= cut {
        return junk.clone();
    }
    let below = |schema: &Schema| sample(schema, depth + 1, cut, junk);
    match &schema.kind {
        Kind::Object(object) => {
            let fields = object
                .fields()
                .iter()
                .map(|field| (field.name.clone(), below(&field.schema)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Kind::Map(map) => json!({"a/b": below(&map.value)}),
        Kind::List(list) => json!([below(&list.items), below(&list.items)]),
        Kind::Boolean => true.into(),
        Kind::Int32 | Kind::Int64 | Kind::Number => json!(-1),
        Kind::Quantity => json!("1500u"),
        _ => json!("RollingUpdate"),
    }
}

fn everything(res: &Resource, object: &Value, other: &Value) {
    let now = "2024-01-02T03:04:05Z".parse().unwrap();
    let mut new = object.clone();
    defaults(res, &mut new);
    let _ = selectable_fields(res, &new);
    let _ = crate::table::cells(res, &new, now);
    let _ = validate_create(res, &new);
    for subresource in [
        None,
        Some("status"),
        Some("finalize"),
        Some("ephemeralcontainers"),
        Some("resize"),
    ] {
        let ctx = Context {
            now,
            user: "u",
            subresource,
        };
        let mut created = new.clone();
        prepare_create(res, &mut created, &ctx);
        let mut updated = created.clone();
        prepare_update(res, &mut updated, other, &ctx);
        let _ = validate_update_of(res, subresource, &updated, other);
        let _ = validate_update_of(res, subresource, other, &updated);
        let live = Some(other).filter(|other| other.is_object());
        let _ = crate::apply::apply(&res.schema, live, &updated, "m", false, subresource, now);
        crate::apply::track_update(&res.schema, live, &mut updated, "m", "Update", subresource, now);
    }
    mark_deleted(&mut new, now, 30);
    let _ = crate::patch::strategic(&res.schema, other, object);
}

#[test]
fn no_shape_of_object_makes_a_rule_panic() {
    let junk = [json!("x"), json!([[1]]), json!({}), json!({"name": 1})];
    let kinds = ["pods", "services", "statefulsets", "nodes"];
    for res in catalog()
        .resources()
        .filter(|res| kinds.contains(&res.plural.as_str()))
    {
        let whole = sample(&res.schema, 0, 5, &json!("x"));
        for cut in [0, 1, 2, 3, 5] {
            for junk in &junk {
                everything(res, &sample(&res.schema, 0, cut, junk), &whole);
            }
        }
    }
}

#[test]
fn every_kind_survives_an_object_of_junk() {
    for res in catalog().resources() {
        let object = sample(&res.schema, 0, 3, &json!({"name": 1}));
        everything(res, &object, &sample(&res.schema, 0, 3, &json!("x")));
    }
}
