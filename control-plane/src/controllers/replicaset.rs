//! ReplicaSets.

use std::sync::Arc;

use control_plane_controllers::ownership::controller_of;
use control_plane_controllers::replicaset::{self as planner, Observed};
use control_plane_controllers::selector;
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
        .replica_sets
        .on_change(move |change| to.add(change.key.clone()));
    let (to, caches_of_pods) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        for key in concerned(&caches_of_pods, change) {
            to.add(key);
        }
    });
}

/// The replica sets that a pod belongs or belonged to; for one without controller those that would adopt it.
fn concerned(caches: &Caches, change: &Change<Pod>) -> Vec<Key> {
    let mut keys = Vec::new();
    for pod in change.versions() {
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => {
                keys.push(Key::new(&change.key.namespace, &owner.name))
            }
            Some(_) => {}
            None => keys.extend(adopters(caches, pod)),
        }
    }
    keys
}

fn adopters(caches: &Caches, pod: &Pod) -> Vec<Key> {
    let sets = caches
        .replica_sets
        .in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    let labels = pod.metadata.labels.as_ref();
    let takes = sets.iter().filter(|set| {
        let selector = set.spec.as_ref().map(|spec| &spec.selector);
        selector.is_some_and(|s| !selector::is_empty(s) && selector::matches(s, labels))
    });
    takes.map(|set| Key::of(&set.metadata)).collect()
}

impl Controller for Sets {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(set) = self.caches.replica_sets.get(key) else {
            return Ok(None);
        };
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let mut pods = self.caches.pods.indexed(BY_CONTROLLER, &uid);
        pods.extend(
            self.caches
                .pods
                .indexed(BY_CONTROLLER, &format!("/{}", key.namespace)),
        );
        Ok(Some(Observed {
            set,
            pods,
            last_failure: None,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, attempt: &Attempt, now: Timestamp) -> Plan {
        let Some(mut observed) = observed else {
            return Plan::nothing();
        };
        observed.last_failure = attempt
            .last_failure
            .as_ref()
            .map(|failure| failure.message.clone());
        planner::plan(&observed, now)
    }
}
