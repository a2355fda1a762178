//! Claims and volumes that are deleted go once nothing uses them.

use std::sync::Arc;

use control_plane_controllers::protection as planner;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

pub(super) struct Claims {
    caches: Caches,
}

impl Claims {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect_claims(_: &Arc<Claims>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.claims.on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.pods.on_change(move |change| {
        for claim in change.versions().flat_map(|pod| planner::claims_of(pod)) {
            to.add(Key::new(&change.key.namespace, &claim));
        }
    });
}

impl Controller for Claims {
    type Key = Key;
    type Observed = Option<(Arc<PersistentVolumeClaim>, Vec<Arc<Pod>>)>;

    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let claim = self.caches.claims.get(key);
        let deleted = claim.filter(|claim| claim.metadata.deletion_timestamp.is_some());
        Ok(deleted.map(|claim| (claim, self.caches.pods.in_namespace(&key.namespace))))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        observed.map_or_else(Plan::nothing, |(claim, pods)| planner::claim(&claim, &pods))
    }
}

pub(super) struct Volumes {
    caches: Caches,
}

impl Volumes {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect_volumes(_: &Arc<Volumes>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.volumes.on_change(move |change| to.add(change.key.clone()));
}

impl Controller for Volumes {
    type Key = Key;
    type Observed = Option<Arc<PersistentVolume>>;

    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        Ok(self.caches.volumes.get(key))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        observed.map_or_else(Plan::nothing, |volume| planner::volume(&volume))
    }
}
