//! Strategic merge patch: a merge patch that knows from the schema which lists are merged item by item.
//!
//! Directives: `$patch: replace|delete` in maps and list items, `$setElementOrder/<list>`,
//! `$deleteFromPrimitiveList/<list>`, `$retainKeys`. Follows the published design ("strategic merge patch", "preserve
//! order in strategic merge patch").

use super::PatchError;
use crate::schema::{Kind, PatchStrategy, Schema};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to `doc`, whose type is `schema`.
///
/// # Errors
/// A patch that is no object, a bad directive, an item without its merge key, a field the schema does not have.
pub fn strategic(schema: &Schema, doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch = patch
        .as_object()
        .ok_or_else(|| malformed("invalid JSON document"))?;
    let doc = doc.as_object().cloned().unwrap_or_default();
    merge_map(Some(schema), doc, patch).map(Value::Object)
}

fn malformed(why: impl Into<String>) -> PatchError {
    PatchError::Malformed(why.into())
}

/// What is known of the value under one key: its schema and how lists there are merged.
struct Under<'a> {
    schema: Option<&'a Schema>,
    strategy: PatchStrategy,
}

fn under<'a>(schema: Option<&'a Schema>, key: &str) -> Result<Under<'a>, PatchError> {
    let Some(schema) = schema else {
        return Ok(Under {
            schema: None,
            strategy: PatchStrategy::default(),
        });
    };
    if let Some(field) = schema.field(key) {
        return Ok(Under {
            schema: Some(&field.schema),
            strategy: field.patch.clone(),
        });
    }
    match &schema.kind {
        Kind::Object(object) if !object.preserve_unknown => Err(malformed(format!(
            "unable to find api field in struct {} for the json field \"{key}\"",
            schema.short_name().unwrap_or("object")
        ))),
        _ => Ok(Under {
            schema: schema.child(key),
            strategy: PatchStrategy::default(),
        }),
    }
}

fn merge_map(schema: Option<&Schema>, mut doc: Object, patch: &Object) -> Result<Object, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => return Ok(replacement(patch)),
        Some(Value::String(directive)) if directive == "delete" => return Ok(Object::new()),
        // `merge` says what happens anyway.
        Some(Value::String(directive)) if directive == "merge" => {}
        Some(other) => return Err(malformed(format!("unknown patch type: {other}"))),
    }
    retain_keys(&mut doc, patch)?;
    for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key)) {
        merge_field(
            schema,
            &mut doc,
            key,
            value,
            patch.get(&format!("{SET_ORDER}{key}")),
        )?;
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(&mut doc, list, value)?;
        } else if let Some(list) = key.strip_prefix(SET_ORDER) {
            order_untouched(schema, &mut doc, patch, list, value)?;
        }
    }
    Ok(doc)
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES)
}

/// The patch itself in place of what was there: only its own `$patch` is taken out.
fn replacement(patch: &Object) -> Object {
    patch
        .iter()
        .filter(|(key, _)| *key != DIRECTIVE)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn retain_keys(doc: &mut Object, patch: &Object) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let keys: Vec<&str> = keys
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let stray = |(key, value): (&String, &Value)| {
        !value.is_null() && !is_directive(key) && !keys.contains(&key.as_str())
    };
    if patch.iter().any(stray) {
        return Err(bad());
    }
    doc.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

fn merge_field(
    schema: Option<&Schema>,
    doc: &mut Object,
    key: &str,
    value: &Value,
    order: Option<&Value>,
) -> Result<(), PatchError> {
    if value.is_null() {
        doc.shift_remove(key);
        return Ok(());
    }
    let merged = match (doc.get_mut(key), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            let under = under(schema, key)?;
            Some(Value::Object(merge_map(under.schema, std::mem::take(old), new)?))
        }
        (Some(Value::Array(old)), Value::Array(new)) => {
            let under = under(schema, key)?;
            Some(Value::Array(merge_list(&under, std::mem::take(old), new, order)?))
        }
        _ => plain(value),
    };
    match merged {
        Some(merged) => drop(doc.insert(key.to_owned(), merged)),
        None => drop(doc.shift_remove(key)),
    }
    Ok(())
}

