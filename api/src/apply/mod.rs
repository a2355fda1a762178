//! Server-side apply: fields have owners, and who applies again without a field gives it up.
//!
//! Follows the published rules of server-side apply and the `FieldsV1` format. Null values count as absent.

mod managers;
mod set;
mod walk;

pub use set::FieldSet;

use crate::kinds::access::{at, list, text};
use crate::meta::metadata_mut;
use crate::schema::Schema;
use crate::status::{Cause, Status};
use jiff::Timestamp;
use managers::{Manager, Managers, Operation};
use serde_json::{Map, Value};

/// Owner of what was there before the first apply to an object without `managedFields`.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The server's own metadata: nobody's field.
const UNTRACKED: [&str; 8] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// Fields of other managers that an apply without force would have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// Who owns the field, in words, and its path.
    all: Vec<(String, String)>,
}

impl Conflicts {
    /// The 409 answer, with one `FieldManagerConflict` cause for each field.
    pub fn status(&self) -> Status {
        let cause = |(manager, path): &(String, String)| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {manager}"),
            field: path.clone(),
        };
        Status::apply_conflict(self.to_string(), self.all.iter().map(cause).collect())
    }
}

impl std::error::Error for Conflicts {}

impl std::fmt::Display for Conflicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [(manager, path)] = self.all.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {manager}: {path}");
        }
        let mut managers: Vec<&str> = self.all.iter().map(|(manager, _)| manager.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            let own = self.all.iter().filter(|(other, _)| other == manager);
            lines.extend(own.map(|(_, path)| format!("- {path}")));
        }
        write!(
            f,
            "Apply failed with {} conflicts: {}",
            self.all.len(),
            lines.join("\n")
        )
    }
}

/// Applies the configuration `applied` as `manager` to `live` (`None` creates). Returns the new object with its
/// `managedFields`; it equals `live` when nothing changes. Both objects are of one version.
///
/// # Errors
/// The fields of other managers that would change, unless `force` takes them over.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    subresource: Option<&str>,
    now: Timestamp,
) -> Result<Value, Conflicts> {
    let who = Manager::new(
        manager,
        Operation::Apply,
        text(applied, "apiVersion"),
        subresource,
    );
    let wanted = relevant(schema, applied, subresource);
    let wanted_fields = tracked(schema, &wanted, subresource);
    let base = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    let mut managers = owners(schema, live, &who);

    let mut new = walk::merge(Some(schema), &base, &wanted);
    let before = managers
        .find(&who)
        .map(|have| have.fields.clone())
        .unwrap_or_default();
    let others = managers.others(&who);
    let given_up = before.difference(&wanted_fields).difference(&others);
    walk::remove(
        Some(schema),
        &mut new,
        &given_up,
        &others.clone().union(&wanted_fields),
    );

    let changes = walk::compare(Some(schema), &base, &new);
    let touched = changes.modified.clone().union(&changes.added);
    let conflicts = conflicts(&managers, &who, &touched);
    if !force && !conflicts.all.is_empty() {
        return Err(conflicts);
    }
    managers.take(&touched.union(&changes.removed), &who);
    managers.set(&who, wanted_fields, now);
    if live.is_some() && changes.is_empty() && managers == owners(schema, live, &who) {
        return Ok(base);
    }
    managers.write(&mut new);
    Ok(new)
}

/// The owners of the live object. An object that has none so far belongs to whoever was there before.
fn owners(schema: &Schema, live: Option<&Value>, who: &Manager) -> Managers {
    let Some(live) = live else {
        return Managers::default();
    };
    let mut managers = Managers::of(live);
    if managers.all.is_empty() {
        let mut before = Manager::new(BEFORE_FIRST_APPLY, Operation::Update, &who.api_version, None);
        before.fields = tracked(schema, live, None);
        managers.all.push(before);
    }
    managers
}

