//! CronJob: a job at each time of a schedule
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>).

mod schedule;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, EventKind, Plan, Propagation};

use crate::ownership::controller_ref;
use crate::time::wire;
use schedule::Schedule;

/// Annotation of a job with the time that it was scheduled for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Times that may have been missed before something must be wrong.
const MISSED: usize = 100;

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The cron job.
    pub cron_job: Arc<CronJob>,
    /// The jobs that it owns.
    pub jobs: Vec<Arc<Job>>,
    /// The time zone that its schedule is in; `None` when the named one is unknown.
    pub zone: Option<TimeZone>,
}

/// What to do next for a cron job.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let cron_job = observed.cron_job.as_ref();
    let mut plan = Plan::nothing();
    let spec = &cron_job.spec;
    if cron_job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.together(history(spec, &observed.jobs));
    let mut status = status(observed);
    if spec.suspend != Some(true) {
        run(&mut plan, observed, spec, &mut status, now);
    }
    if status != cron_job.status.clone().unwrap_or_default() {
        plan.then(Action::status(cron_job, &status));
    }
    plan
}

/// Starts the job whose time has come, if one has, and looks again at the next time.
fn run(plan: &mut Plan, observed: &Observed, spec: &CronJobSpec, status: &mut CronJobStatus, now: Timestamp) {
    let cron_job = observed.cron_job.as_ref();
    let warn = |reason, message: String| Action::event(cron_job, EventKind::Warning, reason, message);
    let Some(zone) = observed.zone.as_ref() else {
        let name = spec.time_zone.as_deref().unwrap_or_default();
        return plan.then(warn("UnknownTimeZone", format!("invalid timeZone: {name:?}")));
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            return plan.then(warn(
                "UnparseableSchedule",
                format!("unparseable schedule {:?}: {error}", spec.schedule),
            ));
        }
    };
    if let Some(next) = schedule.after(now, zone) {
        plan.requeue(until(next, now));
    }
    let Some(due) = due(cron_job, spec, &schedule, zone, now) else {
        return;
    };
    let late = spec
        .starting_deadline_seconds
        .filter(|deadline| now.duration_since(due) > SignedDuration::from_secs(*deadline));
    let known = observed
        .jobs
        .iter()
        .any(|job| job.metadata.name.as_deref() == Some(&name(cron_job, due)));
    if late.is_some() || known {
        return;
    }
    let active: Vec<_> = observed.jobs.iter().filter(|job| !is_finished(job)).collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.then(Action::event(
                cron_job,
                EventKind::Normal,
                "JobAlreadyActive",
                message,
            ));
        }
        Some("Replace") => plan.together(active.iter().map(|job| delete(job))),
        _ => {}
    }
    plan.then(Action::create(&job(cron_job, spec, due)));
    status.last_schedule_time = Some(wire(due));
}

fn until(next: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// The newest time of the schedule that has come and has not been served.
fn due(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<Timestamp> {
    let served = cron_job
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let born = cron_job.metadata.creation_timestamp.as_ref();
    let mut since = served.or(born)?.0;
    if let Some(deadline) = spec.starting_deadline_seconds {
        since = since.max(now - SignedDuration::from_secs(deadline));
    }
    let mut newest = None;
    for _ in 0..MISSED {
        match schedule.after(since, zone).filter(|next| *next <= now) {
            Some(next) => {
                newest = Some(next);
                since = next;
            }
            None => return newest,
        }
    }
    // Far behind: what matters is only the last of all the times that were missed.
    schedule.before(now, zone).or(newest)
}

/// The same time makes the same name, so that no job runs twice.
fn name(cron_job: &CronJob, due: Timestamp) -> String {
    format!(
        "{}-{}",
        cron_job.metadata.name.as_deref().unwrap_or_default(),
        due.as_second() / 60
    )
}

fn job(cron_job: &CronJob, spec: &CronJobSpec, due: Timestamp) -> Job {
    let template = spec.job_template.clone();
    let described = template.metadata.unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = described.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), due.to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(name(cron_job, due)),
            namespace: cron_job.metadata.namespace.clone(),
            labels: described.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn delete(job: &Arc<Job>) -> Action {
    Action::delete_with(job.as_ref(), Some(Propagation::Background), None)
}

fn has(job: &Job, type_: &str) -> bool {
    let conditions = job
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn is_finished(job: &Job) -> bool {
    has(job, "Complete") || has(job, "Failed")
}

/// The oldest finished jobs beyond the limits go.
fn history(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Action> {
    let surplus = |type_: &str, limit: Option<i32>, otherwise: i32| {
        let mut ended: Vec<_> = jobs
            .iter()
            .filter(|job| has(job, type_) && job.metadata.deletion_timestamp.is_none())
            .collect();
        ended.sort_by_key(|job| {
            Reverse(
                job.status
                    .as_ref()
                    .and_then(|status| status.start_time.clone())
                    .map(|t| t.0),
            )
        });
        let keep = usize::try_from(limit.unwrap_or(otherwise)).unwrap_or(0);
        ended.into_iter().skip(keep).map(delete).collect::<Vec<_>>()
    };
    let mut all = surplus("Complete", spec.successful_jobs_history_limit, 3);
    all.extend(surplus("Failed", spec.failed_jobs_history_limit, 1));
    all
}

fn status(observed: &Observed) -> CronJobStatus {
    let mut status = observed.cron_job.status.clone().unwrap_or_default();
    let active = observed
        .jobs
        .iter()
        .filter(|job| !is_finished(job))
        .map(|job| ObjectReference {
            api_version: Some(<Job as k8s_openapi::Resource>::API_VERSION.to_owned()),
            kind: Some(<Job as k8s_openapi::Resource>::KIND.to_owned()),
            name: job.metadata.name.clone(),
            namespace: job.metadata.namespace.clone(),
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
            ..ObjectReference::default()
        });
    let mut active: Vec<_> = active.collect();
    active.sort_by(|one, other| one.name.cmp(&other.name));
    // A job's new version alone is no reason to write.
    let held = status.active.clone().unwrap_or_default();
    for new in &mut active {
        if let Some(old) = held.iter().find(|old| old.uid == new.uid) {
            new.resource_version.clone_from(&old.resource_version);
        }
    }
    status.active = Some(active).filter(|active| !active.is_empty());
    let ended = observed.jobs.iter().filter(|job| has(job, "Complete"));
    let last = ended
        .filter_map(|job| job.status.as_ref()?.completion_time.clone())
        .max_by_key(|time| time.0);
    if last.as_ref().map(|t| t.0) > status.last_successful_time.as_ref().map(|t| t.0) {
        status.last_successful_time = last;
    }
    status
}
