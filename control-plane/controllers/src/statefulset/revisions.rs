//! The history of a stateful set's templates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use machinery_plan::{Action, Plan};
use serde_json::json;

use super::{REVISION, identity};
use crate::ownership::controller_ref;
use crate::{history, template};

/// The revisions that matter now.
pub(super) struct Revisions {
    /// Name of the revision that pods are updated from.
    pub(super) current: String,
    /// Name of the revision of the present template.
    pub(super) update: String,
    /// What makes the present template the newest revision.
    pub(super) writes: Plan,
    held: Vec<Arc<ControllerRevision>>,
}

impl Revisions {
    pub(super) fn find(set: &StatefulSet, spec: &StatefulSetSpec, held: &[Arc<ControllerRevision>]) -> Self {
        let mut writes = Plan::nothing();
        let status = set.status.as_ref();
        let hash = template::hash(&spec.template, status.and_then(|status| status.collision_count));
        let update = format!("{}-{hash}", set.metadata.name.as_deref().unwrap_or_default());
        let newest = held.iter().map(|revision| revision.revision).max().unwrap_or(0);
        match held
            .iter()
            .find(|revision| revision.metadata.name.as_ref() == Some(&update))
        {
            None => writes.then(Action::create(&revision(set, spec, &update, newest + 1))),
            Some(old) if old.revision < newest => {
                writes.then(Action::merge(old.as_ref(), json!({"revision": newest + 1})));
            }
            Some(_) => {}
        }
        let current = status
            .and_then(|status| status.current_revision.clone())
            .filter(|name| !name.is_empty());
        Self {
            current: current.unwrap_or_else(|| update.clone()),
            update,
            writes,
            held: held.to_vec(),
        }
    }

    /// The template of a revision; the present one where it is not known.
    pub(super) fn template(&self, revision: &str, spec: &StatefulSetSpec) -> PodTemplateSpec {
        let old = self
            .held
            .iter()
            .find(|held| held.metadata.name.as_deref() == Some(revision));
        let old = old
            .filter(|_| revision != self.update)
            .and_then(|held| held.data.as_ref());
        let template = old.map(|data| {
            let mut template = data.0["spec"]["template"].clone();
            template.as_object_mut().map(|fields| fields.remove("$patch"));
            template
        });
        template
            .and_then(|template| serde_json::from_value(template).ok())
            .unwrap_or_else(|| spec.template.clone())
    }

    /// Deletions of the oldest revisions beyond the limit that no pod is of.
    pub(super) fn surplus(&self, spec: &StatefulSetSpec, pods: &BTreeMap<i32, Arc<Pod>>) -> Vec<Action> {
        let mut live: BTreeSet<&String> = pods.values().filter_map(|pod| identity::revision(pod)).collect();
        live.extend([&self.current, &self.update]);
        let is_old = |revision: &&Arc<ControllerRevision>| {
            revision
                .metadata
                .name
                .as_ref()
                .is_none_or(|name| !live.contains(name))
        };
        let mut old: Vec<_> = self.held.iter().filter(is_old).collect();
        let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let surplus = old.len().saturating_sub(limit);
        old.sort_by_key(|revision| revision.revision);
        old.into_iter()
            .take(surplus)
            .map(|revision| Action::delete(revision.as_ref()))
            .collect()
    }
}

fn revision(set: &StatefulSet, spec: &StatefulSetSpec, name: &str, number: i64) -> ControllerRevision {
    let described = spec
        .template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    let mut labels = described.unwrap_or_default();
    labels.insert(REVISION.to_owned(), name.to_owned());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(history::patch(&spec.template))),
        revision: number,
    }
}