/// A patch value where nothing was: nulls and directives do not become content. `None` when nothing is left.
fn plain(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter(|(key, value)| !is_directive(key) && !value.is_null());
            Some(Value::Object(
                kept.filter_map(|(k, v)| Some((k.clone(), plain(v)?))).collect(),
            ))
        }
        Value::Array(list) => Some(Value::Array(list.iter().filter_map(plain).collect())),
        other => Some(other.clone()),
    }
}

fn merge_list(
    under: &Under<'_>,
    old: Vec<Value>,
    new: &[Value],
    order: Option<&Value>,
) -> Result<Vec<Value>, PatchError> {
    if !under.strategy.merge {
        return Ok(new.to_vec());
    }
    if new.iter().chain(&old).any(Value::is_array) {
        return Err(PatchError::DoesNotFit("lists of lists are not supported".into()));
    }
    let before = old.clone();
    let key = if new.iter().chain(&old).any(Value::is_object) {
        Some(
            under
                .strategy
                .merge_key
                .as_deref()
                .ok_or_else(|| malformed("cannot merge lists without merge key"))?,
        )
    } else {
        None
    };
    let (merged, from_patch) = match key {
        Some(key) => merge_items(under.schema.and_then(Schema::items), key, old, new)?,
        None => (union(old, new), new.to_vec()),
    };
    let wanted = match order {
        Some(order) => check_order(order, &from_patch, key)?,
        None => &from_patch,
    };
    Ok(ordered(merged, wanted, &before, key))
}

fn union(mut old: Vec<Value>, new: &[Value]) -> Vec<Value> {
    for item in new {
        if !old.contains(item) {
            old.push(item.clone());
        }
    }
    old
}

/// Items by merge key: directives first, then each patch item into its match or to the end. Also returns the items of
/// the patch that are no directives.
fn merge_items(
    schema: Option<&Schema>,
    key: &str,
    mut old: Vec<Value>,
    new: &[Value],
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut items = Vec::with_capacity(new.len());
    let mut replace = false;
    for item in new {
        match item.get(DIRECTIVE).map(Value::as_str) {
            None => items.push(item.clone()),
            Some(Some("delete")) => {
                let wanted = merge_key(item, key)?;
                old.retain(|have| have.get(key) != Some(wanted));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => {
                return Err(malformed("merging lists cannot yet be specified in the patch"));
            }
            Some(other) => {
                return Err(malformed(format!(
                    "unknown patch type: {}",
                    other.unwrap_or_default()
                )));
            }
        }
    }
    if replace {
        return Ok((items.clone(), items));
    }
    for item in &items {
        let wanted = merge_key(item, key)?;
        let fields = item
            .as_object()
            .ok_or_else(|| malformed("expected a map in a list of maps"))?;
        match old.iter().position(|have| have.get(key) == Some(wanted)) {
            Some(at) => {
                let have = old[at].as_object_mut().map(std::mem::take).unwrap_or_default();
                old[at] = Value::Object(merge_map(schema, have, fields)?);
            }
            None => old.extend(plain(item)),
        }
    }
    Ok((old, items))
}

fn merge_key<'a>(item: &'a Value, key: &str) -> Result<&'a Value, PatchError> {
    item.get(key)
        .ok_or_else(|| malformed(format!("map: {item} does not contain declared merge key: {key}")))
}

/// What identifies an item: its merge key's value, or the item itself among scalars.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn place(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    let wanted = identity(item, key)?;
    list.iter().position(|have| identity(have, key) == Some(wanted))
}

