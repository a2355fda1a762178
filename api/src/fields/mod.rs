//! Does a value have the fields and types of its schema? And what would the server keep of it?

mod normal;

pub use normal::prune;
pub(crate) use normal::{is_zero, parse_time, time_text, zero_value};

use serde_json::Value;

use crate::quantity::Quantity;
use crate::schema::{Field, Kind, Object, Schema};
use crate::status::Cause;

/// What is wrong with a value, apart from the rules of its kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Paths of fields that the schema does not know (`spec.containers[0].foo`).
    pub unknown: Vec<String>,
    /// Why a built-in object cannot be read at all, in the words of the published server
    /// (`json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`).
    pub unreadable: Vec<String>,
    /// Wrong types (`FieldValueTypeInvalid`, one for each of [`Report::unreadable`]) and missing fields
    /// (`FieldValueRequired`).
    pub causes: Vec<Cause>,
}

/// What the API answers about a field that the schema does not know.
pub fn unknown_message(path: &str) -> String {
    format!("unknown field \"{path}\"")
}

/// Compares a value as received with its schema. The status of an object may lack required fields.
pub fn check(schema: &Schema, value: &Value) -> Report {
    let mut checker = Checker::default();
    checker.node(schema, value, None);
    checker.report
}

/// One step on the way to a field.
#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Key(&'a str),
    Item(usize),
}

#[derive(Default)]
struct Checker<'a> {
    way: Vec<Step<'a>>,
    report: Report,
}

impl<'a> Checker<'a> {
    fn node(&mut self, schema: &'a Schema, value: &'a Value, parent: Option<&'a Schema>) {
        if value.is_null() {
            return;
        }
        match (&schema.kind, value) {
            (Kind::Any(_), _) => {}
            (Kind::Object(object), Value::Object(map)) => self.object(schema, object, map),
            (Kind::Map(map), Value::Object(entries)) => {
                for (key, value) in entries {
                    self.below(Step::Key(key), |c| c.node(&map.value, value, parent));
                }
            }
            (Kind::List(list), Value::Array(items)) => {
                for (place, item) in items.iter().enumerate() {
                    self.below(Step::Item(place), |c| c.node(&list.items, item, parent));
                }
            }
            (kind, value) => {
                if let Some(problem) = scalar_problem(kind, value) {
                    self.unreadable(schema, value, parent, problem);
                }
            }
        }
    }

    fn object(&mut self, schema: &'a Schema, object: &'a Object, map: &'a serde_json::Map<String, Value>) {
        for (name, value) in map {
            match object.field(name) {
                Some(field) => self.below(Step::Field(name), |c| c.node(&field.schema, value, Some(schema))),
                None if object.preserve_unknown || is_type_meta(object, name) => {}
                None => {
                    let path = self.path_to(Some(name));
                    self.report.unknown.push(path);
                }
            }
        }
        let in_status = matches!(self.way.first(), Some(Step::Field("status")));
        for field in object.fields().iter().filter(|f| f.required && !in_status) {
            self.required(field, map.get(&field.name));
        }
    }

    fn required(&mut self, field: &Field, value: Option<&Value>) {
        let is_absent = match value {
            None => true,
            Some(Value::Null) => !field.schema.nullable,
            Some(_) => false,
        };
        if is_absent && field.default.is_none() {
            let path = self.path_to(Some(&field.name));
            self.cause("FieldValueRequired", "Required value".to_owned(), path);
        }
    }

    fn below(&mut self, step: Step<'a>, look: impl FnOnce(&mut Self)) {
        self.way.push(step);
        look(self);
        self.way.pop();
    }

    fn unreadable(&mut self, schema: &Schema, value: &Value, parent: Option<&Schema>, problem: Problem) {
        let wanted = go_type(schema);
        let text = match problem {
            Problem::Type(found) => {
                format!(
                    "json: cannot unmarshal {found} into Go {} of type {wanted}",
                    self.go_place(parent)
                )
            }
            Problem::Format(text) => text,
        };
        self.report.unreadable.push(text);
        let path = self.path_to(None);
        let message = format!("Invalid value: {value}: {path} in body must be of type {wanted}");
        self.cause("FieldValueTypeInvalid", message, path);
    }

