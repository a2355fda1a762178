//! ReplicaSets and ReplicationControllers.

use std::marker::PhantomData;
use std::sync::Arc;

use control_plane_controllers::ownership::controller_of;
use control_plane_controllers::replicaset::{self as planner, Observed, Replicating};
use control_plane_controllers::selector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use machinery_client::{Cache, Cached, Change};
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_CONTROLLER;

/// A kind that the planner keeps pods for.
pub(super) trait Kept: Replicating + Cached {
    /// Name of its controller.
    const CONTROLLER: &'static str;

    fn cache(caches: &Caches) -> &Cache<Self>;
}

impl Kept for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.replica_sets
    }
}

impl Kept for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.replication_controllers
    }
}

pub(super) struct Sets<S> {
    caches: Caches,
    kind: PhantomData<fn() -> S>,
}

impl<S> Sets<S> {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
            kind: PhantomData,
        }
    }
}

pub(super) fn connect<S: Kept>(_: &Arc<Sets<S>>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    S::cache(caches).on_change(move |change| to.add(change.key.clone()));
    let (to, caches_of_pods) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        for key in concerned::<S>(&caches_of_pods, change) {
            to.add(key);
        }
    });
}

/// The sets that a pod belongs or belonged to; for one without controller those that would adopt it.
fn concerned<S: Kept>(caches: &Caches, change: &Change<Pod>) -> Vec<Key> {
    let mut keys = Vec::new();
    for pod in change.versions() {
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == S::KIND => keys.push(Key::new(&change.key.namespace, &owner.name)),
            Some(_) => {}
            None => keys.extend(adopters::<S>(caches, pod)),
        }
    }
    keys
}

fn adopters<S: Kept>(caches: &Caches, pod: &Pod) -> Vec<Key> {
    let sets = S::cache(caches).in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    let labels = pod.metadata.labels.as_ref();
    let takes = sets.iter().filter(|set| {
        let selector = set.wanted().map(|spec| spec.selector);
        selector.is_some_and(|s| !selector::is_empty(&s) && selector::matches(&s, labels))
    });
    takes.map(|set| Key::of(set.metadata())).collect()
}

impl<S: Kept> Controller for Sets<S> {
    type Key = Key;
    type Observed = Option<Observed<S>>;

    fn name(&self) -> &'static str {
        S::CONTROLLER
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(set) = S::cache(&self.caches).get(key) else {
            return Ok(None);
        };
        let uid = set.metadata().uid.clone().unwrap_or_default();
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
