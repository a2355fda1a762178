//! `metadata.managedFields`: who owns which fields.

use super::set::FieldSet;
use crate::kinds::access::{list, text};
use crate::meta::{metadata_mut, time};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Updates by more managers than this are put together under one name, the oldest first.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub fields: FieldSet,
}

impl Manager {
    pub(super) fn new(
        name: &str,
        operation: Operation,
        api_version: &str,
        subresource: Option<&str>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.unwrap_or_default().to_owned(),
            time: String::new(),
            fields: FieldSet::default(),
        }
    }

    /// The same manager: whoever applies stays the same over versions.
    pub(super) fn is(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The manager in a conflict's message.
    pub(super) fn shown(&self) -> String {
        let mut out = crate::status::quote(&self.name);
        if !self.subresource.is_empty() {
            out.push_str(&format!(
                " with subresource {}",
                crate::status::quote(&self.subresource)
            ));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }

    fn from_json(entry: &Value) -> Self {
        let operation = if text(entry, "operation") == "Apply" {
            Operation::Apply
        } else {
            Operation::Update
        };
        Self {
            name: text(entry, "manager").to_owned(),
            operation,
            api_version: text(entry, "apiVersion").to_owned(),
            subresource: text(entry, "subresource").to_owned(),
            time: text(entry, "time").to_owned(),
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("manager".into(), self.name.clone().into());
        out.insert("operation".into(), self.operation.as_str().into());
        out.insert("apiVersion".into(), self.api_version.clone().into());
        if !self.time.is_empty() {
            out.insert("time".into(), self.time.clone().into());
        }
        out.insert("fieldsType".into(), "FieldsV1".into());
        out.insert("fieldsV1".into(), self.fields.to_json());
        if !self.subresource.is_empty() {
            out.insert("subresource".into(), self.subresource.clone().into());
        }
        Value::Object(out)
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managers {
    pub all: Vec<Manager>,
}

impl Managers {
    pub(super) fn of(object: &Value) -> Self {
        Self {
            all: list(object, "metadata.managedFields")
                .iter()
                .map(Manager::from_json)
                .collect(),
        }
    }

    pub(super) fn find(&self, who: &Manager) -> Option<&Manager> {
        self.all.iter().find(|manager| manager.is(who))
    }

    /// Everything that others than `who` own.
    pub(super) fn others(&self, who: &Manager) -> FieldSet {
        let others = self.all.iter().filter(|manager| !manager.is(who));
        others.fold(FieldSet::default(), |sum, manager| sum.union(&manager.fields))
    }

    /// Takes `fields` from everyone but `who`.
    pub(super) fn take(&mut self, fields: &FieldSet, who: &Manager) {
        for manager in self.all.iter_mut().filter(|manager| !manager.is(who)) {
            manager.fields = manager.fields.difference(fields);
        }
    }

    /// Gives `who` exactly `fields`. The time changes with the fields only.
    pub(super) fn set(&mut self, who: &Manager, fields: FieldSet, now: Timestamp) {
        match self.all.iter_mut().find(|manager| manager.is(who)) {
            Some(have) if have.fields == fields && have.api_version == who.api_version => {}
            Some(have) => {
                have.fields = fields;
                have.api_version.clone_from(&who.api_version);
                have.time = time(now);
            }
            None => self.all.push(Manager {
                fields,
                time: time(now),
                ..who.clone()
            }),
        }
    }

    /// Writes the managers into `object`; those without fields are left out.
    pub(super) fn write(mut self, object: &mut Value) {
        self.all.retain(|manager| !manager.fields.is_empty());
        self.cap();
        let order = |m: &Manager| {
            (
                m.operation,
                m.time.clone(),
                m.name.clone(),
                m.api_version.clone(),
                m.subresource.clone(),
            )
        };
        self.all.sort_by_key(order);
        let metadata = metadata_mut(object);
        if self.all.is_empty() {
            metadata.shift_remove("managedFields");
        } else {
            metadata.insert(
                "managedFields".into(),
                self.all.iter().map(Manager::to_json).collect(),
            );
        }
    }

    fn cap(&mut self) {
        loop {
            let mut updaters: Vec<usize> = (0..self.all.len())
                .filter(|i| self.all[*i].operation == Operation::Update)
                .collect();
            if updaters.len() <= MAX_UPDATERS {
                return;
            }
            updaters.sort_by_key(|index| self.all[*index].time.clone());
            let oldest = self.all[updaters[0]].clone();
            let into = updaters[1..].iter().copied().find(|index| {
                let other = &self.all[*index];
                other.api_version == oldest.api_version && other.subresource == oldest.subresource
            });
            let Some(into) = into else { return };
            let other = &mut self.all[into];
            other.name = ANCIENT.to_owned();
            other.fields = other.fields.clone().union(&oldest.fields);
            self.all.remove(updaters[0]);
        }
    }
}
