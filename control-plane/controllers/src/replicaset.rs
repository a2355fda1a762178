//! ReplicaSet and ReplicationController: as many pods as wanted
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>).
//!
//! The older kind differs in the wire form of its selector, its status and its conditions only: see [`Replicating`].

mod controller;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::{Action, EventKind, Kubernetes, Plan};

use crate::ownership::{Claim, claim, controller_ref};
use crate::pod::{
    Availability, availability, is_active, is_ready, is_terminating, node_name, phase, ready_since,
};
use crate::selector::{Labels, is_empty};
use crate::{template, time};

/// Pods that one plan creates or deletes at most.
const BURST: usize = 500;

/// A kind that keeps a number of pods.
pub trait Replicating: Kubernetes {
    /// What it asks for; `None` without a spec.
    fn wanted(&self) -> Option<ReplicaSetSpec>;
    /// Its status, in the words of ReplicaSet.
    fn observed_status(&self) -> ReplicaSetStatus;
    /// Takes out what its status cannot say.
    fn normal(_: &mut ReplicaSetStatus) {}
    /// The write that makes `status` its status.
    fn write(&self, status: ReplicaSetStatus) -> Action;
}

impl Replicating for ReplicaSet {
    fn wanted(&self) -> Option<ReplicaSetSpec> {
        self.spec.clone()
    }

    fn observed_status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn write(&self, status: ReplicaSetStatus) -> Action {
        Action::status(self, &status)
    }
}

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed<S = ReplicaSet> {
    /// The replica set, or replication controller.
    pub set: Arc<S>,
    /// Pods of its namespace: at least its own and those without a controller.
    pub pods: Vec<Arc<Pod>>,
    /// What the last attempt failed with, if it failed.
    pub last_failure: Option<String>,
}

/// What to do next for a replica set or a replication controller.
#[must_use]
pub fn plan<S: Replicating>(observed: &Observed<S>, now: Timestamp) -> Plan {
    let set = observed.set.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = set.wanted().filter(|spec| !is_empty(&spec.selector)) else {
        return plan;
    };
    let Claim { owned, patches } = claim(set, &spec.selector, &observed.pods);
    let changes_ownership = !patches.is_empty();
    plan.together(patches);
    let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    let deleting = set.metadata().deletion_timestamp.is_some();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let mut manage = Plan::nothing();
    if !deleting && !changes_ownership {
        manage = scale(set, &spec, &active, wanted);
    }
    // When pods change now, the status follows from that change; unless they cannot be changed, which it has to tell.
    if manage.is_empty() || observed.last_failure.is_some() {
        write_status(&mut plan, observed, &spec, &owned, now);
    }
    if let Some(message) = observed.last_failure.as_deref().filter(|_| !manage.is_empty()) {
        plan.then(Action::event(set, EventKind::Warning, "FailedCreate", message));
    }
    plan.extend(manage);
    plan
}

fn scale<S: Replicating>(set: &S, spec: &ReplicaSetSpec, active: &[Arc<Pod>], wanted: usize) -> Plan {
    let mut plan = Plan::nothing();
    if active.len() < wanted {
        plan.together((active.len()..wanted).take(BURST).map(|_| creation(set, spec)));
    } else {
        let surplus = surplus(active, active.len() - wanted);
        plan.together(surplus.iter().map(|pod| Action::delete(pod.as_ref())));
        plan.together(surplus.iter().map(|pod| {
            let message = format!(
                "Deleted pod: {}",
                pod.metadata.name.as_deref().unwrap_or_default()
            );
            Action::event(set, EventKind::Normal, "SuccessfulDelete", message)
        }));
    }
    plan
}

fn creation<S: Replicating>(set: &S, spec: &ReplicaSetSpec) -> Action {
    let template = spec.template.clone().unwrap_or_default();
    let meta = set.metadata();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let prefix = meta.name.as_deref().unwrap_or_default();
    Action::create(&template::pod(&template, namespace, prefix, controller_ref(set)))
}

