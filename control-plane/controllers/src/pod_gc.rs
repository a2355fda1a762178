//! Collecting pods that nobody else will: on nodes that are gone, never placed but being deleted, and ended ones beyond
//! a number.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::{Action, Plan};
use serde_json::json;

use crate::pod::{is_terminal, is_terminating, node_name};
use crate::time::left;

/// How long a node has to be gone before its pods are collected: it may be registering anew.
pub const QUARANTINE: Duration = Duration::from_secs(40);

/// Ended pods that are kept.
pub const ENDED_KEPT: usize = 12_500;

/// Where the node of a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// The pod is on no node.
    Unplaced,
    /// The node exists.
    Exists,
    /// The node has been missing since then.
    MissingSince(Timestamp),
}

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its node.
    pub node: NodeState,
}

/// Collects one pod, if it is to be.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let pod = observed.pod.as_ref();
    match observed.node {
        NodeState::Unplaced if is_terminating(pod) => plan.then(force(pod)),
        NodeState::MissingSince(since) => match left(since, QUARANTINE, now) {
            Some(wait) => plan.requeue(wait),
            None => {
                if !is_terminal(pod) {
                    plan.then(fail(pod, now));
                }
                plan.then(force(pod));
            }
        },
        NodeState::Unplaced | NodeState::Exists => {}
    }
    plan
}

/// A pod whose node is gone has failed; nobody else can say so any more.
fn fail(pod: &Pod, now: Timestamp) -> Action {
    let message = format!("PodGC: node no longer exists: {}", node_name(pod));
    let target = crate::condition::patch("DisruptionTarget", "True", "DeletionByPodGC", &message, now);
    Action::patch_status(pod, json!({"phase": "Failed", "conditions": [target]}))
}

fn force(pod: &Pod) -> Action {
    Action::delete_with(pod, None, Some(0))
}

/// Collects the oldest ended pods beyond `kept`.
#[must_use]
pub fn plan_ended(pods: &[Arc<Pod>], kept: usize) -> Plan {
    let mut plan = Plan::nothing();
    let mut ended: Vec<_> = pods
        .iter()
        .filter(|pod| is_terminal(pod) && !is_terminating(pod))
        .collect();
    let surplus = ended.len().saturating_sub(kept);
    if surplus > 0 {
        ended.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        plan.together(ended.into_iter().take(surplus).map(|pod| force(pod)));
    }
    plan
}

#[cfg(test)]
mod tests {
    use machinery_plan::lint;
    use serde_json::Value;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut json = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "creationTimestamp": format!("1970-01-01T00:00:0{}Z", name.len())},
            "status": {"phase": "Running"},
        });
        change(&mut json);
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn planned(pod: Arc<Pod>, node: NodeState, now: i64) -> Plan {
        let plan = plan(&Observed { pod, node }, at(now));
        lint::assert_clean(&plan);
        plan
    }

    #[test]
    fn a_pod_of_a_missing_node_fails_and_goes_after_the_quarantine() {
        let waiting = planned(pod("p", |_| {}), NodeState::MissingSince(at(100)), 110);
        assert_eq!(
            (waiting.is_empty(), waiting.requeue_after),
            (true, Some(Duration::from_secs(30)))
        );
        let plan = planned(pod("p", |_| {}), NodeState::MissingSince(at(100)), 140);
        assert_eq!((plan.actions().count(), plan.deletions().len()), (2, 1));
    }

    #[test]
    fn an_unplaced_pod_goes_only_when_it_is_being_deleted() {
        assert!(planned(pod("p", |_| {}), NodeState::Unplaced, 0).is_empty());
        let going = pod("p", |p| {
            p["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:09Z")
        });
        assert_eq!(planned(going, NodeState::Unplaced, 0).deletions().len(), 1);
    }

    #[test]
    fn the_oldest_ended_pods_beyond_the_number_go() {
        let ended = |name: &str| pod(name, |p| p["status"]["phase"] = json!("Succeeded"));
        let pods = [ended("ppp"), ended("p"), pod("running", |_| {}), ended("pp")];
        let plan = plan_ended(&pods, 2);
        lint::assert_clean(&plan);
        assert_eq!(plan.deletions()[0].name, "p");
        assert_eq!(plan.deletions().len(), 1);
    }
}
