//! JSON to protobuf.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::ProtoError;
use super::wire::{FIXED64, put_bytes, put_int, put_message, put_tag};
use crate::fields::parse_time;
use crate::quantity::Quantity;
use crate::schema::{AnyKind, Field, Kind, Object, Schema, WireField, Zero};

type Done = Result<(), ProtoError>;

const JSON_SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Writes a message of any schema that is one. `null` is the zero value.
pub(super) fn message(schema: &Schema, value: &Value, out: &mut Vec<u8>) -> Done {
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => fields(object, map, out),
        (Kind::Object(object), Value::Null) => fields(object, &Map::new(), out),
        (Kind::List(list), Value::Array(items)) if list.wrapped => repeated(1, &list.items, items, out),
        (Kind::List(list), Value::Null) if list.wrapped => Ok(()),
        (Kind::Quantity, value) => quantity(value, out),
        (Kind::IntOrString, value) => int_or_string(value, out),
        (Kind::Time, value) => time(value, false, out),
        (Kind::MicroTime, value) => time(value, true, out),
        (Kind::Any(any), value) => any_message(*any, value, out),
        _ => Err(misfit(schema, value)),
    }
}

fn misfit(schema: &Schema, value: &Value) -> ProtoError {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(60) {
        text.truncate(cut);
    }
    ProtoError::Value(match schema.short_name() {
        Some(name) => format!("{text} ({name})"),
        None => text,
    })
}

fn fields(object: &Object, map: &Map<String, Value>, out: &mut Vec<u8>) -> Done {
    for (number, what) in object.wire() {
        match *what {
            WireField::Inlined(place) => {
                let Some(inner) = object.inlined[place].schema.object() else {
                    continue;
                };
                put_message(out, *number, |out| fields(inner, map, out))?;
            }
            WireField::Field(place) => field(&object.fields()[place], *number, map, out)?,
        }
    }
    Ok(())
}

/// Pointers, lists, maps and bytes are written when they are there; values always.
fn field(field: &Field, number: u32, map: &Map<String, Value>, out: &mut Vec<u8>) -> Done {
    let value = map.get(&field.name).unwrap_or(&Value::Null);
    let is_collection = match &field.schema.kind {
        Kind::List(list) => !list.wrapped,
        Kind::Map(_) | Kind::Bytes => true,
        _ => false,
    };
    let is_value = matches!(field.zero, Zero::Omit | Zero::Write) && !is_collection;
    // A list in a message of its own is nil or not, like a pointer.
    let is_wrapped = matches!(&field.schema.kind, Kind::List(list) if list.wrapped);
    if value.is_null() && (!is_value || is_wrapped) {
        return Ok(());
    }
    match (&field.schema.kind, value) {
        (Kind::List(list), Value::Array(items)) if !list.wrapped => repeated(number, &list.items, items, out),
        (Kind::Map(entry), Value::Object(entries)) => map_entries(number, &entry.value, entries, out),
        _ => single(number, &field.schema, value, out),
    }
}

fn repeated(number: u32, schema: &Schema, items: &[Value], out: &mut Vec<u8>) -> Done {
    items
        .iter()
        .try_for_each(|item| single(number, schema, item, out))
}

/// Entries in the order of their keys, so that equal maps give equal bytes.
fn map_entries(number: u32, schema: &Schema, entries: &Map<String, Value>, out: &mut Vec<u8>) -> Done {
    let mut sorted: Vec<(&String, &Value)> = entries.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    sorted.into_iter().try_for_each(|(key, value)| {
        put_message(out, number, |out| {
            put_bytes(out, 1, key.as_bytes());
            single(2, schema, value, out)
        })
    })
}

