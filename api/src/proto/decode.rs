//! Protobuf to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::wire::{Fields, Payload, varint};
use super::{MAGIC, MAX_DEPTH, ProtoError};
use crate::fields::{is_zero, time_text};
use crate::schema::{AnyKind, Field, Kind, List, Object, Schema, WireField, Zero};

const JSON_SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Reads a message of any schema that is one (objects, and the types with a form of their own).
pub(super) fn message(schema: &Schema, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::TooDeep);
    }
    match &schema.kind {
        Kind::Object(object) => {
            let mut slots = vec![None; object.fields().len()];
            fill(object, object, bytes, &mut slots, depth)?;
            Ok(Value::Object(finish(object, slots, depth)?))
        }
        Kind::List(list) if list.wrapped => wrapped(list, bytes, depth),
        Kind::Quantity => Ok(Value::String(quantity(bytes)?)),
        Kind::IntOrString => int_or_string(bytes),
        Kind::Time => time(bytes, false),
        Kind::MicroTime => time(bytes, true),
        Kind::Any(any) => any_message(*any, bytes, depth),
        _ => Err(ProtoError::Damaged),
    }
}

/// Reads the fields of `object`, which may be embedded in `outer`, into the slots of `outer`'s fields.
fn fill(
    object: &Object,
    outer: &Object,
    bytes: &[u8],
    slots: &mut [Option<Value>],
    depth: usize,
) -> Result<(), ProtoError> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::TooDeep);
    }
    let wire = object.wire();
    for entry in Fields(bytes) {
        let (number, payload) = entry?;
        // A number that is not known is a newer field: it is dropped, as the published types do.
        let Ok(place) = wire.binary_search_by_key(&number, |(number, _)| *number) else {
            continue;
        };
        match (wire[place].1, payload) {
            (WireField::Inlined(place), Payload::Bytes(bytes)) => {
                let inner = object.inlined[place].schema.object().ok_or(ProtoError::Damaged)?;
                fill(inner, outer, bytes, slots, depth + 1)?;
            }
            (WireField::Inlined(_), other) => return Err(wrong_type("embedded message", other)),
            (WireField::Field(place), payload) => {
                let field = &object.fields()[place];
                let slot = outer.place(&field.name).ok_or(ProtoError::Damaged)?;
                add(field, payload, &mut slots[slot], depth)?;
            }
        }
    }
    Ok(())
}

/// Writes down what was read in the order of the fields, with what the published types add and leave out.
fn finish(
    object: &Object,
    slots: Vec<Option<Value>>,
    depth: usize,
) -> Result<Map<String, Value>, ProtoError> {
    let mut map = Map::new();
    for (field, slot) in object.fields().iter().zip(slots) {
        let value = match (slot, field.zero) {
            (Some(value), Zero::Omit) if is_zero(&value) => None,
            (Some(Value::Array(items)), Zero::Null) if items.is_empty() => Some(Value::Null),
            (Some(value), _) => Some(value),
            (None, Zero::Write) => Some(zero(&field.schema, depth)?),
            (None, Zero::Null) => Some(Value::Null),
            (None, Zero::Keep | Zero::Omit) => None,
        };
        if let Some(value) = value {
            map.insert(field.name.clone(), value);
        }
    }
    Ok(map)
}

fn zero(schema: &Schema, depth: usize) -> Result<Value, ProtoError> {
    match schema.kind {
        Kind::Object(_) => message(schema, &[], depth + 1),
        _ => Ok(crate::fields::zero_value(schema)),
    }
}

/// Adds one occurrence of a field to what was read of it before.
fn add(field: &Field, payload: Payload, slot: &mut Option<Value>, depth: usize) -> Result<(), ProtoError> {
    match &field.schema.kind {
        Kind::List(list) if !list.wrapped => {
            let items = slot.get_or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = items {
                add_item(&field.name, &list.items, payload, items, depth)?;
            }
        }
        Kind::Map(map) => {
            let Payload::Bytes(bytes) = payload else {
                return Err(wrong_type(&field.name, payload));
            };
            let (key, value) = map_entry(&field.name, &map.value, bytes, depth)?;
            let entries = slot.get_or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
        }
        _ => *slot = Some(single(&field.name, &field.schema, payload, depth)?),
    }
    Ok(())
}

/// One item, or several numbers packed into one payload.
fn add_item(
    name: &str,
    schema: &Schema,
    payload: Payload,
    items: &mut Vec<Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let is_varint = matches!(schema.kind, Kind::Int32 | Kind::Int64 | Kind::Boolean);
    match payload {
        Payload::Bytes(mut packed) if is_varint => {
            while !packed.is_empty() {
                items.push(single(
                    name,
                    schema,
                    Payload::Varint(varint(&mut packed)?),
                    depth,
                )?);
            }
        }
        _ => items.push(single(name, schema, payload, depth)?),
    }
    Ok(())
}

