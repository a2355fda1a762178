//! Counting pods, and what a job concludes from that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::failures::{self, Outcome};
use super::indexes;
use super::pods::{has_finalizer, index_of, is_indexed};
use crate::pod::{is_active, is_ready, is_terminal, is_terminating, phase};
use crate::time::{left, seconds, wire};

/// The outcome of looking at all pods of a job.
pub(crate) struct Count {
    /// The status to write.
    pub status: JobStatus,
    /// Uids that stand in the status the API server already has: their pods may lose the finalizer.
    recorded: BTreeSet<String>,
    /// Whether the job has met its end and pods are only to be cleared away.
    pub ending: bool,
    /// Whether the job is to run no pods for now.
    pub suspended: bool,
    indexed: bool,
    /// Indexes that have succeeded.
    pub done: BTreeSet<i32>,
    /// Indexes that have failed for good.
    pub lost: BTreeSet<i32>,
    /// Why a failed pod ends the job, if one does.
    fatal: Option<String>,
    /// When to look again.
    pub wait: Option<Duration>,
    /// When a pod last failed, of those that are still there.
    pub last_failure: Option<Timestamp>,
}

impl Count {
    /// Whether a counted pod is needed to know how often its index has failed.
    pub(crate) fn is_witness(&self, spec: &JobSpec, pod: &Pod, owned: &[Arc<Pod>]) -> bool {
        let over = self.done.union(&self.lost).copied().collect();
        failures::is_witness(spec, pod, owned, &over)
    }

    /// Whether the pod is counted, so that it may vanish.
    pub(crate) fn may_go(&self, pod: &Pod) -> bool {
        pod.metadata
            .uid
            .as_ref()
            .is_some_and(|uid| self.recorded.contains(uid))
    }

    pub(crate) fn succeeded(&self) -> i32 {
        if self.indexed {
            return length_of(&self.done);
        }
        let uncounted = self
            .status
            .uncounted_terminated_pods
            .as_ref()
            .and_then(|all| all.succeeded.as_ref());
        self.status.succeeded.unwrap_or(0) + length(uncounted)
    }

    pub(crate) fn failed(&self) -> i32 {
        let uncounted = self
            .status
            .uncounted_terminated_pods
            .as_ref()
            .and_then(|all| all.failed.as_ref());
        self.status.failed.unwrap_or(0) + length(uncounted)
    }
}

fn length(uids: Option<&Vec<String>>) -> i32 {
    uids.map_or(0, |uids| i32::try_from(uids.len()).unwrap_or(i32::MAX))
}

pub(crate) fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    let all = job.status.as_ref()?.conditions.as_ref()?;
    all.iter()
        .find(|condition| condition.type_ == type_ && condition.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    condition(job, "Complete").is_some() || condition(job, "Failed").is_some()
}

pub(crate) fn finished_at(job: &Job) -> Option<Timestamp> {
    let end = condition(job, "Complete").or_else(|| condition(job, "Failed"))?;
    end.last_transition_time.as_ref().map(|time| time.0)
}

/// Looks at all pods of a job that has not finished.
pub(crate) fn count(job: &Job, spec: &JobSpec, owned: &[Arc<Pod>], now: Timestamp) -> Count {
    let suspended = spec.suspend == Some(true);
    let mut status = job.status.clone().unwrap_or_default();
    let Ended {
        recorded,
        done,
        lost,
        fatal,
    } = count_ended(&mut status, spec, owned);
    let number = |items: usize| i32::try_from(items).unwrap_or(i32::MAX);
    let active = owned.iter().filter(|pod| is_active(pod)).count();
    let ready = owned.iter().filter(|pod| is_active(pod) && is_ready(pod)).count();
    let terminating = owned
        .iter()
        .filter(|pod| is_terminating(pod) && !is_terminal(pod))
        .count();
    status.active = Some(number(active)).filter(|active| *active != 0);
    status.ready = Some(number(ready));
    status.terminating = Some(number(terminating));
    if suspended {
        status.start_time = None;
    } else if status.start_time.is_none() {
        status.start_time = Some(wire(now));
    }
    let indexed = is_indexed(spec);
    let mut count = Count {
        status,
        recorded,
        ending: false,
        suspended,
        indexed,
        done,
        lost,
        fatal,
        wait: None,
        last_failure: last_failure(spec, owned),
    };
    suspension(&mut count, now);
    conclude(&mut count, spec, active + terminating, now);
    count.status.conditions = count.status.conditions.filter(|all| !all.is_empty());
    count
}

