//! DaemonSets.

use std::sync::Arc;

use control_plane_controllers::daemonset::{self as planner, Observed};
use control_plane_controllers::ownership::{controller_of, controller_uid};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use machinery_client::Change;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_CONTROLLER;

pub(super) struct Daemons {
    caches: Caches,
}

impl Daemons {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Daemons>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .daemon_sets
        .on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.pods.on_change(move |change| {
        let owners = change.versions().filter_map(|pod| controller_of(&pod.metadata));
        for owner in owners.filter(|owner| owner.kind == "DaemonSet") {
            to.add(Key::new(&change.key.namespace, &owner.name));
        }
    });
    let to = queue.clone();
    caches.revisions.on_change(move |change| {
        let owner = controller_of(&change.latest().metadata).filter(|owner| owner.kind == "DaemonSet");
        owner
            .into_iter()
            .for_each(|owner| to.add(Key::new(&change.key.namespace, &owner.name)));
    });
    let (to, others) = (queue.clone(), caches.clone());
    caches.nodes.on_change(move |change| {
        if matters(change) {
            others
                .daemon_sets
                .list()
                .iter()
                .for_each(|set| to.add(Key::of(&set.metadata)));
        }
    });
}

/// Labels and taints decide which daemons a node gets; its heartbeats do not.
fn matters(change: &Change<Node>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.metadata.labels != new.metadata.labels || old.spec != new.spec,
        _ => true,
    }
}

impl Controller for Daemons {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(set) = self.caches.daemon_sets.get(key) else {
            return Ok(None);
        };
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let mut pods = self.caches.pods.indexed(BY_CONTROLLER, &uid);
        pods.extend(
            self.caches
                .pods
                .indexed(BY_CONTROLLER, &format!("/{}", key.namespace)),
        );
        let mut revisions = self.caches.revisions.in_namespace(&key.namespace);
        revisions.retain(|revision| controller_uid(&revision.metadata) == Some(uid.as_str()));
        Ok(Some(Observed {
            set,
            pods,
            nodes: self.caches.nodes.list(),
            revisions,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
