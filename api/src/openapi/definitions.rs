//! Schemas of types.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Format;
use crate::catalog::{Gvk, gvks_of, type_schema};
use crate::fields::zero_value;
use crate::schema::{Field, Kind, List, ListType, Schema, Zero};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The definitions of a document: each type that was referred to.
pub(super) struct Definitions {
    format: Format,
    done: BTreeMap<String, Value>,
    open: Vec<String>,
}

impl Definitions {
    pub fn new(format: Format) -> Self {
        Definitions {
            format,
            done: BTreeMap::new(),
            open: Vec::new(),
        }
    }

    /// A reference to a type by its definition name.
    pub fn refer(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.done.insert(name.to_owned(), Value::Null);
            self.open.push(name.to_owned());
        }
        self.format.reference(name)
    }

    /// A reference to one of the types that every API has (`Status`, `DeleteOptions`).
    pub fn refer_meta(&mut self, name: &str) -> Value {
        self.refer(&format!("{META}.{name}"))
    }

    /// Everything referred to, and what that refers to, by name.
    pub fn finish(mut self) -> Map<String, Value> {
        while let Some(name) = self.open.pop() {
            let definition = match type_schema(&name) {
                Some(schema) => self.definition(&name, schema),
                None => self.special(&name),
            };
            self.done.insert(name, definition);
        }
        self.done.into_iter().collect()
    }

    /// Types with a form of their own.
    fn special(&self, name: &str) -> Value {
        let one_of = |types: [&str; 2]| json!([{"type": types[0]}, {"type": types[1]}]);
        match (name, self.format) {
            (INT_OR_STRING, Format::V2) => json!({"type": "string", "format": "int-or-string"}),
            (INT_OR_STRING, Format::V3) => {
                json!({"format": "int-or-string", "oneOf": one_of(["integer", "string"])})
            }
            (QUANTITY, Format::V2) => json!({"type": "string"}),
            (QUANTITY, Format::V3) => json!({"oneOf": one_of(["string", "number"])}),
            _ => json!({"type": "string", "format": "date-time"}),
        }
    }

    fn definition(&mut self, name: &str, schema: &Schema) -> Value {
        let Some(object) = schema.object() else {
            return json!({});
        };
        let properties: BTreeMap<&str, Value> = object
            .fields()
            .iter()
            .map(|field| (field.name.as_str(), self.property(field)))
            .collect();
        let mut definition = json!({"type": "object"});
        if !properties.is_empty() {
            definition["properties"] = json!(properties);
        }
        let mut required: Vec<&str> = object
            .fields()
            .iter()
            .filter(|f| f.published_required)
            .map(|f| f.name.as_str())
            .collect();
        required.sort_unstable();
        if !required.is_empty() {
            definition["required"] = json!(required);
        }
        if object.atomic {
            definition["x-kubernetes-map-type"] = "atomic".into();
        }
        let gvks = gvks_of(name);
        if !gvks.is_empty() {
            definition["x-kubernetes-group-version-kind"] = gvks.iter().map(gvk).collect();
        }
        definition
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut extra = Map::new();
        if let Some(default) = published_default(field) {
            extra.insert("default".into(), default);
        }
        match &field.schema.kind {
            Kind::List(list) => list_attributes(list, &mut extra),
            Kind::Map(map) if map.atomic => {
                extra.insert("x-kubernetes-map-type".into(), "atomic".into());
            }
            _ => {}
        }
        let patch = &field.patch;
        if let Some(key) = &patch.merge_key {
            extra.insert("x-kubernetes-patch-merge-key".into(), key.clone().into());
        }
        let strategies = [(patch.merge, "merge"), (patch.retain_keys, "retainKeys")];
        let strategies: Vec<&str> = strategies.iter().filter(|s| s.0).map(|s| s.1).collect();
        if !strategies.is_empty() {
            extra.insert("x-kubernetes-patch-strategy".into(), strategies.join(",").into());
        }
        let node = self.node(&field.schema);
        self.join(node, extra)
    }

    /// Nothing may stand beside a `$ref` in version 3.
    fn join(&self, node: Value, extra: Map<String, Value>) -> Value {
        let mut joined = match node {
            Value::Object(map)
                if map.contains_key("$ref") && self.format == Format::V3 && !extra.is_empty() =>
            {
                Map::from_iter([("allOf".to_owned(), json!([map]))])
            }
            Value::Object(map) => map,
            _ => Map::new(),
        };
        joined.extend(extra);
        Value::Object(joined)
    }

    fn node(&mut self, schema: &Schema) -> Value {
        match &schema.kind {
            Kind::Object(_) => match &schema.name {
                Some(name) => self.refer(name),
                None => json!({"type": "object"}),
            },
            Kind::Map(map) => json!({"type": "object", "additionalProperties": self.node(&map.value)}),
            Kind::List(list) => json!({"type": "array", "items": self.node(&list.items)}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 => json!({"type": "integer", "format": "int64"}),
            Kind::Number => json!({"type": "number", "format": "double"}),
            Kind::Boolean => json!({"type": "boolean"}),
            Kind::IntOrString => self.refer(INT_OR_STRING),
            Kind::Quantity => self.refer(QUANTITY),
            Kind::Time => self.refer_meta("Time"),
            Kind::MicroTime => self.refer_meta("MicroTime"),
            Kind::Any(_) => json!({}),
        }
    }
}

/// What is written when the field is absent counts as its default too; `null` does not.
fn published_default(field: &Field) -> Option<Value> {
    if field.default.is_some() {
        return field.default.clone();
    }
    let is_written = field.zero == Zero::Write
        && matches!(
            field.schema.kind,
            Kind::Object(_) | Kind::String | Kind::Int32 | Kind::Int64 | Kind::Boolean
        );
    is_written.then(|| zero_value(&field.schema))
}

fn list_attributes(list: &List, extra: &mut Map<String, Value>) {
    if !list.map_keys.is_empty() {
        extra.insert("x-kubernetes-list-map-keys".into(), list.map_keys.clone().into());
    }
    let list_type = match list.list_type {
        ListType::Atomic => "atomic",
        ListType::Set => "set",
        ListType::Map => "map",
    };
    extra.insert("x-kubernetes-list-type".into(), list_type.into());
}

pub(super) fn gvk(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "kind": gvk.kind, "version": gvk.version})
}