fn map_entry(name: &str, schema: &Schema, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtoError> {
    let (mut key, mut value) = (String::new(), None);
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Bytes(bytes)) => key = text(bytes),
            (2, payload) => value = Some(single(name, schema, payload, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => zero(schema, depth)?,
    };
    Ok((key, value))
}

fn single(name: &str, schema: &Schema, payload: Payload, depth: usize) -> Result<Value, ProtoError> {
    Ok(match (&schema.kind, payload) {
        (Kind::String, Payload::Bytes(bytes)) => Value::String(text(bytes)),
        (Kind::Bytes, Payload::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Kind::Boolean, Payload::Varint(n)) => Value::Bool(n != 0),
        (Kind::Int64, Payload::Varint(n)) => Value::from(n.cast_signed()),
        (Kind::Int32, Payload::Varint(n)) => Value::from(n as i32),
        (Kind::Number, Payload::Fixed64(bits)) => {
            Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number)
        }
        (Kind::String | Kind::Bytes | Kind::Boolean | Kind::Int64 | Kind::Int32 | Kind::Number, payload) => {
            return Err(wrong_type(name, payload));
        }
        (_, Payload::Bytes(bytes)) => message(schema, bytes, depth + 1)?,
        (_, payload) => return Err(wrong_type(name, payload)),
    })
}

fn wrong_type(field: &str, payload: Payload) -> ProtoError {
    ProtoError::WireType {
        field: field.to_owned(),
        wire_type: payload.wire_type(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wrapped(list: &List, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let mut items = Vec::new();
    for entry in Fields(bytes) {
        if let (1, payload) = entry? {
            add_item("items", &list.items, payload, &mut items, depth)?;
        }
    }
    Ok(Value::Array(items))
}

fn quantity(bytes: &[u8]) -> Result<String, ProtoError> {
    let mut quantity = "0".to_owned();
    for entry in Fields(bytes) {
        if let (1, Payload::Bytes(bytes)) = entry? {
            quantity = text(bytes);
        }
    }
    Ok(quantity)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut is_text, mut number, mut string) = (false, 0, String::new());
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Varint(kind)) => is_text = kind == 1,
            (2, Payload::Varint(n)) => number = n as i32,
            (3, Payload::Bytes(bytes)) => string = text(bytes),
            _ => {}
        }
    }
    Ok(if is_text {
        Value::String(string)
    } else {
        Value::from(number)
    })
}

/// Seconds and nanoseconds; an empty message is the zero time, which is `null` in JSON. Times in whole seconds drop
/// the rest, as the published types do.
fn time(bytes: &[u8], micros: bool) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Varint(n)) => seconds = n.cast_signed(),
            (2, Payload::Varint(n)) => nanos = n as i32,
            _ => {}
        }
    }
    let nanos = if micros { nanos } else { 0 };
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Damaged)?;
    Ok(Value::String(time_text(time, micros)))
}

fn any_message(any: AnyKind, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    match any {
        AnyKind::Free => Err(ProtoError::Damaged),
        AnyKind::Raw => raw(bytes, depth),
        AnyKind::SchemaOrArray => schema_or_array(bytes, depth),
        AnyKind::SchemaOrBool => schema_or_bool(bytes, depth),
        AnyKind::SchemaOrStrings => schema_or_strings(bytes, depth),
    }
}

/// JSON, or a whole object in its own protobuf envelope.
fn raw(bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let mut value = Value::Null;
    for entry in Fields(bytes) {
        let (1, Payload::Bytes(json)) = entry? else {
            continue;
        };
        value = if json.is_empty() {
            Value::Null
        } else if json.starts_with(MAGIC) {
            super::decode_object_at(json, depth + 1)?
        } else {
            serde_json::from_slice(json).map_err(|error| ProtoError::Json(error.to_string()))?
        };
    }
    Ok(value)
}

fn json_schema(bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    message(super::schema_of(JSON_SCHEMA)?, bytes, depth + 1)
}

fn schema_or_array(bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let (mut schema, mut list) = (None, Vec::new());
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Bytes(bytes)) => schema = Some(json_schema(bytes, depth)?),
            (2, Payload::Bytes(bytes)) => list.push(json_schema(bytes, depth)?),
            _ => {}
        }
    }
    Ok(if list.is_empty() {
        schema.unwrap_or(Value::Null)
    } else {
        Value::Array(list)
    })
}

fn schema_or_bool(bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let (mut allows, mut schema) = (false, None);
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Varint(n)) => allows = n != 0,
            (2, Payload::Bytes(bytes)) => schema = Some(json_schema(bytes, depth)?),
            _ => {}
        }
    }
    Ok(schema.unwrap_or(Value::Bool(allows)))
}

fn schema_or_strings(bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let (mut schema, mut strings) = (None, Vec::new());
    for entry in Fields(bytes) {
        match entry? {
            (1, Payload::Bytes(bytes)) => schema = Some(json_schema(bytes, depth)?),
            (2, Payload::Bytes(bytes)) => strings.push(Value::String(text(bytes))),
            _ => {}
        }
    }
    Ok(if strings.is_empty() {
        schema.unwrap_or(Value::Null)
    } else {
        Value::Array(strings)
    })
}
