//! Values made up from the schemas themselves: what was pruned and defaulted survives protobuf unchanged.
#![allow(clippy::unwrap_used)]

use api::catalog::catalog;
use api::schema::{AnyKind, Kind, Schema};
use api::{defaults, fields, proto};
use difference::difference;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

mod difference;

/// A small generator (xorshift), so that a seed gives the same value everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn value(&mut self, schema: &Schema, depth: u64) -> Value {
        match &schema.kind {
            Kind::Object(object) => {
                let mut map = Map::new();
                for field in object.fields() {
                    if self.below(1 + depth.min(4) / 2 + depth.saturating_sub(4)) == 0 {
                        map.insert(field.name.clone(), self.value(&field.schema, depth + 1));
                    }
                }
                Value::Object(map)
            }
            Kind::Map(map) => (0..self.below(3))
                .map(|i| (format!("k{i}"), self.value(&map.value, depth + 1)))
                .collect(),
            Kind::List(list) => (0..self.below(3))
                .map(|_| self.value(&list.items, depth + 1))
                .collect(),
            Kind::Any(any) => self.any(*any),
            scalar => self.scalar(scalar),
        }
    }

    fn scalar(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::String => self
                .one_of(&["", "a", "häh", "a longer text, with \"quotes\"\n"])
                .into(),
            Kind::Bytes => self.one_of(&["", "AA==", "aGVsbG8="]).into(),
            Kind::Int32 => (self.below(1 << 32) as i32).into(),
            Kind::Int64 => (self.below(u64::MAX) as i64).into(),
            Kind::Number => (self.below(100) as f64 / 4.0).into(),
            Kind::Boolean => (self.below(2) == 0).into(),
            Kind::IntOrString => {
                [json!(0), json!(-7), json!(""), json!("50%")][self.below(4) as usize].clone()
            }
            Kind::Quantity => [json!("0"), json!("1500m"), json!(3), json!("2Gi"), json!("0.5")]
                [self.below(5) as usize]
                .clone(),
            _ => self
                .one_of(&[
                    "2026-01-02T03:04:05Z",
                    "1969-12-31T23:59:59.25Z",
                    "2026-01-02T03:04:05.678901+09:00",
                ])
                .into(),
        }
    }

    fn any(&mut self, any: AnyKind) -> Value {
        let text = json!({"type": "string"});
        let choices = match any {
            AnyKind::Raw | AnyKind::Free => vec![json!({"a": [1, null, "x"]}), json!(5), json!("x")],
            AnyKind::SchemaOrArray => vec![text.clone(), json!([text])],
            AnyKind::SchemaOrBool => vec![text, json!(true), json!(false)],
            AnyKind::SchemaOrStrings => vec![text, json!(["x"])],
        };
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_in_normal_form_survives_protobuf(seed in 1..u64::MAX, kind in 0..catalog().resources().count()) {
        let resource = catalog().resources().nth(kind).unwrap();
        let mut value = Dice(seed).value(&resource.schema, 0);
        prop_assert_eq!(fields::check(&resource.schema, &value).unknown, Vec::<String>::new());
        value["apiVersion"] = resource.api_version().into();
        value["kind"] = resource.kind.clone().into();
        fields::prune(&resource.schema, &mut value);
        defaults::apply(&resource.schema, &mut value);
        let body = proto::encode_object(&value).unwrap();
        let read = proto::decode_object(&body).unwrap();
        prop_assert_eq!(difference(&read, &without_inner_kinds(&resource.schema, &value), ""), None);
        prop_assert_eq!(proto::encode_object(&read).unwrap(), body);
    }

    #[test]
    fn pruning_and_defaulting_twice_changes_nothing(seed in 1..u64::MAX, kind in 0..catalog().resources().count()) {
        let resource = catalog().resources().nth(kind).unwrap();
        let mut once = Dice(seed).value(&resource.schema, 0);
        for _ in 0..2 {
            fields::prune(&resource.schema, &mut once);
            defaults::apply(&resource.schema, &mut once);
        }
        let mut twice = once.clone();
        fields::prune(&resource.schema, &mut twice);
        defaults::apply(&resource.schema, &mut twice);
        prop_assert_eq!(once, twice);
    }
}

/// `apiVersion` and `kind` of objects inside objects (volume claim templates) have no protobuf form.
fn without_inner_kinds(schema: &Schema, value: &Value) -> Value {
    fn strip(schema: &Schema, value: &mut Value) {
        let Some(map) = value.as_object_mut() else { return };
        for (name, value) in map {
            let Some(child) = schema.child(name) else { continue };
            match value {
                Value::Array(items) => items
                    .iter_mut()
                    .for_each(|v| inner(child.items().unwrap_or(child), v)),
                value => inner(child, value),
            }
        }
    }
    fn inner(schema: &Schema, value: &mut Value) {
        if let (Some(object), Value::Object(map)) = (schema.object(), &mut *value) {
            map.retain(|name, _| {
                object
                    .field(name)
                    .is_none_or(|f| !matches!(name.as_str(), "apiVersion" | "kind") || f.number.is_some())
            });
        }
        strip(schema, value);
    }
    let mut value = value.clone();
    strip(schema, &mut value);
    value
}
