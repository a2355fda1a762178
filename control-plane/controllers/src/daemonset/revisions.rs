//! The history of a daemon set's templates.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use machinery_plan::{Action, Plan};
use serde_json::json;

use super::REVISION_HASH;
use crate::ownership::controller_ref;
use crate::template;

/// The hash of the present template, and what makes its revision the newest one.
pub(crate) fn current(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    held: &[Arc<ControllerRevision>],
) -> (String, Plan) {
    let mut plan = Plan::nothing();
    let collisions = set.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let newest = held.iter().map(|revision| revision.revision).max().unwrap_or(0);
    match held.iter().find(|revision| hash_of(revision) == Some(&hash)) {
        None => plan.then(Action::create(&revision(set, spec, &hash, newest + 1))),
        Some(old) if old.revision < newest => {
            plan.then(Action::merge(old.as_ref(), json!({"revision": newest + 1})));
        }
        Some(_) => {}
    }
    (hash, plan)
}

fn hash_of(revision: &ControllerRevision) -> Option<&String> {
    revision.metadata.labels.as_ref()?.get(REVISION_HASH)
}

/// The content is the patch that takes a daemon set back to this template, as `kubectl rollout undo` applies it.
fn revision(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, number: i64) -> ControllerRevision {
    let mut template = serde_json::to_value(&spec.template).unwrap_or_default();
    template["$patch"] = json!("replace");
    let mut labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone())
        .unwrap_or_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    let metadata = ObjectMeta {
        name: Some(format!(
            "{}-{hash}",
            set.metadata.name.as_deref().unwrap_or_default()
        )),
        namespace: set.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![controller_ref(set)]),
        ..ObjectMeta::default()
    };
    let data = Some(RawExtension(json!({"spec": {"template": template}})));
    ControllerRevision {
        metadata,
        data,
        revision: number,
    }
}

/// Deletions of the oldest revisions beyond the limit that no pod is of.
pub(crate) fn surplus(
    spec: &DaemonSetSpec,
    current: &str,
    pods: &[Arc<Pod>],
    held: &[Arc<ControllerRevision>],
) -> Vec<Action> {
    let labels = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref());
    let mut live: BTreeSet<&str> = labels
        .filter_map(|labels| labels.get(REVISION_HASH))
        .map(String::as_str)
        .collect();
    live.insert(current);
    let is_old = |revision: &&Arc<ControllerRevision>| {
        hash_of(revision).is_none_or(|hash| !live.contains(hash.as_str()))
    };
    let mut old: Vec<_> = held.iter().filter(is_old).collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let surplus = old.len().saturating_sub(limit);
    old.sort_by_key(|revision| revision.revision);
    old.into_iter()
        .take(surplus)
        .map(|revision| Action::delete(revision.as_ref()))
        .collect()
}