fn conflicts(managers: &Managers, who: &Manager, touched: &FieldSet) -> Conflicts {
    let mut all = Vec::new();
    for other in managers.all.iter().filter(|other| !other.is(who)) {
        let paths = other.fields.intersection(touched).paths();
        all.extend(paths.into_iter().map(|path| (other.shown(), path)));
    }
    Conflicts { all }
}

/// The part of an applied configuration that the endpoint may write: everything but the status, or only the status.
fn relevant(schema: &Schema, applied: &Value, subresource: Option<&str>) -> Value {
    let mut out = applied.clone();
    if let Some(map) = out.as_object_mut() {
        match subresource {
            Some("status") => {
                map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
            }
            None if status_is_reset(schema) => drop(map.shift_remove("status")),
            _ => {}
        }
    }
    let metadata = metadata_mut(&mut out);
    for field in [
        "managedFields",
        "resourceVersion",
        "uid",
        "creationTimestamp",
        "generation",
    ] {
        metadata.shift_remove(field);
    }
    out
}

/// Built-in kinds do not take a status through the object itself, but Nodes do when they register.
fn status_is_reset(schema: &Schema) -> bool {
    schema.short_name().is_some_and(|name| name != "Node")
}

/// The paths of an object that can have an owner.
fn tracked(schema: &Schema, object: &Value, subresource: Option<&str>) -> FieldSet {
    let mut out = walk::paths(Some(schema), object, walk::Containers::None);
    strip(&mut out, schema, subresource);
    out
}

fn strip(fields: &mut FieldSet, schema: &Schema, subresource: Option<&str>) {
    fields.drop_below("f:apiVersion");
    fields.drop_below("f:kind");
    if subresource.is_none() && status_is_reset(schema) {
        fields.drop_below("f:status");
    }
    if let Some(metadata) = fields.child_mut("f:metadata") {
        UNTRACKED.iter().for_each(|field| metadata.drop_below(field));
    }
    if fields
        .child("f:metadata")
        .is_some_and(|metadata| metadata.children().next().is_none())
    {
        fields.drop_below("f:metadata");
    }
}

/// Notes in `new.metadata.managedFields` what an ordinary write (`old` to `new`, `None` for a create) changed:
/// `manager` owns what it added or changed, others lose that, and nobody owns what is gone. `operation` is `Update` for
/// every verb but apply.
pub fn track_update(
    schema: &Schema,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    operation: &str,
    subresource: Option<&str>,
    now: Timestamp,
) {
    let operation = if operation == "Apply" {
        Operation::Apply
    } else {
        Operation::Update
    };
    let who = Manager::new(manager, operation, text(new, "apiVersion"), subresource);
    let mut managers = known_managers(old, new);
    let nothing = Value::Object(Map::new());
    let changes = walk::compare(Some(schema), old.unwrap_or(&nothing), new);
    let mut touched = changes.modified.union(&changes.added);
    strip(&mut touched, schema, subresource);
    let gone = changes.removed;
    managers.take(&touched.clone().union(&gone), &who);
    let have = managers
        .find(&who)
        .map(|have| have.fields.clone())
        .unwrap_or_default();
    managers.set(&who, have.difference(&gone).union(&touched), now);
    managers.write(new);
}

/// The managers a write starts from: those the client sent along, else those of the stored object. A single empty entry
/// asks for a fresh start.
fn known_managers(old: Option<&Value>, new: &Value) -> Managers {
    let sent = list(new, "metadata.managedFields");
    match (sent, old) {
        ([only], _) if only.as_object().is_some_and(Map::is_empty) => Managers::default(),
        ([], Some(old)) => Managers::of(old),
        ([], None) => Managers::default(),
        _ => Managers::of(new),
    }
}

/// Whether the managed fields of two objects differ in more than their times; for deciding that a write changes nothing.
pub fn same_owners(a: &Value, b: &Value) -> bool {
    let strip_times = |object: &Value| {
        let mut entries = list(object, "metadata.managedFields").to_vec();
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            entry.shift_remove("time");
        }
        entries
    };
    strip_times(a) == strip_times(b) && at(a, "metadata.name") == at(b, "metadata.name")
}

#[cfg(test)]
mod tests;