/// `$setElementOrder` must list the patch's items in the patch's order.
fn check_order<'a>(
    order: &'a Value,
    items: &[Value],
    key: Option<&str>,
) -> Result<&'a Vec<Value>, PatchError> {
    let list = order
        .as_array()
        .ok_or_else(|| malformed("invalid patch format of setElementOrder list"))?;
    let mut rest = list.iter();
    let in_order = items
        .iter()
        .all(|item| rest.any(|have| identity(have, key) == identity(item, key)));
    if in_order || list.is_empty() {
        return Ok(list);
    }
    let shown = Value::Array(items.to_vec());
    Err(malformed(format!(
        "The order in patch list:\n{shown}\n doesn't match $setElementOrder list:\n{order}\n"
    )))
}

/// Orders a merged list: items named in `wanted` as they stand there, the others between them as they stood in `before`.
fn ordered(merged: Vec<Value>, wanted: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut named, others): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| place(wanted, item, key).is_some());
    named.sort_by_key(|item| place(wanted, item, key));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for other in others {
        let at = place(before, &other, key);
        while let Some(next) = named.peek() {
            // An item that was not there before has no place of its own: it stays in front.
            let stays_behind = matches!((at, place(before, next, key)), (Some(a), Some(b)) if a < b);
            if stays_behind {
                break;
            }
            out.extend(named.next());
        }
        out.push(other);
    }
    out.extend(named);
    out
}

