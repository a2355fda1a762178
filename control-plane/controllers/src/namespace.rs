//! Deletion of namespaces: everything in them first, pods before all else, then the namespace itself.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use machinery_plan::{Action, Operation, Plan, Preconditions};
use serde_json::json;

use crate::garbage::Object;

/// The finalizer in `spec.finalizers` that this controller takes away.
const FINALIZER: &str = "kubernetes";

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Everything in it, of every kind that can be listed and deleted.
    pub contents: Vec<Arc<Object>>,
    /// What could not be listed, if anything; nothing is finalized then.
    pub unknown: Option<String>,
    /// Whether `contents` was asked of the API server after the deletion began, and is not from caches.
    pub verified: bool,
}

/// Whether a namespace is for this controller to clear.
#[must_use]
pub fn is_terminating(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers.is_some_and(|all| all.iter().any(|finalizer| finalizer == FINALIZER))
}

/// Deletes what is in a namespace that is being deleted; when it is empty, lets it go. What vanishes later brings the
/// namespace back here.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let namespace = observed.namespace.as_ref();
    if !is_terminating(namespace) {
        return plan;
    }
    if observed.contents.is_empty() && observed.unknown.is_none() {
        if observed.verified {
            plan.then(finalize(namespace));
        }
        return plan;
    }
    let deletions = deletions(&observed.contents);
    if observed.verified {
        // What is not in caches, such as events, does not announce that it is gone.
        plan.requeue(if deletions.is_empty() { STUCK } else { GOING });
    }
    plan.together(deletions);
    plan.together(report(observed, now));
    plan
}

/// When to look again for what was just deleted.
const GOING: Duration = Duration::from_millis(100);
/// When to look again for what waits for finalizers.
const STUCK: Duration = Duration::from_secs(5);

/// Pods go first, so that what they use is there until they have ended.
fn deletions(contents: &[Arc<Object>]) -> Vec<Action> {
    let pods_left = contents.iter().any(|object| is_pod(object));
    let now = contents
        .iter()
        .filter(|object| !object.deleting && (!pods_left || is_pod(object)));
    now.map(|object| delete(object)).collect()
}

fn delete(object: &Object) -> Action {
    let preconditions = Preconditions {
        uid: Some(object.uid.clone()),
        resource_version: None,
    };
    let operation = Operation::Delete {
        propagation: None,
        grace_seconds: None,
    };
    Action {
        object: object.object.clone(),
        preconditions,
        operation,
    }
}

fn finalize(namespace: &Namespace) -> Action {
    let mut new = namespace.clone();
    if let Some(finalizers) = new.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    Action::update_subresource(&new, "finalize")
}

/// Says what holds the deletion up, when that has changed.
fn report(observed: &Observed, now: Timestamp) -> Option<Action> {
    let namespace = observed.namespace.as_ref();
    let (unknown, remaining, finalizers) = (unknown(observed), remaining(observed), finalizers(observed));
    let wanted = [
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            "ContentDeletionFailed",
            "ContentDeleted",
            held_up_by_pods(observed),
        ),
        (
            "NamespaceDeletionDiscoveryFailure",
            "DiscoveryFailed",
            "ResourcesDiscovered",
            unknown,
        ),
        (
            "NamespaceContentRemaining",
            "SomeResourcesRemain",
            "ContentRemoved",
            remaining,
        ),
        (
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            finalizers,
        ),
    ];
    let held = namespace
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let held: Vec<_> = held
        .map(|c| (c.type_.as_str(), c.status.as_str(), c.message.as_deref()))
        .collect();
    let conditions = wanted.iter().filter_map(|(type_, bad, good, message)| {
        let (status, reason) = if message.is_some() {
            ("True", bad)
        } else {
            ("False", good)
        };
        let message = message.as_deref().unwrap_or("Nothing holds up the deletion");
        let same = held.contains(&(type_, status, Some(message)));
        (!same).then(|| crate::condition::patch(type_, status, reason, message, now))
    });
    let conditions: Vec<_> = conditions.collect();
    (!conditions.is_empty()).then(|| Action::patch_status(namespace, json!({"conditions": conditions})))
}

fn unknown(observed: &Observed) -> Option<String> {
    observed.unknown.clone()
}