/// The `count` pods that are missed least: not yet placed, not running, not ready, cheap to delete, several on one
/// node, ready for a short time, restarted often, young.
fn surplus(active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in active {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let mut ranked: Vec<&Arc<Pod>> = active.iter().collect();
    ranked.sort_by_cached_key(|pod| rank(pod, on_node.get(node_name(pod)).copied().unwrap_or(0)));
    ranked.into_iter().take(count.min(BURST)).cloned().collect()
}

type Rank = (
    bool,
    u8,
    bool,
    i32,
    Reverse<usize>,
    Reverse<Option<Timestamp>>,
    Reverse<i32>,
    Reverse<Option<Timestamp>>,
);

fn rank(pod: &Pod, on_node: usize) -> Rank {
    let phase = match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let restarts = statuses
        .map(|container| container.restart_count)
        .max()
        .unwrap_or(0);
    let born = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let placed = !node_name(pod).is_empty();
    (
        placed,
        phase,
        is_ready(pod),
        deletion_cost(pod),
        Reverse(on_node),
        Reverse(ready_since(pod)),
        Reverse(restarts),
        Reverse(born),
    )
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn write_status<S: Replicating>(
    plan: &mut Plan,
    observed: &Observed<S>,
    spec: &ReplicaSetSpec,
    owned: &[Arc<Pod>],
    now: Timestamp,
) {
    let set = observed.set.as_ref();
    let old = set.observed_status();
    let (mut status, wait) = status(spec, owned, now);
    status.observed_generation = set.metadata().generation;
    let failure = observed.last_failure.as_deref();
    status.conditions = conditions(&old, failure, owned, spec.replicas.unwrap_or(1), now);
    if let Some(wait) = wait {
        plan.requeue(wait);
    }
    S::normal(&mut status);
    if status != old {
        plan.then(set.write(status));
    }
}

fn status(
    spec: &ReplicaSetSpec,
    owned: &[Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let min_ready = time::seconds(spec.min_ready_seconds.unwrap_or(0));
    let template = spec
        .template
        .as_ref()
        .and_then(|template| template.metadata.as_ref());
    let labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let active = || owned.iter().filter(|pod| is_active(pod));
    let available: Vec<_> = active().map(|pod| availability(pod, min_ready, now)).collect();
    let wait = available
        .iter()
        .filter_map(|a| {
            if let Availability::In(wait) = a {
                Some(*wait)
            } else {
                None
            }
        })
        .min();
    let terminating = owned
        .iter()
        .filter(|pod| is_terminating(pod) && !crate::pod::is_terminal(pod));
    let status = ReplicaSetStatus {
        replicas: count(active()),
        fully_labeled_replicas: some(count(active().filter(|pod| has_labels(pod, &labels)))),
        ready_replicas: some(count(active().filter(|pod| is_ready(pod)))),
        available_replicas: some(count(available.iter().filter(|a| **a == Availability::Available))),
        terminating_replicas: Some(count(terminating)),
        observed_generation: None,
        conditions: None,
    };
    (status, wait)
}

fn has_labels(pod: &Pod, labels: &Labels) -> bool {
    labels
        .iter()
        .all(|(key, value)| pod.metadata.labels.as_ref().and_then(|all| all.get(key)) == Some(value))
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

/// The API leaves zeros out.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

fn conditions(
    old: &ReplicaSetStatus,
    failure: Option<&str>,
    owned: &[Arc<Pod>],
    wanted: i32,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut all = old.conditions.clone().unwrap_or_default();
    let active = count(owned.iter().filter(|pod| is_active(pod)));
    match failure {
        _ if active == wanted => all.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some(_) if all.iter().any(|condition| condition.type_ == "ReplicaFailure") => {}
        Some(message) => all.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(
                if active < wanted {
                    "FailedCreate"
                } else {
                    "FailedDelete"
                }
                .to_owned(),
            ),
            message: Some(message.to_owned()),
            last_transition_time: Some(time::wire(now)),
        }),
        None => {}
    }
    Some(all).filter(|all| !all.is_empty())
}
