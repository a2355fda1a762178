//! The replica sets of a deployment: which is for the present template, their revisions, and how many are kept.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, EventKind, Plan};
use serde_json::json;

use super::{View, conditions, rollout, status};
use crate::ownership::{controller_ref, controller_uid};
use crate::template::{self, HASH_LABEL};

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a deployment that say nothing about its replica sets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
];

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION)
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// Oldest first; names decide between equals, so that the order never changes.
pub(crate) fn by_age(one: &ReplicaSet, other: &ReplicaSet) -> Ordering {
    let age = |set: &ReplicaSet| {
        (
            set.metadata.creation_timestamp.as_ref().map(|time| time.0),
            set.metadata.name.clone(),
        )
    };
    age(one).cmp(&age(other))
}

/// The replica set for the present template (the oldest, should there be several), and all others.
pub(crate) fn sort_out(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    sets.sort_by(|one, other| by_age(one, other));
    let wanted = template_of(deployment);
    let is_new = |set: &Arc<ReplicaSet>| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.is_some_and(|template| template::same(template, &wanted))
    };
    let new = sets.iter().position(is_new).map(|index| sets.remove(index));
    (new, sets)
}

fn template_of(deployment: &Deployment) -> PodTemplateSpec {
    deployment
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default()
}

/// Creates the replica set for the present template, with as many pods as the limits allow at once.
pub(crate) fn create(view: &View<'_>, in_namespace: &[Arc<ReplicaSet>]) -> Plan {
    let mut plan = Plan::nothing();
    if view.new.is_some() {
        return plan;
    }
    let set = new_set(view);
    if in_namespace
        .iter()
        .any(|other| other.metadata.name == set.metadata.name)
    {
        plan.then(count_collision(view.deployment));
        return plan;
    }
    let (name, size) = (set.metadata.name.clone().unwrap_or_default(), replicas(&set));
    plan.then(Action::create(&set));
    if size > 0 {
        let message = format!("Scaled up replica set {name} from 0 to {size}");
        plan.then(Action::event(
            view.deployment,
            EventKind::Normal,
            "ScalingReplicaSet",
            message,
        ));
    }
    if status::progress_deadline(view.deployment).is_some() {
        let reason = conditions::NEW_SET_CREATED;
        let condition = conditions::progressing(
            "True",
            reason,
            format!("Created new replica set \"{name}\""),
            view.now,
        );
        plan.then(Action::patch_status(
            view.deployment,
            json!({"conditions": [condition]}),
        ));
    }
    plan
}

/// Another object has the name that the hash gives; the next plan takes another one.
fn count_collision(deployment: &Deployment) -> Action {
    let mut status: DeploymentStatus = deployment.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    Action::status(deployment, &status)
}

fn new_set(view: &View<'_>) -> ReplicaSet {
    let deployment = view.deployment;
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let mut annotations = copied_annotations(deployment);
    annotations.insert(REVISION.to_owned(), next_revision(view).to_string());
    annotations.extend(size_annotations(view));
    let metadata = ObjectMeta {
        name: Some(format!("{name}-{hash}")),
        namespace: deployment.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![controller_ref(deployment)]),
        ..ObjectMeta::default()
    };
    let spec = ReplicaSetSpec {
        replicas: Some(rollout::new_set_size(view, 0)),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    ReplicaSet {
        metadata,
        spec: Some(spec),
        status: None,
    }
}

fn copied_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let all = deployment.metadata.annotations.iter().flatten();
    all.filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// What a replica set remembers of the deployment's size, for scaling in proportion.
pub(crate) fn size_annotations(view: &View<'_>) -> [(String, String); 2] {
    let wanted = view.replicas();
    let most = wanted + view.limits().surge;
    [
        (DESIRED.to_owned(), wanted.to_string()),
        (MAXIMUM.to_owned(), most.to_string()),
    ]
}

fn next_revision(view: &View<'_>) -> i64 {
    view.old
        .iter()
        .map(|set| revision(&set.metadata))
        .max()
        .unwrap_or(0)
        + 1
}

