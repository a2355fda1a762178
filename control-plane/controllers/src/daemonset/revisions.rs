//! The history of a daemon set's templates.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use machinery_plan::{Action, Plan};
use serde_json::{Value, json};

use super::REVISION_HASH;
use crate::ownership::controller_ref;
use crate::{history, template};

/// The revision of the present template.
pub(crate) struct Current {
    /// What names it on new pods.
    pub hash: String,
    /// What names it on pods that are there: also other revisions of the same content, of which one may be gone.
    also: BTreeSet<String>,
    /// How often a name was found taken by other content.
    pub collisions: Option<i32>,
    /// What makes it the newest one.
    pub plan: Plan,
}

impl Current {
    /// Whether a pod with this label is of the present template.
    pub(crate) fn is(&self, hash: &String) -> bool {
        *hash == self.hash || self.also.contains(hash)
    }
}

/// Finds the revision of the present template by its content, or plans a new one.
pub(crate) fn current(set: &DaemonSet, spec: &DaemonSetSpec, held: &[Arc<ControllerRevision>]) -> Current {
    let data = history::patch(&spec.template);
    let mut collisions = set.status.as_ref().and_then(|status| status.collision_count);
    let newest = held.iter().map(|revision| revision.revision).max().unwrap_or(0);
    let same = |revision: &&Arc<ControllerRevision>| {
        let content = revision.data.as_ref();
        content.is_some_and(|content| history::same(&content.0, &data))
    };
    let mut also: BTreeSet<String> = held
        .iter()
        .filter(same)
        .filter_map(|r| hash_of(r))
        .cloned()
        .collect();
    let plain = template::hash(&spec.template, collisions);
    if !held.iter().any(|revision| hash_of(revision) == Some(&plain)) {
        also.insert(plain);
    }
    let mut plan = Plan::nothing();
    let hash = match held.iter().filter(same).max_by_key(|revision| revision.revision) {
        Some(old) if old.revision < newest => {
            plan.then(Action::merge(old.as_ref(), json!({"revision": newest + 1})));
            hash_of(old).cloned()
        }
        Some(old) => hash_of(old).cloned(),
        None => None,
    };
    let hash = hash.unwrap_or_else(|| {
        let hash = free_hash(spec, held, &mut collisions);
        also.clear();
        plan.then(Action::create(&revision(
            set,
            spec,
            data.clone(),
            &hash,
            newest + 1,
        )));
        hash
    });
    Current {
        hash,
        also,
        collisions,
        plan,
    }
}

/// The first hash of the template that no revision of other content has.
fn free_hash(spec: &DaemonSetSpec, held: &[Arc<ControllerRevision>], collisions: &mut Option<i32>) -> String {
    loop {
        let hash = template::hash(&spec.template, *collisions);
        if !held.iter().any(|revision| hash_of(revision) == Some(&hash)) {
            return hash;
        }
        *collisions = Some(collisions.unwrap_or(0) + 1);
    }
}

fn hash_of(revision: &ControllerRevision) -> Option<&String> {
    revision.metadata.labels.as_ref()?.get(REVISION_HASH)
}

fn revision(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    data: Value,
    hash: &str,
    number: i64,
) -> ControllerRevision {
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
    ControllerRevision {
        metadata,
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// Deletions of the oldest revisions beyond the limit that no pod is of.
pub(crate) fn surplus(
    spec: &DaemonSetSpec,
    current: &Current,
    pods: &[Arc<Pod>],
    held: &[Arc<ControllerRevision>],
) -> Vec<Action> {
    let labels = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref());
    let live: BTreeSet<&String> = labels.filter_map(|labels| labels.get(REVISION_HASH)).collect();
    let is_old = |revision: &&Arc<ControllerRevision>| {
        hash_of(revision).is_none_or(|hash| !live.contains(hash) && *hash != current.hash)
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
