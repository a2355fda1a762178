//! CronJobs.

use std::sync::Arc;

use control_plane_controllers::cronjob::{self as planner, Observed};
use control_plane_controllers::ownership::{controller_of, controller_uid};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

pub(super) struct CronJobs {
    caches: Caches,
}

impl CronJobs {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<CronJobs>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .cron_jobs
        .on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.jobs.on_change(move |change| {
        let owners = change.versions().filter_map(|job| controller_of(&job.metadata));
        for owner in owners.filter(|owner| owner.kind == "CronJob") {
            to.add(Key::new(&change.key.namespace, &owner.name));
        }
    });
}

impl Controller for CronJobs {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(cron_job) = self.caches.cron_jobs.get(key) else {
            return Ok(None);
        };
        let uid = cron_job.metadata.uid.as_deref();
        let mut jobs = self.caches.jobs.in_namespace(&key.namespace);
        jobs.retain(|job| controller_uid(&job.metadata) == uid);
        let named = cron_job.spec.time_zone.as_deref();
        let zone = named.map_or(Some(TimeZone::UTC), |name| TimeZone::get(name).ok());
        Ok(Some(Observed { cron_job, jobs, zone }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed.map_or_else(Plan::nothing, |observed| planner::plan(&observed, now))
    }
}
