//! The same object in another group and version.

mod autoscaler;
mod event;

use serde_json::{Map, Value};

use crate::catalog::Resource;
use crate::{defaults, fields};

/// Rewrites an object of `from` as one of `to`, which shows the same objects. Where two versions differ in nothing but
/// their name only `apiVersion` changes.
pub fn convert(from: &Resource, to: &Resource, value: &mut Value) {
    let same = (&from.group, &from.version) == (&to.group, &to.version);
    if let (false, Value::Object(object)) = (same, &mut *value) {
        match (
            from.group.as_str(),
            from.version.as_str(),
            from.kind.as_str(),
            to.group.as_str(),
        ) {
            ("", _, "Event", "events.k8s.io") => event::to_new(object),
            ("events.k8s.io", _, "Event", "") => event::to_core(object),
            ("autoscaling", "v2", "HorizontalPodAutoscaler", _) => autoscaler::to_v1(object),
            ("autoscaling", "v1", "HorizontalPodAutoscaler", _) => autoscaler::to_v2(object),
            _ => return set_api_version(to, object),
        }
        set_api_version(to, object);
        fields::prune(&to.schema, value);
        defaults::apply(&to.schema, value);
    }
}

fn set_api_version(to: &Resource, object: &mut Map<String, Value>) {
    object.insert("apiVersion".to_owned(), to.api_version().into());
}

/// Renames a field; its place in the object changes.
fn rename(object: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = object.shift_remove(from) {
        object.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests;
