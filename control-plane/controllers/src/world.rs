//! A stand-in for the API server in tests of planners: objects by reference, to which plans are applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use machinery_plan::{Action, Key, Kubernetes, ObjectRef, Operation, Plan, ResourceType, lint};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// See the module.
#[derive(Default)]
pub(crate) struct World {
    pub objects: BTreeMap<ObjectRef, Value>,
    pub events: Vec<String>,
    version: u64,
    named: u64,
}

impl World {
    /// Puts an object in, with a uid, a version and a generation if it has none.
    pub(crate) fn put<K: Kubernetes + DeserializeOwned>(&mut self, body: Value) {
        let object: K = serde_json::from_value(body).unwrap();
        self.create(&ObjectRef::to(&object), serde_json::to_value(&object).unwrap());
    }

    pub(crate) fn all<K: Kubernetes + DeserializeOwned>(&self) -> Vec<Arc<K>> {
        let of_kind = self
            .objects
            .iter()
            .filter(|(object, _)| object.resource == ResourceType::of::<K>());
        of_kind
            .map(|(_, body)| Arc::new(serde_json::from_value(body.clone()).unwrap()))
            .collect()
    }

    pub(crate) fn get<K: Kubernetes + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<K>> {
        let object = ObjectRef {
            resource: ResourceType::of::<K>(),
            key: Key::new(namespace, name),
        };
        self.objects
            .get(&object)
            .map(|body| Arc::new(serde_json::from_value(body.clone()).unwrap()))
    }

    pub(crate) fn change<K: Kubernetes>(
        &mut self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let object = ObjectRef {
            resource: ResourceType::of::<K>(),
            key: Key::new(namespace, name),
        };
        let mut body = self.objects[&object].clone();
        change(&mut body);
        self.replace(&object, body);
    }

    /// Carries out a plan after checking it against the rules for plans. Panics where the API server would refuse.
    pub(crate) fn apply(&mut self, plan: &Plan) {
        lint::assert_clean(plan);
        for action in plan.actions() {
            self.act(action);
        }
    }

    fn act(&mut self, action: &Action) {
        let object = &action.object;
        if let (Some(uid), Some(held)) = (&action.preconditions.uid, self.objects.get(object)) {
            assert_eq!(
                held["metadata"]["uid"],
                json!(uid),
                "another object took the name of {object}"
            );
        }
        if let Some(version) = &action.preconditions.resource_version {
            assert_eq!(
                self.objects[object]["metadata"]["resourceVersion"],
                json!(version),
                "stale plan for {object}"
            );
        }
        match &action.operation {
            Operation::Create { body } => self.create(object, body.clone()),
            Operation::Update {
                body,
                subresource: Some("status"),
            } => {
                let mut new = self.objects[object].clone();
                new["status"] = body["status"].clone();
                self.replace(object, new);
            }
            Operation::Update { body, .. } => self.replace(object, body.clone()),
            Operation::Patch { body, .. } => {
                let mut new = self.objects[object].clone();
                merge(&mut new, body);
                self.replace(object, new);
            }
            Operation::Delete { .. } | Operation::Evict => {
                self.objects.remove(object);
            }
            Operation::Bind { node } => {
                let mut new = self.objects[object].clone();
                new["spec"]["nodeName"] = json!(node);
                self.replace(object, new);
            }
            Operation::Event { reason, message, .. } => self.events.push(format!("{reason}: {message}")),
        }
    }

    fn create(&mut self, object: &ObjectRef, mut body: Value) {
        let mut object = object.clone();
        self.named += 1;
        if object.key.name.is_empty() {
            let prefix = body["metadata"]["generateName"].as_str().unwrap();
            object.key.name = format!("{prefix}{:03}", self.named);
            body["metadata"]["name"] = json!(object.key.name);
        }
        let uid = format!("uid-{}", self.named);
        let meta = body["metadata"].as_object_mut().unwrap();
        meta.entry("uid").or_insert(json!(uid));
        meta.entry("generation").or_insert(json!(1));
        let born = format!("1970-01-01T{:02}:{:02}:00Z", self.named / 60, self.named % 60);
        meta.entry("creationTimestamp").or_insert(json!(born));
        assert!(!self.objects.contains_key(&object), "{object} exists already");
        self.replace(&object, body);
    }

    fn replace(&mut self, object: &ObjectRef, mut body: Value) {
        self.version += 1;
        body["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if let Some(old) = self.objects.get(object)
            && old["spec"] != body["spec"]
        {
            body["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap() + 1);
        }
        self.objects.insert(object.clone(), body);
    }
}

/// RFC 7396, but lists of objects with a `type`, `uid` or `name` merge by it, as the strategic patches here need.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in patch {
        match value {
            Value::Null => {
                into.as_object_mut().unwrap().shift_remove(name);
            }
            Value::Array(items) if name == "conditions" || name == "ownerReferences" => {
                merge_list(
                    &mut into[name.as_str()],
                    items,
                    if name == "conditions" { "type" } else { "uid" },
                );
            }
            _ => merge(&mut into[name.as_str()], value),
        }
    }
}

fn merge_list(into: &mut Value, items: &[Value], key: &str) {
    let mut list = into.as_array().cloned().unwrap_or_default();
    for item in items {
        let held = list.iter().position(|held| held[key] == item[key]);
        match (held, item["$patch"] == "delete") {
            (Some(index), true) => drop(list.remove(index)),
            (Some(index), false) => merge(&mut list[index], item),
            (None, true) => {}
            (None, false) => list.push(item.clone()),
        }
    }
    *into = Value::Array(list);
}
