//! Builds the schema of every named type from `tables/types.txt` (format: `tables/README.md`).

use std::collections::HashMap;
use std::sync::Arc;

use super::Gvk;
use crate::schema::{
    AnyKind, Field, Inlined, Kind, List, ListType, Map, Object, PatchStrategy, Schema, SchemaRef, Zero,
};

pub(super) const TABLE: &str = include_str!("../../tables/types.txt");
/// Why a look-up in the tables cannot fail: `cargo xtask codegen` wrote them and a test reads them whole.
const MADE: &str = "the committed tables are well formed";

/// All named types, with the ways to find one.
#[derive(Debug)]
pub(super) struct Types {
    pub schemas: Vec<Arc<Schema>>,
    places: HashMap<String, usize>,
    kinds: HashMap<Gvk, usize>,
    /// Kinds of a definition, in published order (`DeleteOptions` has one per group).
    pub gvks: Vec<Vec<Gvk>>,
}

/// The lines of one type.
struct Raw<'a> {
    name: &'a str,
    attributes: Vec<&'a str>,
    fields: Vec<Line<'a>>,
}

/// One field line.
struct Line<'a> {
    name: &'a str,
    number: Option<u32>,
    zero: &'a str,
    expression: &'a str,
    attributes: Vec<&'a str>,
}

impl Types {
    pub fn read() -> Types {
        let raw = parse(TABLE);
        let places: HashMap<String, usize> = raw
            .iter()
            .enumerate()
            .map(|(place, r)| (r.name.to_owned(), place))
            .collect();
        let mut types = Types {
            schemas: Vec::new(),
            places,
            kinds: HashMap::new(),
            gvks: Vec::new(),
        };
        for place in 0..raw.len() {
            let schema = types.schema(&raw, place);
            types.schemas.push(Arc::new(schema));
            let gvks = gvks(&raw[place]);
            // The options and events of the meta group claim every group; a kind's own type comes first.
            for gvk in &gvks {
                types.kinds.entry(gvk.clone()).or_insert(place);
            }
            types.gvks.push(gvks);
        }
        types
    }

    /// The type of a definition name with or without its `io.k8s.`, or of a protobuf message name.
    pub fn by_name(&self, name: &str) -> Option<usize> {
        let name = name.trim_start_matches('.');
        if let Some(message) = name.strip_prefix("k8s.io.") {
            return self.places.get(&message.replace('_', "-")).copied();
        }
        self.places
            .get(name.strip_prefix("io.k8s.").unwrap_or(name))
            .copied()
    }

    /// The type of a kind. Kinds that only travel between client and server have no published group.
    pub fn by_kind(&self, gvk: &Gvk) -> Option<usize> {
        let packages: &[&str] = match (gvk.group.as_str(), gvk.version.as_str()) {
            ("meta.k8s.io", "v1") => &["apimachinery.pkg.apis.meta.v1"],
            ("", "v1") => &["api.core.v1", "apimachinery.pkg.apis.meta.v1"],
            _ => &[],
        };
        let published = self.kinds.get(gvk).copied();
        published.or_else(|| {
            packages
                .iter()
                .find_map(|p| self.by_name(&format!("{p}.{}", gvk.kind)))
        })
    }

    fn schema(&self, raw: &[Raw], place: usize) -> Schema {
        let mut object = Object::default();
        object.atomic = raw[place].attributes.contains(&"atomic");
        self.add_fields(raw, place, true, &mut object);
        Schema {
            name: Some(format!("io.k8s.{}", raw[place].name)),
            kind: Kind::Object(object),
            nullable: false,
        }
    }

    /// Adds the fields of a type. Fields of an embedded message stand in the object too, but have no number there.
    fn add_fields(&self, raw: &[Raw], place: usize, own: bool, object: &mut Object) {
        for line in &raw[place].fields {
            if line.name == "+" {
                let embedded = self.places[&line.expression[1..]];
                if let (true, Some(number)) = (own, line.number) {
                    object.inlined.push(Inlined {
                        number,
                        schema: SchemaRef::Named(embedded),
                    });
                }
                self.add_fields(raw, embedded, own && line.number.is_none(), object);
            } else {
                let mut field = self.field(line);
                if !own {
                    field.number = None;
                }
                object.push(field);
            }
        }
    }

