//! The schema tree: what fields an object has and what they hold.
//!
//! Built-in kinds get theirs from the committed tables; a custom resource definition can build the same tree at run
//! time. Everything that walks an object (validation, patches, apply, protobuf) walks this tree beside it.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

/// One node of the tree.
#[derive(Debug, Clone)]
pub struct Schema {
    /// The published definition name (`io.k8s.api.core.v1.Pod`), where the node is a named type.
    pub name: Option<String>,
    /// What the node holds.
    pub kind: Kind,
    /// `null` is a value of its own here (custom resources only; for built-in kinds `null` means absent).
    pub nullable: bool,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An object with known fields.
    Object(Object),
    /// An object with free keys.
    Map(Map),
    /// A list.
    List(List),
    /// Text.
    String,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A whole number that fits 32 bits.
    Int32,
    /// A whole number that fits 64 bits.
    Int64,
    /// Any JSON number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A 32-bit number or a text such as `50%` or a port name.
    IntOrString,
    /// A resource quantity (`100m`, `1Gi`).
    Quantity,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Anything: never checked, never pruned.
    Any(AnyKind),
}

/// Which free-form type an [`Kind::Any`] node is; only protobuf cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyKind {
    /// No protobuf form (custom resources, `preserveUnknownFields`).
    Free,
    /// JSON text in one `bytes` field: `RawExtension`, `FieldsV1`, apiextensions' `JSON`.
    Raw,
    /// apiextensions' `JSONSchemaPropsOrArray`.
    SchemaOrArray,
    /// apiextensions' `JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// apiextensions' `JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
}

/// An object with known fields.
#[derive(Debug, Clone, Default)]
pub struct Object {
    fields: Vec<Field>,
    /// Places in `fields`, by name.
    index: Vec<usize>,
    wire: OnceLock<Vec<(u32, WireField)>>,
    /// Embedded messages whose fields stand directly in this object in JSON, but in a message of their own in protobuf.
    pub inlined: Vec<Inlined>,
    /// Replaced as a whole by server-side apply (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Fields that are not known are kept (custom resources with `x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// A whole object inside another (custom resources with `x-kubernetes-embedded-resource`).
    pub embedded: bool,
}

/// What a protobuf number of an object stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireField {
    /// A place in [`Object::fields`].
    Field(usize),
    /// A place in [`Object::inlined`].
    Inlined(usize),
}

/// An embedded message.
#[derive(Debug, Clone)]
pub struct Inlined {
    /// Protobuf field number of the message.
    pub number: u32,
    /// Its schema, an object.
    pub schema: SchemaRef,
}

/// An object with free keys.
#[derive(Debug, Clone)]
pub struct Map {
    /// What each value is.
    pub value: SchemaRef,
    /// Replaced as a whole by server-side apply.
    pub atomic: bool,
}

/// A list.
#[derive(Debug, Clone)]
pub struct List {
    /// What each item is.
    pub items: SchemaRef,
    /// How server-side apply merges it.
    pub list_type: ListType,
    /// The fields that identify an item of a [`ListType::Map`].
    pub map_keys: Vec<String>,
    /// In protobuf the list is wrapped in a message with one repeated field (`ExtraValue`, `Verbs`).
    pub wrapped: bool,
}

/// How server-side apply treats a list (`x-kubernetes-list-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole. Also what a list without a declared type is.
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Objects identified by their keys.
    Map,
}

/// One field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: String,
    /// What it holds.
    pub schema: SchemaRef,
    /// An object without it is refused.
    pub required: bool,
    /// Listed as required in the published schema (which is stricter than the server for built-in kinds).
    pub published_required: bool,
    /// What the server fills in when the parent is there and the field is not.
    pub default: Option<Value>,
    /// What becomes of the zero value.
    pub zero: Zero,
    /// How strategic merge patch treats it.
    pub patch: PatchStrategy,
    /// Protobuf field number. `None`: not in the protobuf form, or in one of the [`Object::inlined`] messages.
    pub number: Option<u32>,
}