fn delete_primitives(doc: &mut Object, list: &str, gone: &Value) -> Result<(), PatchError> {
    let gone = gone
        .as_array()
        .ok_or_else(|| malformed("invalid patch format of primitive list"))?;
    if let Some(Value::Array(items)) = doc.get_mut(list) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// `$setElementOrder` for a list that the patch does not touch otherwise.
fn order_untouched(
    schema: Option<&Schema>,
    doc: &mut Object,
    patch: &Object,
    list: &str,
    order: &Value,
) -> Result<(), PatchError> {
    if patch.contains_key(list) {
        return Ok(());
    }
    let under = under(schema, list)?;
    let Some(Value::Array(items)) = doc.get_mut(list) else {
        return Ok(());
    };
    let key = under
        .strategy
        .merge_key
        .as_deref()
        .filter(|_| items.iter().any(Value::is_object));
    let wanted = check_order(order, &[], key)?;
    if under.strategy.merge {
        let before = std::mem::take(items);
        *items = ordered(before.clone(), wanted, &before, key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Field, List, ListType, Object as ObjectSchema, SchemaRef, Zero};
    use proptest::prelude::*;
    use serde_json::json;

    fn field(name: &str, kind: Kind, merge_key: Option<&str>, merge: bool) -> Field {
        Field {
            name: name.into(),
            schema: SchemaRef::from(Schema::new(kind)),
            required: false,
            published_required: false,
            default: None,
            zero: Zero::Keep,
            patch: PatchStrategy {
                merge,
                retain_keys: false,
                merge_key: merge_key.map(str::to_owned),
            },
            number: None,
        }
    }

    fn list(items: Kind) -> Kind {
        Kind::List(List {
            items: Schema::new(items).into(),
            list_type: ListType::Atomic,
            map_keys: Vec::new(),
            wrapped: false,
        })
    }

    /// `c`: items by `name`, each with scalars `p`; `s`: scalars, merged; `r`: replaced; `m`: a map.
    fn schema() -> Schema {
        let item = ObjectSchema::new(vec![
            field("name", Kind::String, None, false),
            field("v", Kind::String, None, false),
            field("p", list(Kind::Int64), None, true),
        ]);
        let map = ObjectSchema::new(vec![
            field("a", Kind::Int64, None, false),
            field("b", Kind::Int64, None, false),
        ]);
        Schema::new(Kind::Object(ObjectSchema::new(vec![
            field("c", list(Kind::Object(item)), Some("name"), true),
            field("s", list(Kind::String), None, true),
            field("r", list(Kind::String), None, false),
            field("m", Kind::Object(map), None, false),
        ])))
    }

    #[test]
    fn cases_of_the_published_design_hold() {
        let cases = [
            (
                "items merge by key",
                json!({"c": [{"name": "a", "v": "1"}, {"name": "b"}]}),
                json!({"c": [{"name": "b", "v": "2"}]}),
                json!({"c": [{"name": "a", "v": "1"}, {"name": "b", "v": "2"}]}),
            ),
            (
                "a new item stands where the patch has it",
                json!({"c": [{"name": "a"}]}),
                json!({"c": [{"name": "n"}, {"name": "a"}]}),
                json!({"c": [{"name": "n"}, {"name": "a"}]}),
            ),
            (
                "an item is deleted",
                json!({"c": [{"name": "a"}, {"name": "b"}]}),
                json!({"c": [{"name": "a", "$patch": "delete"}]}),
                json!({"c": [{"name": "b"}]}),
            ),
            (
                "the list is replaced",
                json!({"c": [{"name": "a"}]}),
                json!({"c": [{"name": "z"}, {"$patch": "replace"}]}),
                json!({"c": [{"name": "z"}]}),
            ),
            (
                "scalars are added once",
                json!({"s": ["a", "b"]}),
                json!({"s": ["b", "c"]}),
                json!({"s": ["a", "b", "c"]}),
            ),
            (
                "scalars are deleted",
                json!({"s": ["a", "b"]}),
                json!({"$deleteFromPrimitiveList/s": ["a"]}),
                json!({"s": ["b"]}),
            ),
            (
                "lists without merge are replaced",
                json!({"r": ["a"]}),
                json!({"r": ["b"]}),
                json!({"r": ["b"]}),
            ),
            (
                "null deletes",
                json!({"m": {"a": 1, "b": 2}}),
                json!({"m": {"a": null}}),
                json!({"m": {"b": 2}}),
            ),
            (
                "null of nothing is nothing",
                json!({}),
                json!({"m": {"a": null}, "r": null}),
                json!({"m": {}}),
            ),
            (
                "a map is replaced",
                json!({"m": {"a": 1}}),
                json!({"m": {"$patch": "replace", "b": 2}}),
                json!({"m": {"b": 2}}),
            ),
            (
                "a map is emptied",
                json!({"m": {"a": 1}}),
                json!({"m": {"$patch": "delete"}}),
                json!({"m": {}}),
            ),
            (
                "keys are retained",
                json!({"m": {"a": 1, "b": 1}}),
                json!({"m": {"$retainKeys": ["b"], "b": 2}}),
                json!({"m": {"b": 2}}),
            ),
            (
                "order is set",
                json!({"c": [{"name": "a"}, {"name": "b"}, {"name": "x"}]}),
                json!({"$setElementOrder/c": [{"name": "b"}, {"name": "a"}], "c": [{"name": "a", "v": "1"}]}),
                json!({"c": [{"name": "b"}, {"name": "a", "v": "1"}, {"name": "x"}]}),
            ),
            (
                "order alone is set",
                json!({"s": ["a", "b"]}),
                json!({"$setElementOrder/s": ["b", "a"]}),
                json!({"s": ["b", "a"]}),
            ),
            (
                "order is kept while one goes",
                json!({"c": [{"name": "a"}, {"name": "b"}]}),
                json!({"$setElementOrder/c": [{"name": "b"}], "c": [{"$patch": "delete", "name": "a"}]}),
                json!({"c": [{"name": "b"}]}),
            ),
            (
                "directives do not become content",
                json!({}),
                json!({"c": [{"name": "a", "$patch": "delete"}], "$setElementOrder/c": [], "m": {"$retainKeys": []}}),
                json!({"c": [], "m": {}}),
            ),
            (
                "lists inside items merge too",
                json!({"c": [{"name": "a", "p": [1]}]}),
                json!({"c": [{"name": "a", "p": [2]}]}),
                json!({"c": [{"name": "a", "p": [2, 1]}]}),
            ),
        ];
        for (what, doc, patch, wanted) in cases {
            assert_eq!(strategic(&schema(), &doc, &patch), Ok(wanted), "{what}");
        }
    }

    #[test]
    fn bad_patches_are_refused() {
        let doc = json!({"c": [{"name": "a"}], "m": {"a": 1}});
        for bad in [
            json!([]),
            json!({"c": [{"v": "1"}]}),
            json!({"m": {"$patch": "nope"}}),
            json!({"m": {"$retainKeys": ["a"], "b": 1}}),
            json!({"c": [{"name": "b"}, {"name": "a"}], "$setElementOrder/c": [{"name": "a"}, {"name": "b"}]}),
            json!({"c": [{"name": "a", "$patch": "merge"}]}),
        ] {
            assert!(strategic(&schema(), &doc, &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_published_merge_keys_are_used() {
        let Some(service) = crate::catalog::catalog().lookup("", "v1", "services") else {
            panic!("the catalogue has services")
        };
        let doc = json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}});
        let patch = json!({"spec": {"ports": [{"port": 81, "nodePort": 30000}]}});
        assert_eq!(
            strategic(&service.schema, &doc, &patch).unwrap()["spec"]["ports"],
            json!([{"port": 80, "name": "a"}, {"port": 81, "name": "b", "nodePort": 30000}])
        );
        let pod = crate::catalog::catalog().lookup("", "v1", "pods").unwrap();
        let doc = json!({"metadata": {"finalizers": ["a"]}, "spec": {"containers": [{"name": "c", "image": "i",
            "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 1}]}]}});
        let patch = json!({"metadata": {"finalizers": ["b"]}, "spec": {"containers": [{"name": "c",
            "env": [{"name": "A", "value": "2"}], "ports": [{"containerPort": 1, "name": "x"}]}]}});
        let got = strategic(&pod.schema, &doc, &patch).unwrap();
        assert_eq!(got["metadata"]["finalizers"], json!(["b", "a"]));
        assert_eq!(
            got["spec"]["containers"],
            json!([{"name": "c", "image": "i", "env": [{"name": "A", "value": "2"}],
                "ports": [{"containerPort": 1, "name": "x"}]}])
        );
    }

    fn document() -> impl Strategy<Value = Value> {
        let item = ("[a-d]", "[xy]", prop::collection::btree_set(0i64..4, 0..3));
        let items = prop::collection::btree_map("[a-d]", item, 0..4).prop_map(|map| {
            map.into_iter()
                .map(|(name, (_, v, p))| json!({"name": name, "v": v, "p": p}))
                .collect::<Vec<_>>()
        });
        (items, prop::collection::btree_set("[a-d]", 0..4)).prop_map(|(c, s)| json!({"c": c, "s": s}))
    }

    proptest! {
        #[test]
        fn patching_twice_is_patching_once(doc in document(), patch in document()) {
            let once = strategic(&schema(), &doc, &patch).unwrap();
            prop_assert_eq!(strategic(&schema(), &once, &patch).unwrap(), once);
        }

        #[test]
        fn a_document_is_its_own_empty_patch(doc in document()) {
            prop_assert_eq!(strategic(&schema(), &doc, &doc).unwrap(), doc.clone());
            prop_assert_eq!(strategic(&schema(), &doc, &json!({})).unwrap(), doc);
        }

        #[test]
        fn no_item_is_lost_or_doubled(doc in document(), patch in document()) {
            let got = strategic(&schema(), &doc, &patch).unwrap();
            let names = |v: &Value| {
                let mut names: Vec<String> = v["c"].as_array().unwrap().iter()
                    .map(|i| i["name"].as_str().unwrap().to_owned()).collect();
                names.sort();
                names
            };
            let mut wanted = names(&doc);
            wanted.extend(names(&patch));
            wanted.sort();
            wanted.dedup();
            prop_assert_eq!(names(&got), wanted);
        }
    }
}
