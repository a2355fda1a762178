//! StatefulSets.

use std::sync::Arc;

use control_plane_controllers::ownership::{controller_of, controller_uid};
use control_plane_controllers::selector;
use control_plane_controllers::statefulset::{self as planner, Observed};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use machinery_client::Change;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_CONTROLLER;

pub(super) struct Sets {
    caches: Caches,
}

impl Sets {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Sets>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .stateful_sets
        .on_change(move |change| to.add(change.key.clone()));
    let (to, others) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        concerned(&others, change).into_iter().for_each(|key| to.add(key));
    });
    let to = queue.clone();
    caches.revisions.on_change(move |change| {
        let owner = controller_of(&change.latest().metadata).filter(|owner| owner.kind == "StatefulSet");
        owner
            .into_iter()
            .for_each(|owner| to.add(Key::new(&change.key.namespace, &owner.name)));
    });
}

/// The sets that a pod belongs or belonged to; for one without controller those that would adopt it.
fn concerned(caches: &Caches, change: &Change<Pod>) -> Vec<Key> {
    let mut keys = Vec::new();
    for pod in change.versions() {
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "StatefulSet" => {
                keys.push(Key::new(&change.key.namespace, &owner.name));
            }
            Some(_) => {}
            None => {
                let sets = caches.stateful_sets.in_namespace(&change.key.namespace);
                let takes = sets.iter().filter(|set| {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    selector.is_some_and(|s| selector::matches(s, pod.metadata.labels.as_ref()))
                });
                keys.extend(takes.map(|set| Key::of(&set.metadata)));
            }
        }
    }
    keys
}

impl Controller for Sets {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(set) = self.caches.stateful_sets.get(key) else {
            return Ok(None);
        };
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let mut pods = self.caches.pods.indexed(BY_CONTROLLER, &uid);
        let orphans = format!("/{}", key.namespace);
        pods.extend(self.caches.pods.indexed(BY_CONTROLLER, &orphans));
        let mut revisions = self.caches.revisions.in_namespace(&key.namespace);
        revisions.retain(|revision| controller_uid(&revision.metadata) == Some(uid.as_str()));
        Ok(Some(Observed {
            set,
            pods,
            revisions,
            claims: self.caches.claims.in_namespace(&key.namespace),
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed.map_or_else(Plan::nothing, |observed| planner::plan(&observed, now))
    }
}
