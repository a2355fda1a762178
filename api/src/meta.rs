//! Reading object metadata from JSON, without decoding the object.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Read access to `metadata` of an object. Missing and null fields read as empty.
#[derive(Clone, Copy, Debug)]
pub struct Meta<'a> {
    fields: Option<&'a Map<String, Value>>,
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// `group/version` of the owner.
    pub api_version: &'a str,
    /// Kind of the owner.
    pub kind: &'a str,
    /// Name of the owner.
    pub name: &'a str,
    /// Uid of the owner; the reference holds only while an object with this uid exists.
    pub uid: &'a str,
    /// Whether the owner manages this object.
    pub controller: bool,
    /// Whether the owner may not go before this object when deleted in the foreground.
    pub block_owner_deletion: bool,
}

impl<'a> Meta<'a> {
    /// The metadata of `object`.
    pub fn of(object: &'a Value) -> Self {
        Self {
            fields: object.get("metadata").and_then(Value::as_object),
        }
    }

    /// Any field of the metadata.
    pub fn get(self, field: &str) -> Option<&'a Value> {
        self.fields?.get(field).filter(|v| !v.is_null())
    }

    fn text(self, field: &str) -> &'a str {
        self.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn time(self, field: &str) -> Option<Timestamp> {
        self.text(field).parse().ok()
    }

    /// `metadata.name`.
    pub fn name(self) -> &'a str {
        self.text("name")
    }

    /// `metadata.generateName`.
    pub fn generate_name(self) -> &'a str {
        self.text("generateName")
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub fn namespace(self) -> &'a str {
        self.text("namespace")
    }

    /// `metadata.uid`.
    pub fn uid(self) -> &'a str {
        self.text("uid")
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(self) -> &'a str {
        self.text("resourceVersion")
    }

    /// `metadata.generation`, 0 when absent.
    pub fn generation(self) -> i64 {
        self.get("generation").and_then(Value::as_i64).unwrap_or(0)
    }

    /// `metadata.creationTimestamp`.
    pub fn creation_timestamp(self) -> Option<Timestamp> {
        self.time("creationTimestamp")
    }

    /// `metadata.deletionTimestamp`; set means the object is being deleted.
    pub fn deletion_timestamp(self) -> Option<Timestamp> {
        self.time("deletionTimestamp")
    }

    /// Whether the object is being deleted.
    pub fn is_terminating(self) -> bool {
        self.get("deletionTimestamp").is_some()
    }

    /// `metadata.deletionGracePeriodSeconds`.
    pub fn deletion_grace_period_seconds(self) -> Option<i64> {
        self.get("deletionGracePeriodSeconds").and_then(Value::as_i64)
    }

    fn pairs(self, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let map = self.get(field).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
    }

    /// The labels, in the object's order.
    pub fn labels(self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.pairs("labels")
    }

    /// The annotations, in the object's order.
    pub fn annotations(self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.pairs("annotations")
    }

    /// The value of one label.
    pub fn label(self, key: &str) -> Option<&'a str> {
        self.get("labels")?.get(key)?.as_str()
    }

    /// The value of one annotation.
    pub fn annotation(self, key: &str) -> Option<&'a str> {
        self.get("annotations")?.get(key)?.as_str()
    }

    /// The finalizers.
    pub fn finalizers(self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.get("finalizers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// The owner references.
    pub fn owner_references(self) -> impl Iterator<Item = OwnerReference<'a>> + use<'a> {
        let list = self.get("ownerReferences").and_then(Value::as_array);
        list.into_iter().flatten().map(OwnerReference::from_json)
    }

    /// The owner reference with `controller: true`.
    pub fn controller(self) -> Option<OwnerReference<'a>> {
        self.owner_references().find(|owner| owner.controller)
    }
}

impl<'a> OwnerReference<'a> {
    fn from_json(value: &'a Value) -> Self {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let flag = |field: &str| value.get(field).and_then(Value::as_bool).unwrap_or_default();
        Self {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    }

    /// The API group of the owner.
    pub fn group(self) -> &'a str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

/// The `metadata` map of `object`, made when absent. An object that is no map becomes one.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(object, "metadata")
}

/// The map under `field` of `object`, made when absent or of another type.
pub fn map_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("made an object just above");
    let entry = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("made an object just above")
}

/// A timestamp as `metav1.Time` writes it: UTC, whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A timestamp as `metav1.MicroTime` writes it: UTC, microseconds.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_is_there_and_empties_what_is_not() {
        let object = json!({"metadata": {"name": "a", "labels": {"x": "1"}, "finalizers": ["f"],
            "deletionTimestamp": "2024-01-02T03:04:05Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u",
                "controller": true}]}});
        let meta = Meta::of(&object);
        assert_eq!(
            (meta.name(), meta.namespace(), meta.label("x")),
            ("a", "", Some("1"))
        );
        assert_eq!(meta.finalizers().collect::<Vec<_>>(), ["f"]);
        assert!(meta.is_terminating());
        let owner = meta.controller().unwrap();
        assert_eq!(
            (owner.group(), owner.kind, owner.block_owner_deletion),
            ("apps", "ReplicaSet", false)
        );
        assert_eq!(Meta::of(&json!(3)).name(), "");
    }

    #[test]
    fn times_print_in_the_two_published_precisions() {
        let at: Timestamp = "2024-01-02T03:04:05.123456789Z".parse().unwrap();
        assert_eq!(time(at), "2024-01-02T03:04:05Z");
        assert_eq!(micro_time(at), "2024-01-02T03:04:05.123456Z");
    }
}