/// Pods that are still going keep everything else from being deleted.
fn held_up_by_pods(observed: &Observed) -> Option<String> {
    let (pods, others): (Vec<_>, Vec<_>) = observed.contents.iter().partition(|object| is_pod(object));
    let message = format!(
        "{} pods have to end before the rest of the content is deleted",
        pods.len()
    );
    (!pods.is_empty() && !others.is_empty()).then_some(message)
}

fn is_pod(object: &Object) -> bool {
    object.object.resource.kind == "Pod" && object.object.resource.group.is_empty()
}

fn remaining(observed: &Observed) -> Option<String> {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for object in &observed.contents {
        let resource = &object.object.resource;
        let name = if resource.group.is_empty() {
            format!("{}.", resource.plural)
        } else {
            format!("{}.{}", resource.plural, resource.group)
        };
        *counts.entry(name).or_default() += 1;
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name} has {count} resource instances"))
        .collect();
    (!parts.is_empty()).then(|| format!("Some resources are remaining: {}", parts.join(", ")))
}

fn finalizers(observed: &Observed) -> Option<String> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for finalizer in observed.contents.iter().flat_map(|object| &object.finalizers) {
        *counts.entry(finalizer).or_default() += 1;
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "Some content in the namespace has finalizers remaining: {}",
            parts.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use machinery_plan::{Kubernetes, ResourceType, lint};

    use super::*;

    fn namespace() -> Arc<Namespace> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "ns", "resourceVersion": "9", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["kubernetes", "mine"]},
        })).unwrap())
    }

    fn object<K: Kubernetes>(name: &str, finalizers: &[&str]) -> Arc<Object> {
        let meta = json!({"name": name, "namespace": "a", "uid": name, "finalizers": finalizers});
        let meta: ObjectMeta = serde_json::from_value(meta).unwrap();
        Arc::new(Object::of(&ResourceType::of::<K>(), &meta).unwrap())
    }

    fn planned(contents: Vec<Arc<Object>>, unknown: Option<&str>, verified: bool) -> Plan {
        let unknown = unknown.map(str::to_owned);
        let observed = Observed {
            namespace: namespace(),
            contents,
            unknown,
            verified,
        };
        let plan = plan(&observed, Timestamp::from_second(5).unwrap());
        lint::assert_clean(&plan);
        plan
    }

    #[test]
    fn pods_go_before_everything_else() {
        let contents = vec![object::<ConfigMap>("settings", &[]), object::<Pod>("pod", &[])];
        let plan = planned(contents, None, true);
        assert_eq!(
            plan.deletions()
                .iter()
                .map(|key| key.name.as_str())
                .collect::<Vec<_>>(),
            ["pod"]
        );
        let plan = planned(vec![object::<ConfigMap>("settings", &[])], None, true);
        assert_eq!(plan.deletions()[0].name, "settings");
    }

    #[test]
    fn an_empty_namespace_is_finalized_only_when_the_api_server_said_it_is_empty() {
        assert!(planned(vec![], None, false).is_empty());
        let plan = planned(vec![], None, true);
        let Operation::Update { body, subresource } = &plan.actions().next().unwrap().operation else {
            panic!("no update")
        };
        assert_eq!(*subresource, Some("finalize"));
        assert_eq!(body["spec"]["finalizers"], json!(["mine"]));
    }

    #[test]
    fn what_cannot_be_listed_keeps_the_namespace() {
        let plan = planned(vec![], Some("metrics.k8s.io is away"), true);
        assert!(
            plan.actions()
                .all(|action| action.subresource() == Some("status"))
        );
        assert_eq!(plan.actions().count(), 1);
    }

    #[test]
    fn what_holds_it_up_is_reported() {
        let mut stuck = object::<ConfigMap>("stuck", &["example.com/wait"])
            .as_ref()
            .clone();
        stuck.deleting = true;
        let plan = planned(vec![Arc::new(stuck)], None, true);
        assert!(plan.deletions().is_empty());
        let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
            panic!("no patch")
        };
        assert!(
            body["status"]["conditions"][4]["message"]
                .as_str()
                .unwrap()
                .contains("example.com/wait in 1")
        );
    }
}
