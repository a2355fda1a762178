//! Walking an object along its schema: which paths it has, what differs, how two merge, how paths are taken out.

use super::set::FieldSet;
use crate::quantity::Quantity;
use crate::schema::{Kind, List, ListType, Schema, Zero};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// How the parts of a value are owned.
enum Shape<'a> {
    /// Field by field. Free maps have no object schema.
    Fields,
    /// Item by item.
    Items(&'a List),
    /// As a whole.
    Whole,
}

fn shape<'a>(schema: Option<&'a Schema>, value: &Value) -> Shape<'a> {
    let Some(schema) = schema else { return Shape::Whole };
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(_)) if !object.atomic => Shape::Fields,
        (Kind::Map(map), Value::Object(_)) if !map.atomic => Shape::Fields,
        (Kind::List(list), Value::Array(_)) if list.list_type != ListType::Atomic => Shape::Items(list),
        _ => Shape::Whole,
    }
}

fn field_step(name: &str) -> String {
    format!("f:{name}")
}

/// The step to an item of a granular list. Keys that the item leaves out have their default.
fn item_step(list: &List, item: &Value) -> String {
    if list.list_type == ListType::Set {
        return format!("v:{item}");
    }
    let mut names: Vec<&String> = list.map_keys.iter().collect();
    names.sort();
    let mut keys = Object::new();
    for name in names {
        let default = || list.items.field(name).and_then(|field| field.default.clone());
        if let Some(value) = item.get(name).filter(|v| !v.is_null()).cloned().or_else(default) {
            keys.insert(name.clone(), value);
        }
    }
    format!("k:{}", Value::Object(keys))
}

fn present(map: &Object) -> impl Iterator<Item = (&String, &Value)> {
    map.iter().filter(|(_, value)| !value.is_null())
}

/// Which objects and lists that hold something are paths beside what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Containers {
    /// None: what an applied configuration sets.
    None,
    /// Objects and maps that the type does not always have: what a write adds.
    New,
    /// All of them: what is gone with an object.
    All,
}

/// Every path that `value` sets.
pub(super) fn paths(schema: Option<&Schema>, value: &Value, containers: Containers) -> FieldSet {
    let mut out = FieldSet::default();
    match (shape(schema, value), value) {
        (Shape::Fields, Value::Object(map)) => {
            for (key, value) in present(map) {
                let mut below = paths(schema.and_then(|s| s.child(key)), value, containers);
                if containers == Containers::New && appears_with_its_fields(schema, key, value) {
                    below.set_member();
                }
                out.add(&field_step(key), below);
            }
            if containers == Containers::All || present(map).next().is_none() {
                out.set_member();
            }
        }
        (Shape::Items(list), Value::Array(items)) => {
            for item in items {
                let mut below = paths(Some(&list.items), item, containers);
                below.set_member();
                out.add(&item_step(list, item), below);
            }
            if containers == Containers::All {
                out.set_member();
            }
        }
        _ => out.set_member(),
    }
    out
}

/// What has changed between two objects.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn add(&mut self, step: &str, below: Changes) {
        self.added.add(step, below.added);
        self.modified.add(step, below.modified);
        self.removed.add(step, below.removed);
    }
}