/// What the pods that have ended tell.
struct Ended {
    recorded: BTreeSet<String>,
    done: BTreeSet<i32>,
    lost: BTreeSet<i32>,
    fatal: Option<String>,
}

/// Numbers for pods whose finalizer is gone, uids for those that have newly ended.
fn count_ended(status: &mut JobStatus, spec: &JobSpec, owned: &[Arc<Pod>]) -> Ended {
    let uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut succeeded, mut failed) = (
        uncounted.succeeded.unwrap_or_default(),
        uncounted.failed.unwrap_or_default(),
    );
    let mut recorded: BTreeSet<String> = succeeded.iter().chain(&failed).cloned().collect();
    let mut lost = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default());
    let mut fatal = None;
    let tracked = |uid: &String| {
        owned
            .iter()
            .any(|pod| pod.metadata.uid.as_ref() == Some(uid) && has_finalizer(pod))
    };
    let before = (succeeded.len(), failed.len());
    succeeded.retain(tracked);
    failed.retain(tracked);
    status.succeeded = add(status.succeeded, before.0 - succeeded.len());
    status.failed = add(status.failed, before.1 - failed.len());
    let mut done = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
    for pod in owned.iter().filter(|pod| has_finalizer(pod)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if recorded.contains(&uid) {
            continue;
        }
        if phase(pod) == "Succeeded" {
            done.extend(index_of(pod));
            succeeded.push(uid);
        } else if is_ended(pod, spec) {
            match failures::outcome(spec, pod) {
                Outcome::Ignored => drop(recorded.insert(uid)),
                outcome => {
                    if let Outcome::FailsJob(why) = outcome {
                        fatal.get_or_insert(why);
                    }
                    lost.extend(index_of(pod).filter(|_| failures::ends_index(spec, pod)));
                    failed.push(uid);
                }
            }
        }
    }
    lost.retain(|index| !done.contains(index));
    if spec.backoff_limit_per_index.is_some() {
        status.failed_indexes = Some(indexes::format(&lost));
    }
    if is_indexed(spec) {
        // Indexes count, not pods: one may have succeeded twice.
        status.completed_indexes = Some(indexes::format(&done)).filter(|text| !text.is_empty());
        status.succeeded = add(None, done.len());
    }
    let some = |uids: Vec<String>| Some(uids).filter(|uids| !uids.is_empty());
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: some(succeeded),
        failed: some(failed),
    });
    Ended {
        recorded,
        done,
        lost,
        fatal,
    }
}

fn last_failure(spec: &JobSpec, owned: &[Arc<Pod>]) -> Option<Timestamp> {
    let counts = |pod: &Pod| failures::outcome(spec, pod) != Outcome::Ignored;
    let failed = owned.iter().filter(|pod| phase(pod) == "Failed" && counts(pod));
    failed.filter_map(|pod| ended_at(pod)).max()
}

/// When the last container of a pod ended; when the pod was made if nobody says.
pub(crate) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|container| {
        container
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .finished_at
            .as_ref()
    });
    let born = pod.metadata.creation_timestamp.as_ref();
    ends.max().or(born).map(|time| time.0)
}

fn add(held: Option<i32>, more: usize) -> Option<i32> {
    let sum = held
        .unwrap_or(0)
        .saturating_add(i32::try_from(more).unwrap_or(i32::MAX));
    Some(sum).filter(|sum| *sum != 0)
}

/// Whether a pod is over for the job. One that somebody else is deleting counts as failed, unless only pods that have
/// really failed are to be replaced.
fn is_ended(pod: &Pod, spec: &JobSpec) -> bool {
    let waits = spec.pod_replacement_policy.as_deref() == Some("Failed");
    is_terminal(pod) || (is_terminating(pod) && !waits)
}