    fn field(&self, line: &Line) -> Field {
        let value = |key: &str| {
            line.attributes
                .iter()
                .find_map(|a| a.strip_prefix(key)?.strip_prefix('='))
        };
        let patch = value("patch").unwrap_or_default();
        let default = value("default").map(|json| serde_json::from_str(json).expect(MADE));
        let schema = self.expression(line.expression, line);
        let published_required = line.attributes.contains(&"required");
        Field {
            name: line.name.to_owned(),
            required: published_required && is_enforced(line, &schema),
            published_required,
            schema,
            default,
            zero: zero(line.zero),
            patch: PatchStrategy {
                merge: patch.split(',').any(|p| p == "merge"),
                retain_keys: patch.split(',').any(|p| p == "retainKeys"),
                merge_key: value("merge").map(str::to_owned),
            },
            number: line.number,
        }
    }

    fn expression(&self, expression: &str, line: &Line) -> SchemaRef {
        if let Some(name) = expression.strip_prefix('@') {
            return SchemaRef::Named(*self.places.get(name).expect(MADE));
        }
        if let Some(list) = expression.strip_prefix('!') {
            return Schema::new(Kind::List(self.list(&list[2..], line, true))).into();
        }
        if let Some(item) = expression.strip_prefix("[]") {
            return Schema::new(Kind::List(self.list(item, line, false))).into();
        }
        if let Some(value) = expression.strip_prefix("{}") {
            // List attributes of a map's values are not published.
            let bare = Line {
                attributes: Vec::new(),
                ..*line
            };
            let atomic = line.attributes.contains(&"map=atomic");
            return Schema::new(Kind::Map(Map {
                value: self.expression(value, &bare),
                atomic,
            }))
            .into();
        }
        Schema::new(scalar(expression)).into()
    }

    fn list(&self, item: &str, line: &Line, wrapped: bool) -> List {
        let value = |key: &str| line.attributes.iter().find_map(|a| a.strip_prefix(key));
        let list_type = match value("list=") {
            Some("map") => ListType::Map,
            Some("set") => ListType::Set,
            _ => ListType::Atomic,
        };
        let map_keys = value("keys=")
            .map(|keys| keys.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        List {
            items: self.expression(item, line),
            list_type,
            map_keys,
            wrapped,
        }
    }
}

/// Whether the server refuses an object without a field that the published schema calls required. It does not for
/// numbers, booleans and lists, where absent and zero are one; what of those must be given is a rule of the kind.
fn is_enforced(line: &Line, schema: &SchemaRef) -> bool {
    const LENIENT: &[(&str, &str)] = &[("apiGroup", "string"), ("value", "string"), ("spec", "@")];
    let lenient = LENIENT
        .iter()
        .any(|(name, kind)| line.name == *name && line.expression.starts_with(kind));
    // A reference to a named type is an object; it cannot be followed while the tables are being built.
    let has_absent_form = match schema {
        SchemaRef::Named(_) => true,
        SchemaRef::Own(own) => {
            matches!(
                own.kind,
                Kind::String | Kind::IntOrString | Kind::Quantity | Kind::Bytes
            )
        }
    };
    has_absent_form && !lenient
}

fn scalar(name: &str) -> Kind {
    match name {
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "bool" => Kind::Boolean,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "float64" => Kind::Number,
        "quantity" => Kind::Quantity,
        "int-or-string" => Kind::IntOrString,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "raw" => Kind::Any(AnyKind::Raw),
        "schema-or-array" => Kind::Any(AnyKind::SchemaOrArray),
        "schema-or-bool" => Kind::Any(AnyKind::SchemaOrBool),
        "schema-or-strings" => Kind::Any(AnyKind::SchemaOrStrings),
        _ => panic!("type {name} in types.txt is not known: {MADE}"),
    }
}

fn zero(name: &str) -> Zero {
    match name {
        "omit" => Zero::Omit,
        "null" => Zero::Null,
        "write" => Zero::Write,
        _ => Zero::Keep,
    }
}

fn parse(table: &str) -> Vec<Raw<'_>> {
    let mut types: Vec<Raw> = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().expect(MADE);
        if line.starts_with(' ') {
            let (name, number, zero, expression) = (word(), word().parse().ok(), word(), word());
            let field = Line {
                name,
                number,
                zero,
                expression,
                attributes: words.collect(),
            };
            types.last_mut().expect(MADE).fields.push(field);
        } else {
            let name = word();
            types.push(Raw {
                name,
                attributes: words.collect(),
                fields: Vec::new(),
            });
        }
    }
    types
}

fn gvks(raw: &Raw) -> Vec<Gvk> {
    let list = raw
        .attributes
        .iter()
        .find_map(|a| a.strip_prefix("gvk="))
        .unwrap_or_default();
    list.split(',').filter_map(Gvk::parse).collect()
}
