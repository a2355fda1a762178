//! Jobs.

use std::sync::Arc;

use control_plane_controllers::job::{self as planner, Observed};
use control_plane_controllers::ownership::controller_of;
use jiff::Timestamp;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_CONTROLLER;

pub(super) struct Jobs {
    caches: Caches,
}

impl Jobs {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Jobs>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.jobs.on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.pods.on_change(move |change| {
        // A job's selector names its uid, so pods without a controller are of no interest.
        let owners = change.versions().filter_map(|pod| controller_of(&pod.metadata));
        for owner in owners.filter(|owner| owner.kind == "Job") {
            to.add(Key::new(&change.key.namespace, &owner.name));
        }
    });
}

impl Controller for Jobs {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "job-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(job) = self.caches.jobs.get(key) else {
            return Ok(None);
        };
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let pods = self.caches.pods.indexed(BY_CONTROLLER, &uid);
        Ok(Some(Observed { job, pods }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