/// Keeps the condition `Suspended` in step.
fn suspension(count: &mut Count, now: Timestamp) {
    let all = count.status.conditions.get_or_insert_default();
    let held = all.iter().position(|condition| condition.type_ == "Suspended");
    let is = held.map(|index| all[index].status == "True");
    let new = match (count.suspended, is) {
        (true, None | Some(false)) => new_condition("Suspended", "JobSuspended", "Job suspended", now),
        (false, Some(true)) => {
            let resumed = new_condition("Suspended", "JobResumed", "Job resumed", now);
            JobCondition {
                status: "False".to_owned(),
                ..resumed
            }
        }
        _ => return,
    };
    match held {
        Some(index) => all[index] = new,
        None => all.push(new),
    }
}

fn new_condition(type_: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(wire(now)),
        last_transition_time: Some(wire(now)),
    }
}

/// Decides whether the job has met its end; it is over when then no pod is left.
fn conclude(count: &mut Count, spec: &JobSpec, pods_left: usize, now: Timestamp) {
    let held = count.status.conditions.iter().flatten();
    let met = held
        .into_iter()
        .find(|c| c.type_ == "SuccessCriteriaMet" || c.type_ == "FailureTarget")
        .cloned();
    let Some(target) = met.or_else(|| target(count, spec, now)) else {
        return;
    };
    count.ending = true;
    count.wait = None;
    let all = count.status.conditions.get_or_insert_default();
    let (type_, reason) = (target.type_.clone(), target.reason.clone().unwrap_or_default());
    let message = target.message.clone().unwrap_or_default();
    if !all.iter().any(|condition| condition.type_ == type_) {
        all.push(target);
    }
    let counted = count
        .status
        .uncounted_terminated_pods
        .as_ref()
        .is_none_or(|uncounted| uncounted.succeeded.is_none() && uncounted.failed.is_none());
    if pods_left > 0 || !counted {
        return;
    }
    if type_ == "FailureTarget" {
        all.push(new_condition("Failed", &reason, &message, now));
    } else {
        all.push(new_condition("Complete", &reason, &message, now));
        count.status.completion_time = Some(wire(now));
    }
}

/// Whether indexes that have failed end the job: more than allowed, or all others are done.
fn lost_too_many(count: &Count, spec: &JobSpec) -> Option<(&'static str, &'static str)> {
    let lost = length_of(&count.lost);
    if spec.max_failed_indexes.is_some_and(|most| lost > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(("MaxFailedIndexesExceeded", message));
    }
    let all = spec
        .completions
        .is_some_and(|all| lost > 0 && lost + length_of(&count.done) >= all);
    all.then_some(("FailedIndexes", "Job has failed indexes"))
}

fn length_of(indexes: &BTreeSet<i32>) -> i32 {
    i32::try_from(indexes.len()).unwrap_or(i32::MAX)
}

/// What ends the job, if something does.
fn target(count: &mut Count, spec: &JobSpec, now: Timestamp) -> Option<JobCondition> {
    let failed = |reason, message: &str| Some(new_condition("FailureTarget", reason, message, now));
    if let Some(why) = count.fatal.take() {
        return failed("PodFailurePolicy", &why);
    }
    if count.failed() > spec.backoff_limit.unwrap_or(6) {
        return failed(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    if let Some(rule) = failures::success(spec, &count.done).filter(|_| !count.suspended) {
        let message = format!("Matched rules at index {rule}");
        return Some(new_condition(
            "SuccessCriteriaMet",
            "SuccessPolicy",
            &message,
            now,
        ));
    }
    if let Some((reason, message)) = lost_too_many(count, spec) {
        return failed(reason, message);
    }
    let active = count.status.active.unwrap_or(0);
    let done = match spec.completions {
        Some(completions) => count.succeeded() >= completions,
        // Without a number, one success ends it as soon as the rest has ended.
        None => count.succeeded() > 0 && active == 0,
    };
    if done && !count.suspended {
        let message = "Reached expected number of succeeded pods";
        return Some(new_condition(
            "SuccessCriteriaMet",
            "CompletionsReached",
            message,
            now,
        ));
    }
    let (deadline, started) = (spec.active_deadline_seconds?, count.status.start_time.as_ref()?.0);
    match left(started, seconds(deadline), now) {
        Some(wait) => {
            count.wait = Some(wait);
            None
        }
        None => failed(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ),
    }
}
