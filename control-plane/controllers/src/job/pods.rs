//! The pods of a job: how many, which, and how they are made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use machinery_plan::{Action, Plan};
use serde_json::json;

use super::TRACKING;
use super::failures::{INDEX_FAILURES, failures_of};
use super::status::{Count, ended_at};
use crate::ownership::controller_ref;
use crate::pod::{is_active, is_ready, phase};
use crate::template;
use crate::time::left;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// First and longest wait before a failed pod is replaced.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Pods that one plan creates at most.
const BURST: usize = 500;

pub(crate) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(crate) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == TRACKING)
}

pub(crate) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Takes the job's finalizer from a pod that has it.
pub(crate) fn without_finalizer(pod: &Arc<Pod>) -> Option<Action> {
    has_finalizer(pod).then(|| {
        let rest: Vec<_> = pod
            .metadata
            .finalizers
            .iter()
            .flatten()
            .filter(|held| *held != TRACKING)
            .collect();
        Action::merge(pod.as_ref(), json!({"metadata": {"finalizers": rest}}))
    })
}

/// Creates what is missing and deletes what is too much.
pub(crate) fn manage(
    plan: &mut Plan,
    job: &Job,
    spec: &JobSpec,
    count: &Count,
    owned: &[Arc<Pod>],
    now: Timestamp,
) {
    let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    let wanted = if count.ending || count.suspended {
        0
    } else {
        wanted(spec, count, active.len())
    };
    let (keep, surplus) = split(spec, count, &active, wanted);
    // A pod that we delete is no failure: it loses the finalizer first and is never counted.
    plan.together(surplus.iter().filter_map(without_finalizer));
    plan.together(surplus.iter().map(|pod| Action::delete(pod.as_ref())));
    let missing = wanted.saturating_sub(keep.len());
    if missing == 0 {
        return;
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    if let Some(wait) = backoff(count, &active, now).filter(|_| !per_index) {
        plan.requeue(wait);
        return;
    }
    if is_indexed(spec) {
        let used: BTreeSet<i32> = keep.iter().filter_map(|pod| index_of(pod)).collect();
        let free = free_indexes(plan, spec, count, owned, &used, now);
        let new = free.into_iter().take(missing.min(BURST)).map(|index| {
            let mut pod = pod(job, spec, Some(index));
            if per_index {
                let failures = failures_of(spec, owned, index).to_string();
                let annotations = pod.metadata.annotations.get_or_insert_default();
                annotations.insert(INDEX_FAILURES.to_owned(), failures);
            }
            Action::create(&pod)
        });
        plan.together(new);
    } else {
        plan.together((0..missing.min(BURST)).map(|_| Action::create(&pod(job, spec, None))));
    }
}

/// Indexes that need a pod. With a limit per index each index waits for itself after it has failed; the plan looks
/// again when the first may go on.
fn free_indexes(
    plan: &mut Plan,
    spec: &JobSpec,
    count: &Count,
    owned: &[Arc<Pod>],
    used: &BTreeSet<i32>,
    now: Timestamp,
) -> Vec<i32> {
    let all = 0..spec.completions.unwrap_or(0);
    let mut free: Vec<i32> = all
        .filter(|index| !used.contains(index) && !count.done.contains(index) && !count.lost.contains(index))
        .collect();
    if spec.backoff_limit_per_index.is_some() {
        free.retain(|index| {
            let wait = backoff_of_index(spec, owned, *index, now);
            wait.inspect(|wait| plan.requeue(*wait)).is_none()
        });
    }
    free
}

fn backoff_of_index(spec: &JobSpec, owned: &[Arc<Pod>], index: i32, now: Timestamp) -> Option<Duration> {
    let failed = owned
        .iter()
        .filter(|pod| index_of(pod) == Some(index) && phase(pod) == "Failed");
    let last = failed.filter_map(|pod| ended_at(pod)).max()?;
    left(last, grown(failures_of(spec, owned, index)), now)
}

/// The wait after so many failures.
fn grown(failures: i32) -> Duration {
    let (first, cap) = BACKOFF;
    match u32::try_from(failures).unwrap_or(0) {
        0 => Duration::ZERO,
        failures => first.saturating_mul(1 << (failures - 1).min(10)).min(cap),
    }
}

/// How many pods should be active.
fn wanted(spec: &JobSpec, count: &Count, active: usize) -> usize {
    let number = |number: i32| usize::try_from(number).unwrap_or(0);
    let parallel = number(spec.parallelism.unwrap_or(1));
    match spec.completions {
        Some(completions) => {
            let lost = i32::try_from(count.lost.len()).unwrap_or(i32::MAX);
            parallel.min(number(completions - count.succeeded() - lost))
        }
        // Once one pod has found the work done, no new ones start.
        None if count.succeeded() > 0 => active.min(parallel),
        None => parallel,
    }
}

/// Pods to keep and pods to delete: done or double indexes go, then the least advanced.
fn split(
    spec: &JobSpec,
    count: &Count,
    active: &[Arc<Pod>],
    wanted: usize,
) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let mut ranked: Vec<_> = active.to_vec();
    ranked.sort_by_key(|pod| {
        (
            !is_ready(pod),
            phase(pod) != "Running",
            pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
        )
    });
    let (mut keep, mut surplus, mut used) = (Vec::new(), Vec::new(), BTreeSet::new());
    for pod in ranked {
        let fits = !is_indexed(spec)
            || index_of(&pod).is_some_and(|index| {
                let over = count.done.contains(&index) || count.lost.contains(&index);
                index < spec.completions.unwrap_or(0) && !over && used.insert(index)
            });
        if fits && keep.len() < wanted {
            keep.push(pod)
        } else {
            surplus.push(pod)
        }
    }
    (keep, surplus)
}

/// How long failures hold up new pods, counted from when the job last changed by one.
fn backoff(count: &Count, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let last = count.last_failure?;
    if count.failed() == 0 || !active.is_empty() && count.succeeded() > 0 {
        return None;
    }
    left(last, grown(count.failed()), now)
}

fn pod(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let prefix = index.map_or(name.to_owned(), |index| format!("{name}-{index}"));
    let mut pod = template::pod(&spec.template, namespace, &prefix, controller_ref(job));
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(TRACKING.to_owned());
    if let Some(index) = index {
        let text = index.to_string();
        pod.metadata
            .annotations
            .get_or_insert_default()
            .insert(INDEX.to_owned(), text.clone());
        pod.metadata
            .labels
            .get_or_insert_default()
            .insert(INDEX.to_owned(), text);
        name_index(&mut pod, prefix);
    }
    pod
}

/// Containers of an indexed job learn their index, and the pod has a host name that follows from it.
fn name_index(pod: &mut Pod, hostname: String) {
    let Some(spec) = &mut pod.spec else { return };
    spec.hostname.get_or_insert(hostname);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|variable| variable.name == "JOB_COMPLETION_INDEX") {
            continue;
        }
        let field_path = format!("metadata.labels['{INDEX}']");
        let field_ref = Some(ObjectFieldSelector {
            field_path,
            ..ObjectFieldSelector::default()
        });
        let value_from = Some(EnvVarSource {
            field_ref,
            ..EnvVarSource::default()
        });
        env.push(EnvVar {
            name: "JOB_COMPLETION_INDEX".to_owned(),
            value: None,
            value_from,
        });
    }
}
