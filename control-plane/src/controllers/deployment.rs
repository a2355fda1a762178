//! Deployments.

use std::sync::Arc;

use control_plane_controllers::deployment::{self as planner, Observed};
use control_plane_controllers::ownership::{controller_of, controller_uid};
use control_plane_controllers::{pod, selector};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use machinery_client::Change;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_CONTROLLER;

pub(super) struct Deployments {
    caches: Caches,
}

impl Deployments {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Deployments>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .deployments
        .on_change(move |change| to.add(change.key.clone()));
    let (to, others) = (queue.clone(), caches.clone());
    caches.replica_sets.on_change(move |change| {
        for set in change.versions() {
            owners(&others, set).into_iter().for_each(|key| to.add(key));
        }
    });
    let (to, others) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        if let Some(key) = stopped(&others, change) {
            to.add(key);
        }
    });
}

/// The deployment of a replica set; for one without controller those that would adopt it.
fn owners(caches: &Caches, set: &ReplicaSet) -> Vec<Key> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    match controller_of(&set.metadata) {
        Some(owner) if owner.kind == "Deployment" => vec![Key::new(namespace, &owner.name)],
        Some(_) => Vec::new(),
        None => {
            let labels = set.metadata.labels.as_ref();
            let all = caches.deployments.in_namespace(namespace);
            let takes = all.iter().filter(|deployment| {
                let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
                selector.is_some_and(|s| !selector::is_empty(s) && selector::matches(s, labels))
            });
            takes.map(|deployment| Key::of(&deployment.metadata)).collect()
        }
    }
}

/// The deployment of a pod that runs no more: one that replaces its pods at once may be waiting for it.
fn stopped(caches: &Caches, change: &Change<Pod>) -> Option<Key> {
    let runs = |pod: &Arc<Pod>| !pod::is_terminal(pod);
    let stopped = change.old.as_ref().is_some_and(runs) && !change.new.as_ref().is_some_and(runs);
    let owner =
        controller_of(&change.latest().metadata).filter(|owner| stopped && owner.kind == "ReplicaSet")?;
    let set = caches
        .replica_sets
        .get(&Key::new(&change.key.namespace, &owner.name))?;
    owners(caches, &set).into_iter().next()
}

impl Controller for Deployments {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(deployment) = self.caches.deployments.get(key) else {
            return Ok(None);
        };
        let sets = self.caches.replica_sets.in_namespace(&key.namespace);
        let uid = deployment.metadata.uid.as_deref();
        let own = sets.iter().filter(|set| controller_uid(&set.metadata) == uid);
        let pods = own.flat_map(|set| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            self.caches.pods.indexed(BY_CONTROLLER, uid)
        });
        let pods = pods.collect();
        Ok(Some(Observed {
            deployment,
            sets,
            pods,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
