//! Job: pods that run until enough of them have succeeded
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/job/>).
//!
//! Ended pods are counted exactly once: each carries a finalizer; its uid first goes into the status, then the
//! finalizer goes, then the uid becomes a number.

mod failures;
mod indexes;
mod pods;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::{Action, Plan};

use crate::ownership::{Claim, claim};
use crate::time;

/// Finalizer of a job's pods until they are counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The job.
    pub job: Arc<Job>,
    /// Pods of its namespace: at least its own and those without a controller.
    pub pods: Vec<Arc<Pod>>,
}

/// Lets the pods of jobs that are gone go: nobody will count them any more.
#[must_use]
pub fn release(orphans: &[Arc<Pod>]) -> Plan {
    let mut plan = Plan::nothing();
    plan.together(orphans.iter().filter_map(pods::without_finalizer));
    plan
}

/// What to do next for a job.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let job = observed.job.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = &job.spec else { return plan };
    let Some(selector) = spec.selector.as_ref().filter(|_| is_ours(spec)) else {
        return plan;
    };
    let Claim { owned, patches } = claim(job, selector, &observed.pods);
    plan.together(patches);
    if status::is_finished(job) {
        plan.together(owned.iter().filter_map(pods::without_finalizer));
        after_the_end(&mut plan, job, now);
        return plan;
    }
    let count = status::count(job, spec, &owned, now);
    let changed = count.status != job.status.clone().unwrap_or_default();
    if changed {
        plan.then(Action::status(job, &count.status));
    }
    plan.together(
        owned
            .iter()
            .filter(|pod| count.may_go(pod) && (count.ending || !count.is_witness(spec, pod, &owned)))
            .filter_map(pods::without_finalizer),
    );
    if let Some(wait) = count.wait {
        plan.requeue(wait);
    }
    if job.metadata.deletion_timestamp.is_none() {
        pods::manage(&mut plan, job, spec, &count, &owned, now);
    }
    plan
}

/// Whether no other controller was named for the job.
fn is_ours(spec: &JobSpec) -> bool {
    spec.managed_by
        .as_deref()
        .is_none_or(|manager| manager == "kubernetes.io/job-controller")
}

/// Deletes a finished job when its time to live is over.
fn after_the_end(plan: &mut Plan, job: &Job, now: Timestamp) {
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let (Some(ttl), Some(ended)) = (ttl, status::finished_at(job)) else {
        return;
    };
    if job.metadata.deletion_timestamp.is_some() {
        return;
    }
    match time::left(ended, time::seconds(ttl), now) {
        Some(wait) => plan.requeue(wait),
        None => plan.then(Action::delete_with(
            job,
            Some(machinery_plan::Propagation::Background),
            None,
        )),
    }
}
