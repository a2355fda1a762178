//! Sets of field paths, as `managedFields[*].fieldsV1` writes them.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A set of paths into an object, as a tree. Each step is written as `FieldsV1` has it: `f:name` for a field,
/// `k:{"name":"a"}` for a list item by its keys, `v:"a"` for a member of a list that is a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// A set of just the path it stands for.
    pub fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    /// Reads `fieldsV1`. What is no object reads as the empty set.
    pub fn from_json(fields: &Value) -> Self {
        let Some(map) = fields.as_object() else {
            return Self::default();
        };
        let mut out = Self::default();
        for (step, below) in map {
            if step == "." {
                out.member = true;
            } else if below.as_object().is_some_and(Map::is_empty) {
                out.children.insert(step.clone(), Self::leaf());
            } else {
                out.children.insert(step.clone(), Self::from_json(below));
            }
        }
        out
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, below) in &self.children {
            out.insert(step.clone(), below.to_json());
        }
        Value::Object(out)
    }

    /// Whether the path it stands for is in the set itself.
    pub(super) fn is_member(&self) -> bool {
        self.member
    }

    pub(super) fn set_member(&mut self) {
        self.member = true;
    }

    /// The paths below one step.
    pub(super) fn child(&self, step: &str) -> Option<&FieldSet> {
        self.children.get(step)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &FieldSet)> {
        self.children.iter().map(|(step, below)| (step.as_str(), below))
    }

    /// Adds the paths of `below` under `step`.
    pub(super) fn add(&mut self, step: &str, below: FieldSet) {
        if below.is_empty() {
            return;
        }
        match self.children.get_mut(step) {
            Some(have) => have.absorb(below),
            None => drop(self.children.insert(step.to_owned(), below)),
        }
    }

    /// Takes everything below a step out.
    pub(super) fn drop_below(&mut self, step: &str) {
        self.children.remove(step);
    }

    pub(super) fn child_mut(&mut self, step: &str) -> Option<&mut FieldSet> {
        self.children.get_mut(step)
    }

    fn absorb(&mut self, other: FieldSet) {
        self.member |= other.member;
        for (step, below) in other.children {
            self.add(&step, below);
        }
    }

    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// Paths in either.
    pub fn union(mut self, other: &FieldSet) -> Self {
        self.absorb(other.clone());
        self
    }

    /// Paths in this set and not in `other`.
    pub fn difference(&self, other: &FieldSet) -> Self {
        self.filtered(other, |mine, theirs| mine && !theirs, true)
    }

    /// Paths in both.
    pub fn intersection(&self, other: &FieldSet) -> Self {
        self.filtered(other, |mine, theirs| mine && theirs, false)
    }

    fn filtered(&self, other: &FieldSet, rule: fn(bool, bool) -> bool, keep_alone: bool) -> Self {
        let mut out = Self {
            member: rule(self.member, other.member),
            children: BTreeMap::new(),
        };
        for (step, below) in &self.children {
            let kept = match other.children.get(step) {
                Some(theirs) => below.filtered(theirs, rule, keep_alone),
                None if keep_alone => below.clone(),
                None => continue,
            };
            if !kept.is_empty() {
                out.children.insert(step.clone(), kept);
            }
        }
        out
    }

    /// Every path in words: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (step, below) in &self.children {
            let length = path.len();
            path.push_str(&shown(step));
            below.collect(path, out);
            path.truncate(length);
        }
    }
}

/// One step in words.
fn shown(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let mut out = String::from("[");
            for (index, (key, value)) in keys.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                // Writing to a string cannot fail.
                let _ = write!(out, "{comma}{key}={value}");
            }
            out.push(']');
            out
        }
        _ => format!("[{}]", step.trim_start_matches("i:")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn sets_are_written_as_published() {
        let fields = json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}},
            "f:replicas": {}}});
        let set = FieldSet::from_json(&fields);
        assert_eq!(set.to_json(), fields);
        assert_eq!(
            set.paths(),
            [
                r#".spec.containers[name="a"]"#,
                r#".spec.containers[name="a"].image"#,
                ".spec.replicas"
            ]
        );
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        let leaf = Just(FieldSet::leaf());
        let node = leaf.prop_recursive(3, 20, 3, |inner| {
            (any::<bool>(), prop::collection::btree_map("f:[a-c]", inner, 1..3))
                .prop_map(|(member, children)| FieldSet { member, children })
        });
        prop::collection::btree_map("f:[a-c]", node, 0..3).prop_map(|children| FieldSet {
            member: false,
            children,
        })
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(set in sets()) {
            prop_assert_eq!(FieldSet::from_json(&set.to_json()), set);
        }

        #[test]
        fn a_set_is_its_difference_and_its_intersection(a in sets(), b in sets()) {
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert!(a.difference(&a).is_empty());
            prop_assert_eq!(a.clone().union(&b), b.union(&a));
        }
    }
}