/// What a built-in type does with a field that is absent or has its zero value. It follows the published Go types: a
/// pointer can tell zero from absent, a value cannot, and only some values are left out when empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// Present as given, absent when absent.
    Keep,
    /// Left out when empty (`""`, `0`, `false`, `[]`, `{}`).
    Omit,
    /// Written as `null` when absent or empty.
    Null,
    /// Written as the zero value when absent (`""`, `0`, `false`, an object of zero values).
    Write,
}

/// Strategic merge patch directives of a field (`x-kubernetes-patch-strategy`, `x-kubernetes-patch-merge-key`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged item by item rather than replaced.
    pub merge: bool,
    /// Keys that the patch does not list under `$retainKeys` are dropped.
    pub retain_keys: bool,
    /// The field that identifies an item when lists of objects are merged.
    pub merge_key: Option<String>,
}

/// A node, either owned or one of the built-in named types (which may refer to each other in circles).
#[derive(Debug, Clone)]
pub enum SchemaRef {
    /// Built here.
    Own(Arc<Schema>),
    /// A named built-in type, by its place in the tables.
    Named(usize),
}

impl Deref for SchemaRef {
    type Target = Schema;

    fn deref(&self) -> &Schema {
        match self {
            SchemaRef::Own(schema) => schema,
            SchemaRef::Named(place) => crate::catalog::named_type(*place),
        }
    }
}

impl From<Schema> for SchemaRef {
    fn from(schema: Schema) -> Self {
        SchemaRef::Own(Arc::new(schema))
    }
}

impl Schema {
    /// A node without a name that is not nullable.
    pub fn new(kind: Kind) -> Self {
        Schema {
            name: None,
            kind,
            nullable: false,
        }
    }

    /// The field `name`, when this is an object that has it.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.object()?.field(name)
    }

    /// This node as an object with known fields.
    pub fn object(&self) -> Option<&Object> {
        match &self.kind {
            Kind::Object(object) => Some(object),
            _ => None,
        }
    }

    /// This node as a list.
    pub fn list(&self) -> Option<&List> {
        match &self.kind {
            Kind::List(list) => Some(list),
            _ => None,
        }
    }

    /// What stands under `key` in a value of this schema: a field of an object or the value of a map.
    pub fn child(&self, key: &str) -> Option<&Schema> {
        match &self.kind {
            Kind::Object(object) => object.field(key).map(|field| &*field.schema),
            Kind::Map(map) => Some(&map.value),
            _ => None,
        }
    }

    /// What each item of a list is.
    pub fn items(&self) -> Option<&Schema> {
        self.list().map(|list| &*list.items)
    }

    /// The last part of the definition name (`Pod`), for messages.
    pub fn short_name(&self) -> Option<&str> {
        self.name.as_deref().and_then(|name| name.rsplit('.').next())
    }
}

impl Object {
    /// An object with these fields; of two with one name the first counts.
    pub fn new(fields: Vec<Field>) -> Self {
        let mut object = Object::default();
        for field in fields {
            object.push(field);
        }
        object
    }

    /// Adds a field unless one of that name is there.
    pub fn push(&mut self, field: Field) {
        if let Err(gap) = self.search(&field.name) {
            self.index.insert(gap, self.fields.len());
            self.fields.push(field);
        }
    }

    /// The field `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.place(name).map(|place| &self.fields[place])
    }

    /// Where the field `name` stands in [`Object::fields`].
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.search(name).ok().map(|found| self.index[found])
    }

    fn search(&self, name: &str) -> Result<usize, usize> {
        self.index
            .binary_search_by(|place| self.fields[*place].name.as_str().cmp(name))
    }

    /// Everything that has a protobuf number, by number.
    pub(crate) fn wire(&self) -> &[(u32, WireField)] {
        self.wire.get_or_init(|| {
            let fields = self.fields.iter().enumerate();
            let fields = fields.filter_map(|(place, f)| Some((f.number?, WireField::Field(place))));
            let inlined = self.inlined.iter().enumerate();
            let inlined = inlined.map(|(place, i)| (i.number, WireField::Inlined(place)));
            let mut all: Vec<_> = fields.chain(inlined).collect();
            all.sort_unstable_by_key(|(number, _)| *number);
            all
        })
    }

    /// All fields, in the order in which they are written.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
}