/// Brings revision, copied annotations and `minReadySeconds` of the new replica set up to date, and the deployment's
/// revision with it. A template that returns (a rollback) gets a new revision and keeps the former ones as history.
pub(crate) fn annotate(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(new) = &view.new else { return plan };
    let mut annotations = new.metadata.annotations.clone().unwrap_or_default();
    annotations.extend(copied_annotations(view.deployment));
    let (had, next) = (revision(&new.metadata), next_revision(view));
    if had < next {
        if had > 0 {
            let history = annotations
                .get(HISTORY)
                .map_or(had.to_string(), |history| format!("{history},{had}"));
            annotations.insert(HISTORY.to_owned(), history);
        }
        annotations.insert(REVISION.to_owned(), next.to_string());
    }
    let min_ready = view
        .deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds);
    let stale_min_ready = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds) != min_ready;
    if new.metadata.annotations.as_ref() != Some(&annotations) || stale_min_ready {
        let revision = annotations.get(REVISION).cloned();
        let spec = json!({"minReadySeconds": min_ready});
        plan.then(Action::merge(
            new.as_ref(),
            json!({"metadata": {"annotations": annotations}, "spec": spec}),
        ));
        plan.together(set_revision(view.deployment, revision.as_deref()));
        return plan;
    }
    plan.together(set_revision(view.deployment, annotation(&new.metadata, REVISION)));
    plan
}

fn set_revision(deployment: &Deployment, revision: Option<&str>) -> Option<Action> {
    let stale = revision.is_some() && annotation(&deployment.metadata, REVISION) != revision;
    stale.then(|| {
        Action::merge_same(
            deployment,
            json!({"metadata": {"annotations": {(REVISION): revision}}}),
        )
    })
}

/// Changes the size of a replica set, and tells about it.
pub(crate) fn resize(view: &View<'_>, set: &ReplicaSet, size: i32) -> Vec<Action> {
    let had = replicas(set);
    let annotations: BTreeMap<_, _> = size_annotations(view).into();
    let stale = annotations
        .iter()
        .any(|(name, value)| annotation(&set.metadata, name) != Some(value));
    if had == size && !stale {
        return Vec::new();
    }
    let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": size}});
    let mut actions = vec![Action::merge(set, patch)];
    if had != size {
        let direction = if size > had { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Scaled {direction} replica set {name} from {had} to {size}");
        actions.push(Action::event(
            view.deployment,
            EventKind::Normal,
            "ScalingReplicaSet",
            message,
        ));
    }
    actions
}

/// Deletes the oldest replica sets that are empty and beyond the history limit, once a rollout is complete.
pub(crate) fn clean_up(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let spec = view.deployment.spec.as_ref();
    let Some(limit) = spec
        .and_then(|spec| spec.revision_history_limit)
        .and_then(|l| usize::try_from(l).ok())
    else {
        return plan;
    };
    let paused = spec.and_then(|spec| spec.paused) == Some(true);
    if !paused && !status::is_complete(view) {
        return plan;
    }
    let mut old: Vec<_> = view
        .old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    let surplus = old.len().saturating_sub(limit);
    old.sort_by_key(|set| revision(&set.metadata));
    plan.together(
        old.into_iter()
            .take(surplus)
            .filter(|set| is_empty(set))
            .map(|set| Action::delete_unchanged(set.as_ref())),
    );
    plan
}

fn is_empty(set: &ReplicaSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    let seen = set.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0);
    status.replicas == 0 && replicas(set) == 0 && seen
}

/// Pods of replica sets other than the new one that still run.
pub(crate) fn old_pods_run(view: &View<'_>) -> bool {
    let new = view.new.as_ref().and_then(|set| set.metadata.uid.as_deref());
    view.pods.iter().any(|pod| {
        let of_old = controller_uid(&pod.metadata).is_some_and(|uid| Some(uid) != new);
        of_old && !crate::pod::is_terminal(pod)
    })
}
