//! The form in which an object leaves the published server after it was read: what reading drops and rewrites.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::schema::{Kind, Object, Schema, Zero};

/// Drops what the schema does not know and what reading into the published types would drop: `null`, and the zero
/// value of fields that leave it out. Quantities and times get their one canonical form. Run [`super::check`] first:
/// values of a wrong type are left as they are.
pub fn prune(schema: &Schema, value: &mut Value) {
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => prune_object(object, map),
        (Kind::Map(entry), Value::Object(map)) => {
            map.values_mut().for_each(|v| prune_element(&entry.value, v))
        }
        (Kind::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|v| prune_element(&list.items, v))
        }
        (Kind::Quantity, value) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = Value::String(quantity.to_string());
            }
        }
        (kind @ (Kind::Time | Kind::MicroTime), Value::String(text)) => {
            if let Some(time) = parse_time(text) {
                *text = time_text(time, matches!(kind, Kind::MicroTime));
            }
        }
        _ => {}
    }
}

fn prune_object(object: &Object, map: &mut Map<String, Value>) {
    map.retain(|name, value| {
        let Some(field) = object.field(name) else {
            return object.preserve_unknown || object.embedded;
        };
        prune(&field.schema, value);
        match field.zero {
            _ if value.is_null() => field.schema.nullable,
            Zero::Keep | Zero::Write => true,
            Zero::Omit => !is_zero(value),
            // Empty lists and maps are stored as none; an empty object behind a pointer is there.
            Zero::Null => !is_zero(value) || !matches!(field.schema.kind, Kind::List(_) | Kind::Map(_)),
        }
    });
}

/// `null` in a list or map is the zero value there.
fn prune_element(schema: &Schema, value: &mut Value) {
    if value.is_null() && !schema.nullable {
        *value = zero_value(schema);
    }
    prune(schema, value);
}

/// The zero value of a schema node, as it is written.
pub(crate) fn zero_value(schema: &Schema) -> Value {
    match schema.kind {
        Kind::Object(_) => Value::Object(Map::new()),
        Kind::String => Value::String(String::new()),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString | Kind::Number => Value::from(0),
        Kind::Boolean => Value::Bool(false),
        Kind::Quantity => Value::String("0".to_owned()),
        Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::Any(_) | Kind::Map(_) | Kind::List(_) => {
            Value::Null
        }
    }
}

/// Empty text, zero, false, an empty list or object, or `null`.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// RFC 3339, with any zone and any fraction.
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A time as objects hold it: UTC, whole seconds or microseconds.
pub(crate) fn time_text(time: Timestamp, micros: bool) -> String {
    let format = if micros {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    time.strftime(format).to_string()
}
