//! The scheduler's edge: feeds what the watches show to the planner, binds what it decides.

use control_plane_scheduler::{Change, Cluster, DEFAULT_SCHEDULER, Decision, PodInfo, Queue, Unschedulable};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use machinery_client::{Cache, Change as Observed};
use machinery_lifecycle::Shutdown;
use machinery_plan::{Action, EventKind, Key, Plan};
use machinery_reconcile::{Executor, Failure, FailureKind};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// Bindings under way at a time; the scheduler goes on choosing meanwhile.
const BINDINGS: usize = 64;

/// The caches that the scheduler reads; shared with the controllers.
#[derive(Clone)]
pub struct Sources {
    pub pods: Cache<Pod>,
    pub nodes: Cache<Node>,
    pub namespaces: Cache<Namespace>,
}

/// What the watch handlers write and the loop reads.
#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: Queue,
    /// Pods bound by us whose binding the watch has not shown yet, with their uid.
    assumed: HashMap<(String, String), String>,
}

#[derive(Clone, Default)]
struct Shared {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }
}

/// Schedules pods until asked to stop. Nothing is placed before nodes, pods and namespaces have been seen once.
pub async fn run(sources: Sources, executor: Executor, shutdown: Shutdown) {
    let shared = Shared::default();
    follow(&sources, &shared);
    let ready = async {
        sources.namespaces.synced().await;
        sources.nodes.synced().await;
        sources.pods.synced().await;
        schedule_all(&shared, &executor.named(DEFAULT_SCHEDULER)).await;
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = ready => {}
    }
}

/// Lets the caches tell the planner of each change.
fn follow(sources: &Sources, shared: &Shared) {
    let to = shared.clone();
    sources.namespaces.on_change(move |seen: &Observed<Namespace>| {
        to.change(|state| match &seen.new {
            Some(namespace) => state.cluster.upsert_namespace(namespace),
            None => state.cluster.remove_namespace(&seen.key.name),
        });
    });
    let to = shared.clone();
    sources.nodes.on_change(move |seen: &Observed<Node>| {
        to.change(|state| state.node_seen(seen));
    });
    let to = shared.clone();
    sources.pods.on_change(move |seen: &Observed<Pod>| {
        to.change(|state| state.pod_seen(seen));
    });
}

impl State {
    fn node_seen(&mut self, seen: &Observed<Node>) {
        match &seen.new {
            Some(node) => {
                self.cluster.upsert_node(node);
                if seen.old.as_ref().is_none_or(|old| matters(old, node)) {
                    self.queue.changed(Change::Node, Timestamp::now());
                }
            }
            None => self.cluster.remove_node(&seen.key.name),
        }
    }

    fn pod_seen(&mut self, seen: &Observed<Pod>) {
        let key = (seen.key.namespace.clone(), seen.key.name.clone());
        let now = Timestamp::now();
        let Some(pod) = &seen.new else {
            self.forget(&key);
            self.queue.changed(Change::PodGone, now);
            return;
        };
        let phase = pod
            .status
            .as_ref()
            .and_then(|s| s.phase.as_deref())
            .unwrap_or_default();
        let ended = phase == "Succeeded" || phase == "Failed";
        let placed = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .is_some_and(|n| !n.is_empty());
        if placed || ended {
            self.assumed.remove(&key);
            self.queue.remove(&key);
            self.cluster.upsert_pod(pod.clone());
            self.queue
                .changed(if ended { Change::PodGone } else { Change::PodPlaced }, now);
        } else if self.assumed.get(&key) != pod.metadata.uid.as_ref() {
            self.waiting(&key, pod);
        }
    }