/// Compares two values of one schema.
pub(super) fn compare(schema: Option<&Schema>, old: &Value, new: &Value) -> Changes {
    let mut out = Changes::default();
    match (shape(schema, old), shape(schema, new)) {
        (Shape::Fields, Shape::Fields) => {
            let empty = Object::new();
            let (old, new) = (
                old.as_object().unwrap_or(&empty),
                new.as_object().unwrap_or(&empty),
            );
            compare_fields(schema, old, new, &mut out);
        }
        (Shape::Items(list), Shape::Items(_)) => compare_items(list, items(old), items(new), &mut out),
        _ if equal(schema, old, new) => {}
        _ => out.modified.set_member(),
    }
    out
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn equal(schema: Option<&Schema>, old: &Value, new: &Value) -> bool {
    let quantity = schema.is_some_and(|schema| matches!(schema.kind, Kind::Quantity));
    old == new || (quantity && Quantity::from_json(old).ok() == Quantity::from_json(new).ok())
}

fn compare_fields(schema: Option<&Schema>, old: &Object, new: &Object, out: &mut Changes) {
    for (key, value) in present(new) {
        let child = schema.and_then(|schema| schema.child(key));
        let step = field_step(key);
        match old.get(key).filter(|value| !value.is_null()) {
            Some(before) => out.add(&step, compare(child, before, value)),
            None => {
                let mut below = paths(child, value, Containers::New);
                if appears_with_its_fields(schema, key, value) {
                    below.set_member();
                }
                out.added.add(&step, below);
            }
        }
    }
    for (key, value) in present(old).filter(|(key, _)| new.get(*key).is_none_or(Value::is_null)) {
        out.removed.add(
            &field_step(key),
            paths(
                schema.and_then(|schema| schema.child(key)),
                value,
                Containers::All,
            ),
        );
    }
}

/// Whether an object or map is a path of its own when it is new: those that the type always has are not.
fn appears_with_its_fields(schema: Option<&Schema>, key: &str, value: &Value) -> bool {
    let always = schema
        .and_then(|schema| schema.field(key))
        .is_some_and(|field| field.zero == Zero::Write);
    value.is_object() && !always
}

fn compare_items(list: &List, old: &[Value], new: &[Value], out: &mut Changes) {
    let step = |item: &Value| item_step(list, item);
    let before: Vec<(String, &Value)> = old.iter().map(|item| (step(item), item)).collect();
    let after: Vec<(String, &Value)> = new.iter().map(|item| (step(item), item)).collect();
    for (step, item) in &after {
        match before.iter().find(|(other, _)| other == step) {
            Some((_, old)) => out.add(step, compare(Some(&list.items), old, item)),
            None => {
                let mut below = paths(Some(&list.items), item, Containers::New);
                below.set_member();
                out.added.add(step, below);
            }
        }
    }
    for (step, item) in before
        .iter()
        .filter(|(step, _)| after.iter().all(|(other, _)| other != step))
    {
        let mut below = paths(Some(&list.items), item, Containers::All);
        below.set_member();
        out.removed.add(step, below);
    }
}

/// `applied` laid over `live`.
pub(super) fn merge(schema: Option<&Schema>, live: &Value, applied: &Value) -> Value {
    match (shape(schema, live), shape(schema, applied)) {
        (Shape::Fields, Shape::Fields) => {
            let mut out = live.clone();
            if let (Value::Object(out), Value::Object(applied)) = (&mut out, applied) {
                merge_fields(schema, out, applied);
            }
            out
        }
        (Shape::Items(list), Shape::Items(_)) => Value::Array(merge_items(list, items(live), items(applied))),
        _ => applied.clone(),
    }
}

fn merge_fields(schema: Option<&Schema>, live: &mut Object, applied: &Object) {
    for (key, value) in present(applied) {
        let child = schema.and_then(|schema| schema.child(key));
        let merged = match live.get(key).filter(|value| !value.is_null()) {
            Some(before) => merge(child, before, value),
            None => value.clone(),
        };
        live.insert(key.clone(), merged);
    }
}

/// Items in the order of `applied`, those of `live` alone between them where they stood.
fn merge_items(list: &List, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let step = |item: &Value| item_step(list, item);
    let live: Vec<(String, &Value)> = live.iter().map(|item| (step(item), item)).collect();
    let applied: Vec<(String, &Value)> = applied.iter().map(|item| (step(item), item)).collect();
    let merged = |step: &str, item: &Value| match live.iter().find(|(other, _)| other == step) {
        Some((_, before)) => merge(Some(&list.items), before, item),
        None => item.clone(),
    };
    let shared = |step: &str| applied.iter().any(|(other, _)| other == step);
    let mut out = Vec::with_capacity(live.len() + applied.len());
    let mut rest = applied.iter();
    for (step, item) in &live {
        if !shared(step) {
            out.push((*item).clone());
        } else if rest.as_slice().iter().any(|(other, _)| other == step) {
            for (next, item) in rest.by_ref() {
                out.push(merged(next, item));
                if next == step {
                    break;
                }
            }
        }
    }
    out.extend(rest.map(|(step, item)| merged(step, item)));
    out
}

/// Takes the paths `gone` out of `value`, except where `kept` has something. Objects and lists that become empty by
/// this go too.
pub(super) fn remove(schema: Option<&Schema>, value: &mut Value, gone: &FieldSet, kept: &FieldSet) {
    match (shape(schema, value), value) {
        (Shape::Fields, Value::Object(map)) => remove_fields(schema, map, gone, kept),
        (Shape::Items(list), Value::Array(items)) => items.retain_mut(|item| {
            let step = item_step(list, item);
            let Some(gone) = gone.child(&step) else {
                return true;
            };
            let empty = FieldSet::default();
            let kept = kept.child(&step).unwrap_or(&empty);
            if gone.is_member() && kept.is_empty() {
                return false;
            }
            remove(Some(&list.items), item, gone, kept);
            true
        }),
        _ => {}
    }
}

fn remove_fields(schema: Option<&Schema>, map: &mut Object, gone: &FieldSet, kept: &FieldSet) {
    let empty = FieldSet::default();
    for (step, gone) in gone.children() {
        let Some(key) = step.strip_prefix("f:") else {
            continue;
        };
        let kept = kept.child(step).unwrap_or(&empty);
        let child = schema.and_then(|schema| schema.child(key));
        let Some(value) = map.get_mut(key) else { continue };
        let whole = matches!(shape(child, value), Shape::Whole);
        if !whole {
            remove(child, value, gone, kept);
        }
        let emptied = match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if kept.is_empty() && if whole { gone.is_member() } else { emptied } {
            map.shift_remove(key);
        }
    }
}