    /// Structs count in the path, items and keys do not.
    fn go_place(&self, parent: Option<&Schema>) -> String {
        let names: Vec<&str> = self
            .way
            .iter()
            .filter_map(|s| {
                if let Step::Field(name) = s {
                    Some(*name)
                } else {
                    None
                }
            })
            .collect();
        match parent.and_then(Schema::short_name) {
            Some(parent) if !names.is_empty() => format!("struct field {parent}.{}", names.join(".")),
            _ => "value".to_owned(),
        }
    }

    fn cause(&mut self, reason: &'static str, message: String, field: String) {
        self.report.causes.push(Cause {
            reason,
            message,
            field,
        });
    }

    fn path_to(&self, last: Option<&str>) -> String {
        let mut path = String::new();
        for step in self.way.iter().copied().chain(last.map(Step::Field)) {
            match step {
                Step::Item(place) => path.push_str(&format!("[{place}]")),
                Step::Field(name) | Step::Key(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
            }
        }
        path
    }
}

/// A whole object inside a custom resource has `apiVersion` and `kind` though its schema need not say so.
fn is_type_meta(object: &Object, name: &str) -> bool {
    object.embedded && matches!(name, "apiVersion" | "kind" | "metadata")
}

enum Problem {
    /// Another JSON type: what it is.
    Type(String),
    /// The right JSON type, but the text means nothing.
    Format(String),
}

fn scalar_problem(kind: &Kind, value: &Value) -> Option<Problem> {
    let fits = match kind {
        Kind::String => value.is_string(),
        Kind::Boolean => value.is_boolean(),
        Kind::Number => value.is_number(),
        Kind::Int64 => value.as_i64().is_some(),
        Kind::Int32 => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Kind::IntOrString => value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Kind::Quantity => return quantity_problem(value),
        Kind::Time | Kind::MicroTime => return time_problem(value),
        Kind::Bytes => return bytes_problem(value),
        Kind::Object(_) | Kind::Map(_) | Kind::List(_) => false,
        Kind::Any(_) => true,
    };
    (!fits).then(|| Problem::Type(json_type_for(kind, value)))
}

fn quantity_problem(value: &Value) -> Option<Problem> {
    if !(value.is_string() || value.is_number()) {
        return Some(Problem::Type(json_type(value)));
    }
    Quantity::from_json(value)
        .err()
        .map(|error| Problem::Format(error.to_string()))
}

fn time_problem(value: &Value) -> Option<Problem> {
    let Some(text) = value.as_str() else {
        return Some(Problem::Type(json_type(value)));
    };
    let is_time = normal::parse_time(text).is_some();
    (!is_time).then(|| {
        Problem::Format(format!(
            "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" as \"2006\""
        ))
    })
}

fn bytes_problem(value: &Value) -> Option<Problem> {
    use base64::Engine as _;
    let Some(text) = value.as_str() else {
        return Some(Problem::Type(json_type(value)));
    };
    let error = base64::engine::general_purpose::STANDARD
        .decode(text.replace(['\r', '\n'], ""))
        .err()?;
    let place = match error {
        base64::DecodeError::InvalidByte(place, _) => place,
        _ => text.len(),
    };
    Some(Problem::Format(format!(
        "illegal base64 data at input byte {place}"
    )))
}

/// A number that does not fit a number is told with its text.
fn json_type_for(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Int32 | Kind::Int64 | Kind::IntOrString, Value::Number(number)) => format!("number {number}"),
        _ => json_type(value),
    }
}

/// A JSON type as Go names it.
fn json_type(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

fn go_type(schema: &Schema) -> String {
    match &schema.kind {
        Kind::Object(_) => {
            let mut parts = schema.name.as_deref().unwrap_or("object").rsplit('.');
            let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{package}.{name}")
        }
        Kind::Map(map) => format!("map[string]{}", go_type(&map.value)),
        Kind::List(list) => format!("[]{}", go_type(&list.items)),
        Kind::String => "string".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Int32 => "int32".to_owned(),
        Kind::Int64 => "int64".to_owned(),
        Kind::Number => "float64".to_owned(),
        Kind::Boolean => "bool".to_owned(),
        Kind::IntOrString => "intstr.IntOrString".to_owned(),
        Kind::Quantity => "resource.Quantity".to_owned(),
        Kind::Time => "v1.Time".to_owned(),
        Kind::MicroTime => "v1.MicroTime".to_owned(),
        Kind::Any(_) => "any".to_owned(),
    }
}

#[cfg(test)]
mod tests;
