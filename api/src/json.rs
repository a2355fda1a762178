//! JSON as the API reads it: fields that occur twice are found, with their paths.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The value; of a field that occurs twice the last counts.
    pub value: Value,
    /// Paths of the fields that occur more than once, as `spec.containers[0].image`.
    pub duplicates: Vec<String>,
}

/// The text is not JSON, or nested deeper than 127 levels.
#[derive(Debug, thiserror::Error)]
#[error("the body is not valid JSON: {0}")]
pub struct ParseError(#[from] serde_json::Error);

/// Reads one JSON value and nothing after it.
///
/// # Errors
/// When the text is not JSON, with line and column.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let node: Node = serde_json::from_slice(bytes)?;
    Ok(node.into())
}

/// What the API answers about a field that occurs twice.
pub fn duplicate_message(path: &str) -> String {
    format!("duplicate field \"{path}\"")
}

/// A value with the paths, relative to it, of fields that occur twice below it.
pub(crate) struct Node {
    value: Value,
    duplicates: Vec<String>,
}

impl From<Node> for Parsed {
    fn from(node: Node) -> Self {
        Parsed {
            value: node.value,
            duplicates: node.duplicates,
        }
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        Node {
            value,
            duplicates: Vec::new(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Value::Null.into())
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Value::Null.into())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Value::Bool(v).into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Value::from(v).into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Value::from(v).into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number).into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Value::String(v.to_owned()).into())
    }

    fn visit_string<E>(self, v: String) -> Result<Node, E> {
        Ok(Value::String(v).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let (mut items, mut duplicates) = (Vec::new(), Vec::new());
        while let Some(item) = seq.next_element::<Node>()? {
            let place = items.len();
            duplicates.extend(
                item.duplicates
                    .iter()
                    .map(|path| join(&format!("[{place}]"), path)),
            );
            items.push(item.value);
        }
        Ok(Node {
            value: Value::Array(items),
            duplicates,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let (mut object, mut duplicates) = (Map::new(), Vec::new());
        while let Some(Key(key)) = map.next_key()? {
            let node: Node = map.next_value()?;
            duplicates.extend(node.duplicates.iter().map(|path| join(&key, path)));
            if object.contains_key(&key) {
                duplicates.push(key.clone());
            }
            object.insert(key, node.value);
        }
        Ok(Node {
            value: Value::Object(object),
            duplicates,
        })
    }
}

fn join(parent: &str, child: &str) -> String {
    if child.starts_with('[') {
        format!("{parent}{child}")
    } else {
        format!("{parent}.{child}")
    }
}

/// A key; in YAML numbers and booleans may stand there, which become text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_that_occurs_twice_is_named_by_its_path_and_the_last_counts() {
        let parsed = parse(br#"{"spec":{"c":[{"x":1},{"x":1,"x":2}],"c2":{}},"spec2":1,"spec2":2}"#).unwrap();
        assert_eq!(parsed.duplicates, ["spec.c[1].x", "spec2"]);
        assert_eq!(
            parsed.value,
            json!({"spec": {"c": [{"x": 1}, {"x": 2}], "c2": {}}, "spec2": 2})
        );
    }

    #[test]
    fn text_after_the_value_and_endless_nesting_are_refused() {
        assert!(parse(b"{} {}").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse(b"{\"a\":01}").is_err());
    }
}