    /// A pod without a node: ours to place, unless it is going away or asks for another scheduler.
    fn waiting(&mut self, key: &(String, String), pod: &Arc<Pod>) {
        let ours = pod
            .spec
            .as_ref()
            .and_then(|s| s.scheduler_name.as_deref())
            .unwrap_or(DEFAULT_SCHEDULER);
        if ours == DEFAULT_SCHEDULER && pod.metadata.deletion_timestamp.is_none() {
            self.queue.upsert(Arc::new(PodInfo::new(pod.clone())));
        } else {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &(String, String)) {
        self.assumed.remove(key);
        self.queue.remove(key);
        self.cluster.remove_pod(key);
    }

    /// The next pod and what to do with it; the pod counts on its node from now on.
    fn next(&mut self) -> Option<(Arc<PodInfo>, Decision)> {
        let now = Timestamp::now();
        let pod = self.queue.pop(now)?;
        let decision = self.cluster.schedule(&pod, fastrand::u64(..));
        match &decision {
            Decision::Node(node) => {
                self.cluster.assume(&pod, node);
                self.assumed.insert(pod.key(), pod.uid.clone());
            }
            Decision::Unschedulable(_) => self.queue.unschedulable(&pod.key(), now),
        }
        Some((pod, decision))
    }
}

/// Whether a node's change can make a difference to a pod that did not fit; heartbeats do not.
fn matters(old: &Node, new: &Node) -> bool {
    let offers = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || offers(old) != offers(new)
}

/// One pod after the other; bindings go on beside it.
async fn schedule_all(shared: &Shared, executor: &Executor) {
    let permits = Arc::new(Semaphore::new(BINDINGS));
    let mut work = JoinSet::new();
    loop {
        while work.try_join_next().is_some() {}
        let permit = permits
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let Some((pod, decision)) = shared.lock().next() else {
            drop(permit);
            wait(shared).await;
            continue;
        };
        let (shared, executor) = (shared.clone(), executor.clone());
        work.spawn(async move {
            match decision {
                Decision::Node(node) => bind(&shared, &executor, &pod, &node).await,
                Decision::Unschedulable(why) => report(&executor, &pod, why).await,
            }
            drop(permit);
        });
    }
}

/// Until something changes or a back-off ends.
async fn wait(shared: &Shared) {
    let next = shared.lock().queue.next_time();
    match next {
        None => shared.wake.notified().await,
        Some(at) => {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            // The queue's own times; a change ends the wait earlier.
            let _ = tokio::time::timeout(left, shared.wake.notified()).await;
        }
    }
}

async fn bind(shared: &Shared, executor: &Executor, pod: &PodInfo, node: &str) {
    let result = executor.carry_out(&plan(Action::bind(&pod.pod, node))).await;
    match result {
        Ok(()) => {
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            let event = Action::event(pod.pod.as_ref(), EventKind::Normal, "Scheduled", message);
            log_failure(executor.carry_out(&plan(event)).await);
        }
        Err(failure) => {
            tracing::debug!(pod = %Key::new(&*pod.namespace, &*pod.name), %failure, "binding refused");
            shared.change(|state| unbind(state, pod, failure.kind));
        }
    }
}

/// A refused binding gives the place back. The pod is tried again unless it is gone or another one.
fn unbind(state: &mut State, pod: &PodInfo, kind: FailureKind) {
    let key = pod.key();
    if state.assumed.get(&key) == Some(&pod.uid) {
        state.assumed.remove(&key);
        state.cluster.remove_pod(&key);
    }
    if kind == FailureKind::NotFound {
        state.queue.remove(&key);
    } else {
        state.queue.retry(&key, Timestamp::now());
    }
}

/// Says on the pod why it waits, and makes room for it where that is allowed.
async fn report(executor: &Executor, pod: &PodInfo, why: Unschedulable) {
    let mut actions = vec![Action::event(
        pod.pod.as_ref(),
        EventKind::Warning,
        "FailedScheduling",
        why.message.clone(),
    )];
    let mut status = json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why.message,
        "lastProbeTime": null, "lastTransitionTime": Timestamp::now().round(jiff::Unit::Second).unwrap_or_default(),
    }]});
    if let Some(preemption) = why.preemption {
        status["nominatedNodeName"] = json!(preemption.node);
        for victim in preemption.victims.iter().filter(|v| !v.terminating) {
            let message = format!("Preempted by pod {} on node {}", pod.uid, preemption.node);
            actions.push(Action::event(
                victim.pod.as_ref(),
                EventKind::Normal,
                "Preempted",
                message,
            ));
            actions.push(Action::patch_status(victim.pod.as_ref(), disruption_target()));
            actions.push(Action::delete(victim.pod.as_ref()));
        }
    }
    if !already_said(pod, &status) {
        actions.push(Action::patch_status(pod.pod.as_ref(), status));
    }
    for action in actions {
        log_failure(executor.carry_out(&plan(action)).await);
    }
}

fn disruption_target() -> serde_json::Value {
    json!({"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": Timestamp::now().round(jiff::Unit::Second).unwrap_or_default(),
    }]})
}

/// Writing the same condition again would only wake every watcher.
fn already_said(pod: &PodInfo, status: &serde_json::Value) -> bool {
    let present = pod.pod.status.clone().unwrap_or_default();
    let wanted = &status["conditions"][0];
    let nominated = status.get("nominatedNodeName").and_then(|n| n.as_str());
    present.nominated_node_name.as_deref() == nominated
        && present.conditions.iter().flatten().any(|c| {
            c.type_ == "PodScheduled"
                && c.status == "False"
                && c.message.as_deref() == wanted["message"].as_str()
        })
}

fn plan(action: Action) -> Plan {
    let mut plan = Plan::nothing();
    plan.then(action);
    plan
}

fn log_failure(result: Result<(), Failure>) {
    if let Err(failure) = result {
        tracing::debug!(%failure, "a scheduling report was refused");
    }
}
