//! Jobs.

use std::sync::Arc;

use control_plane_controllers::job::{self as planner, Observed};
use control_plane_controllers::ownership::controller_of;
use control_plane_controllers::selector;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use machinery_client::Cache;
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
    let (to, jobs) = (queue.clone(), caches.jobs.clone());
    caches.pods.on_change(move |change| {
        for pod in change.versions() {
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "Job" => to.add(Key::new(&change.key.namespace, &owner.name)),
                Some(_) => {}
                None => adopters(&jobs, pod).into_iter().for_each(|key| to.add(key)),
            }
        }
    });
}

/// Jobs that would adopt a pod that has no controller: that it was made for, and that lost it.
fn adopters(jobs: &Cache<Job>, pod: &Pod) -> Vec<Key> {
    let labels = pod.metadata.labels.as_ref();
    let takes = |job: &Arc<Job>| {
        let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|s| !selector::is_empty(s) && selector::matches(s, labels))
    };
    let mut jobs = jobs.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    jobs.retain(takes);
    jobs.iter().map(|job| Key::of(&job.metadata)).collect()
}

impl Controller for Jobs {
    type Key = Key;
    /// The job, or pods of one that is gone.
    type Observed = Result<Observed, Vec<Arc<Pod>>>;

    fn name(&self) -> &'static str {
        "job-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let job = self.caches.jobs.get(key);
        let uid = job
            .as_ref()
            .and_then(|job| job.metadata.uid.clone())
            .unwrap_or_default();
        let mut orphans = self.caches.pods.in_namespace(&key.namespace);
        orphans.retain(|pod| {
            let held = pod
                .metadata
                .finalizers
                .iter()
                .flatten()
                .any(|held| held == planner::TRACKING);
            let owner = controller_of(&pod.metadata).filter(|owner| held && owner.kind == "Job");
            owner.is_some_and(|owner| owner.name == key.name && owner.uid != uid)
        });
        Ok(match job {
            // Those of a namesake are looked at first: there are none but for a moment.
            Some(job) if orphans.is_empty() => {
                let mut pods = self.caches.pods.indexed(BY_CONTROLLER, &uid);
                let ownerless = format!("/{}", key.namespace);
                pods.extend(self.caches.pods.indexed(BY_CONTROLLER, &ownerless));
                Ok(Observed { job, pods })
            }
            _ => Err(orphans),
        })
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        match observed {
            Ok(observed) => planner::plan(&observed, now),
            Err(orphans) => planner::release(&orphans),
        }
    }
}
