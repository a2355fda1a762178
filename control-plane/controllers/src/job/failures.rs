//! What a failed pod means for its job: the pod failure policy and the limits per index
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy>).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::pods::index_of;
use crate::pod::{condition, is_terminal, phase};

/// How often the index of a pod had failed before the pod was made, for jobs with a limit per index.
pub(crate) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// What a failed pod brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It counts against the limits.
    Counts,
    /// It is as if it had not been.
    Ignored,
    /// Its index has failed.
    FailsIndex,
    /// The job has failed, for this reason in words.
    FailsJob(String),
}

/// What the policy of the job says about a pod that has ended without success.
pub(crate) fn outcome(spec: &JobSpec, pod: &Pod) -> Outcome {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(why) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Outcome::Ignored,
            "FailIndex" => Outcome::FailsIndex,
            "FailJob" => Outcome::FailsJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Outcome::Counts,
        };
    }
    Outcome::Counts
}

/// What made a rule match, in words.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let meta = &pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let whole = format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = containers(pod).find_map(|status| {
            let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
            exits_as(codes, status, code).then_some((&status.name, code))
        })?;
        return Some(format!(
            "Container {container} for pod {whole} failed with exit code {code}"
        ));
    }
    let wanted = rule.on_pod_conditions.iter().flatten();
    let met = wanted.into_iter().find(|wanted| {
        let status = wanted.status.as_deref().unwrap_or("True");
        condition(pod, &wanted.type_).is_some_and(|held| held.status == status)
    })?;
    Some(format!("Pod {whole} has condition {}", met.type_))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let all = pod.status.iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        status.container_statuses.iter().flatten().chain(init)
    });
    all.into_iter()
}

/// Success is never a failure, whatever the codes of a rule.
fn exits_as(codes: &PodFailurePolicyOnExitCodesRequirement, status: &ContainerStatus, code: i32) -> bool {
    let ours = codes
        .container_name
        .as_ref()
        .is_none_or(|name| *name == status.name);
    let listed = codes.values.contains(&code);
    code != 0 && ours && if codes.operator == "In" { listed } else { !listed }
}

/// How often the index of `pod` had failed before.
pub(crate) fn failures_before(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let count = annotations.and_then(|all| all.get(INDEX_FAILURES));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// How often the index of a failed pod has failed with it.
fn failures_with(spec: &JobSpec, pod: &Pod) -> i32 {
    let counts = i32::from(outcome(spec, pod) != Outcome::Ignored);
    failures_before(pod).saturating_add(counts)
}

/// How often an index has failed, as the pods that are still there tell.
pub(crate) fn failures_of(spec: &JobSpec, owned: &[Arc<Pod>], index: i32) -> i32 {
    let failed = owned
        .iter()
        .filter(|pod| index_of(pod) == Some(index) && phase(pod) == "Failed");
    failed.map(|pod| failures_with(spec, pod)).max().unwrap_or(0)
}

/// Whether the failure of this pod is the end of its index.
pub(crate) fn ends_index(spec: &JobSpec, pod: &Pod) -> bool {
    match (spec.backoff_limit_per_index, outcome(spec, pod)) {
        (None, _) | (_, Outcome::Ignored) => false,
        (Some(_), Outcome::FailsIndex | Outcome::FailsJob(_)) => true,
        (Some(limit), Outcome::Counts) => failures_before(pod) >= limit,
    }
}

/// Whether a counted pod has to stay because it alone knows how often its index has failed.
pub(crate) fn is_witness(spec: &JobSpec, pod: &Pod, owned: &[Arc<Pod>], over: &BTreeSet<i32>) -> bool {
    let (Some(_), Some(index)) = (spec.backoff_limit_per_index, index_of(pod)) else {
        return false;
    };
    let known = failures_with(spec, pod);
    let replaced = owned.iter().any(|other| {
        let (same, other_pod) = (
            index_of(other) == Some(index),
            other.metadata.uid != pod.metadata.uid,
        );
        same && other_pod
            && failures_before(other) >= known
            && (known > failures_before(pod) || !is_terminal(other))
    });
    phase(pod) == "Failed" && !over.contains(&index) && !replaced
}

/// The rule of the success policy that is met, by its number.
pub(crate) fn success(spec: &JobSpec, done: &BTreeSet<i32>) -> Option<usize> {
    let rules = &spec.success_policy.as_ref()?.rules;
    rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(super::indexes::parse);
        let counted = wanted
            .as_ref()
            .map_or(done.len(), |wanted| wanted.intersection(done).count());
        let number = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
        let needed = number.or_else(|| wanted.as_ref().map(BTreeSet::len));
        needed.is_some_and(|needed| counted >= needed)
    })
}