fn single(number: u32, schema: &Schema, value: &Value, out: &mut Vec<u8>) -> Done {
    let fit = || misfit(schema, value);
    let is_null = value.is_null();
    match &schema.kind {
        Kind::String => {
            let text = if is_null {
                ""
            } else {
                value.as_str().ok_or_else(fit)?
            };
            put_bytes(out, number, text.as_bytes());
        }
        Kind::Bytes => put_bytes(out, number, &bytes(value).ok_or_else(fit)?),
        Kind::Boolean => {
            let flag = !is_null && value.as_bool().ok_or_else(fit)?;
            put_int(out, number, i64::from(flag));
        }
        Kind::Int32 | Kind::Int64 => {
            let n = if is_null {
                0
            } else {
                value.as_i64().ok_or_else(fit)?
            };
            put_int(out, number, n);
        }
        Kind::Number => {
            let n = if is_null {
                0.0
            } else {
                value.as_f64().ok_or_else(fit)?
            };
            put_tag(out, number, FIXED64);
            out.extend_from_slice(&n.to_le_bytes());
        }
        _ => put_message(out, number, |out| message(schema, value, out))?,
    }
    Ok(())
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => Some(Vec::new()),
        value => STANDARD.decode(value.as_str()?.replace(['\r', '\n'], "")).ok(),
    }
}

fn quantity(value: &Value, out: &mut Vec<u8>) -> Done {
    let text = match value {
        Value::Null => "0".to_owned(),
        value => {
            let quantity =
                Quantity::from_json(value).map_err(|error| ProtoError::Value(error.to_string()))?;
            quantity.to_string()
        }
    };
    put_bytes(out, 1, text.as_bytes());
    Ok(())
}

fn int_or_string(value: &Value, out: &mut Vec<u8>) -> Done {
    let (kind, number, text) = match value {
        Value::Null => (0, 0, ""),
        Value::String(text) => (1, 0, text.as_str()),
        value => (
            0,
            value
                .as_i64()
                .ok_or_else(|| ProtoError::Value(value.to_string()))?,
            "",
        ),
    };
    put_int(out, 1, kind);
    put_int(out, 2, number);
    put_bytes(out, 3, text.as_bytes());
    Ok(())
}

fn time(value: &Value, micros: bool, out: &mut Vec<u8>) -> Done {
    if value.is_null() {
        return Ok(());
    }
    let time = value
        .as_str()
        .and_then(parse_time)
        .ok_or_else(|| ProtoError::Value(value.to_string()))?;
    // Nanoseconds count forward even before 1970.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    let (seconds, nanos) = if nanos < 0 {
        (seconds - 1, nanos + 1_000_000_000)
    } else {
        (seconds, nanos)
    };
    put_int(out, 1, seconds);
    put_int(out, 2, if micros { i64::from(nanos / 1000 * 1000) } else { 0 });
    Ok(())
}

fn any_message(any: AnyKind, value: &Value, out: &mut Vec<u8>) -> Done {
    match (any, value) {
        (AnyKind::Free, _) => Err(ProtoError::Value(value.to_string())),
        (AnyKind::SchemaOrBool, Value::Bool(allows)) => {
            put_int(out, 1, i64::from(*allows));
            Ok(())
        }
        (AnyKind::SchemaOrBool, Value::Null) => {
            put_int(out, 1, 0);
            Ok(())
        }
        (_, Value::Null) => Ok(()),
        (AnyKind::Raw, value) => {
            put_bytes(out, 1, value.to_string().as_bytes());
            Ok(())
        }
        (AnyKind::SchemaOrBool, value) => {
            put_int(out, 1, 1);
            json_schema(2, value, out)
        }
        (AnyKind::SchemaOrArray, Value::Array(list)) => list.iter().try_for_each(|v| json_schema(2, v, out)),
        (AnyKind::SchemaOrStrings, Value::Array(list)) => list.iter().try_for_each(|text| {
            let text = text.as_str().ok_or_else(|| ProtoError::Value(text.to_string()))?;
            put_bytes(out, 2, text.as_bytes());
            Ok(())
        }),
        (AnyKind::SchemaOrArray | AnyKind::SchemaOrStrings, value) => json_schema(1, value, out),
    }
}

fn json_schema(number: u32, value: &Value, out: &mut Vec<u8>) -> Done {
    let schema = super::schema_of(JSON_SCHEMA)?;
    put_message(out, number, |out| message(schema, value, out))
}
