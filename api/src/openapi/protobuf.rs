//! Version 2 in protobuf, the form in which Go clients ask for it (`openapi.v2.Document` of the gnostic project). Only
//! what our own documents contain is written.

use std::convert::Infallible;

use serde_json::{Map, Value};

use crate::proto::wire::{put_bytes, put_int, put_message};

type Done = Result<(), Infallible>;
type Out<'a> = &'a mut Vec<u8>;

/// Methods by their field numbers in `PathItem`.
const METHODS: &[(&str, u32)] = &[("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)];

/// Writes a whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 19);
    let Ok(()) = write_document(document, &mut out);
    out
}

fn write_document(document: &Value, out: Out) -> Done {
    text(out, 1, &document["swagger"]);
    put_message(out, 2, |out| {
        text(out, 1, &document["info"]["title"]);
        text(out, 2, &document["info"]["version"]);
        Done::Ok(())
    })?;
    put_message(out, 8, |out| named(out, 2, &document["paths"], path_item))?;
    put_message(out, 9, |out| named(out, 1, &document["definitions"], schema))
}

fn text(out: Out, number: u32, value: &Value) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        put_bytes(out, number, text.as_bytes());
    }
}

fn flag(out: Out, number: u32, value: &Value) {
    if value == &Value::Bool(true) {
        put_int(out, number, 1);
    }
}

fn texts(out: Out, number: u32, value: &Value) {
    value
        .as_array()
        .into_iter()
        .flatten()
        .for_each(|item| text(out, number, item));
}

fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// Entries of a map as messages of a name and a value.
fn named(out: Out, number: u32, entries: &Value, write: fn(&Value, Out) -> Done) -> Done {
    map(entries).try_for_each(|(name, value)| {
        put_message(out, number, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| write(value, out))
        })
    })
}

/// `x-…` fields, whose values travel as YAML; JSON is YAML.
fn extensions(out: Out, number: u32, value: &Value) -> Done {
    map(value)
        .filter(|(name, _)| name.starts_with("x-"))
        .try_for_each(|(name, value)| {
            put_message(out, number, |out| {
                put_bytes(out, 1, name.as_bytes());
                put_message(out, 2, |out| any(value, out))
            })
        })
}

fn any(value: &Value, out: Out) -> Done {
    put_bytes(out, 2, format!("{value}\n").as_bytes());
    Ok(())
}

fn path_item(item: &Value, out: Out) -> Done {
    for (method, number) in METHODS {
        if item[*method].is_object() {
            put_message(out, *number, |out| operation(&item[*method], out))?;
        }
    }
    parameters(out, 9, &item["parameters"])
}

fn operation(operation: &Value, out: Out) -> Done {
    text(out, 5, &operation["operationId"]);
    texts(out, 7, &operation["consumes"]);
    parameters(out, 8, &operation["parameters"])?;
    put_message(out, 9, |out| named(out, 1, &operation["responses"], response))?;
    extensions(out, 13, operation)
}

fn parameters(out: Out, number: u32, list: &Value) -> Done {
    list.as_array().into_iter().flatten().try_for_each(|item| {
        // ParametersItem.parameter, then the kind of parameter.
        put_message(out, number, |out| put_message(out, 1, |out| parameter(item, out)))
    })
}

fn parameter(parameter: &Value, out: Out) -> Done {
    match parameter["in"].as_str() {
        Some("body") => put_message(out, 1, |out| {
            text(out, 2, &parameter["name"]);
            text(out, 3, &parameter["in"]);
            flag(out, 4, &parameter["required"]);
            put_message(out, 5, |out| schema(&parameter["schema"], out))
        }),
        place => {
            let (kind, type_number) = if place == Some("path") { (4, 5) } else { (3, 6) };
            let write = |out: Out| {
                flag(out, 1, &parameter["required"]);
                text(out, 2, &parameter["in"]);
                text(out, 4, &parameter["name"]);
                text(out, type_number, &parameter["type"]);
                Done::Ok(())
            };
            put_message(out, 2, |out| put_message(out, kind, write))
        }
    }
}

fn response(response: &Value, out: Out) -> Done {
    put_message(out, 1, |out| {
        text(out, 1, &response["description"]);
        match &response["schema"] {
            Value::Null => Ok(()),
            node => put_message(out, 2, |out| put_message(out, 1, |out| schema(node, out))),
        }
    })
}

fn schema(node: &Value, out: Out) -> Done {
    text(out, 1, &node["$ref"]);
    text(out, 2, &node["format"]);
    if !node["default"].is_null() {
        put_message(out, 5, |out| any(&node["default"], out))?;
    }
    texts(out, 19, &node["required"]);
    if node["additionalProperties"].is_object() {
        put_message(out, 21, |out| {
            put_message(out, 1, |out| schema(&node["additionalProperties"], out))
        })?;
    }
    if node["type"].is_string() {
        put_message(out, 22, |out| {
            text(out, 1, &node["type"]);
            Done::Ok(())
        })?;
    }
    if node["items"].is_object() {
        put_message(out, 23, |out| {
            put_message(out, 1, |out| schema(&node["items"], out))
        })?;
    }
    if node["properties"].is_object() {
        put_message(out, 25, |out| named(out, 1, &node["properties"], schema))?;
    }
    extensions(out, 31, node)
}
