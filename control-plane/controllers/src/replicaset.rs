//! ReplicaSet: as many pods as wanted
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::{Action, EventKind, Plan};

use crate::ownership::{Claim, claim, controller_ref};
use crate::pod::{
    Availability, availability, is_active, is_ready, is_terminating, node_name, phase, ready_since,
};
use crate::selector::{Labels, is_empty};
use crate::{template, time};

/// Pods that one plan creates or deletes at most.
const BURST: usize = 500;

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The replica set.
    pub set: Arc<ReplicaSet>,
    /// Pods of its namespace: at least its own and those without a controller.
    pub pods: Vec<Arc<Pod>>,
    /// What the last attempt failed with, if it failed.
    pub last_failure: Option<String>,
}

/// What to do next for a replica set.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let set = observed.set.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = set.spec.as_ref().filter(|spec| !is_empty(&spec.selector)) else {
        return plan;
    };
    let Claim { owned, patches } = claim(set, &spec.selector, &observed.pods);
    let changes_ownership = !patches.is_empty();
    plan.together(patches);
    let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    let deleting = set.metadata.deletion_timestamp.is_some();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let mut manage = Plan::nothing();
    if !deleting && !changes_ownership {
        manage = scale(set, &active, wanted);
    }
    // When pods change now, the status follows from that change; unless they cannot be changed, which it has to tell.
    if manage.is_empty() || observed.last_failure.is_some() {
        write_status(&mut plan, observed, &owned, wanted, now);
    }
    if let Some(message) = observed.last_failure.as_deref().filter(|_| !manage.is_empty()) {
        plan.then(Action::event(set, EventKind::Warning, "FailedCreate", message));
    }
    plan.extend(manage);
    plan
}

fn scale(set: &ReplicaSet, active: &[Arc<Pod>], wanted: usize) -> Plan {
    let mut plan = Plan::nothing();
    if active.len() < wanted {
        plan.together((active.len()..wanted).take(BURST).map(|_| creation(set)));
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

fn creation(set: &ReplicaSet) -> Action {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let meta = &set.metadata;
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

fn write_status(plan: &mut Plan, observed: &Observed, owned: &[Arc<Pod>], wanted: usize, now: Timestamp) {
    let set = observed.set.as_ref();
    let old = set.status.clone().unwrap_or_default();
    let (mut status, wait) = status(set, owned, now);
    status.conditions = conditions(&old, observed, owned, wanted, now);
    if let Some(wait) = wait {
        plan.requeue(wait);
    }
    if status != old {
        plan.then(Action::status(set, &status));
    }
}

fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = time::seconds(spec.min_ready_seconds.unwrap_or(0));
    let labels = spec
        .template
        .and_then(|template| template.metadata)
        .and_then(|meta| meta.labels)
        .unwrap_or_default();
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
        observed_generation: set.metadata.generation,
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
    observed: &Observed,
    owned: &[Arc<Pod>],
    wanted: usize,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut all = old.conditions.clone().unwrap_or_default();
    let active = owned.iter().filter(|pod| is_active(pod)).count();
    match &observed.last_failure {
        Some(_) if all.iter().any(|condition| condition.type_ == "ReplicaFailure") => {}
        Some(message) if active != wanted => all.push(ReplicaSetCondition {
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
            message: Some(message.clone()),
            last_transition_time: Some(time::wire(now)),
        }),
        _ if active == wanted => all.retain(|condition| condition.type_ != "ReplicaFailure"),
        _ => {}
    }
    Some(all).filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use machinery_plan::{Operation, lint};
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn set(replicas: i32, extra: Value) -> Arc<ReplicaSet> {
        let mut json = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "rs", "resourceVersion": "5", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
            },
        });
        for (key, value) in extra.as_object().unwrap() {
            json[key] = value.clone();
        }
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true});
        let mut json = json!({
            "metadata": {
                "name": name, "namespace": "a", "uid": name, "resourceVersion": "1",
                "labels": {"app": "web"}, "ownerReferences": [owner],
            },
            "spec": {"containers": [{"name": "c"}], "nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"},
            ]},
        });
        change(&mut json);
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn planned(set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>) -> Plan {
        let plan = plan(
            &Observed {
                set,
                pods,
                last_failure: None,
            },
            at(200),
        );
        lint::assert_clean(&plan);
        plan
    }

    fn written_status(plan: &Plan) -> Option<Value> {
        plan.actions().find_map(|action| match &action.operation {
            Operation::Update {
                body,
                subresource: Some("status"),
            } => Some(body["status"].clone()),
            _ => None,
        })
    }

    #[test]
    fn missing_pods_are_created_from_the_template_under_a_generated_name() {
        let plan = planned(set(3, json!({})), vec![pod("p1", |_| {})]);
        let created = plan.creations();
        assert_eq!(created.len(), 2);
        assert_eq!(created[0]["metadata"]["generateName"], "web-");
        assert_eq!(created[0]["metadata"]["ownerReferences"][0]["uid"], "rs");
        assert_eq!(created[0]["spec"]["containers"][0]["name"], "c");
    }

    #[test]
    fn surplus_pods_go_worst_first() {
        let pods = vec![
            pod("ready", |_| {}),
            pod("unplaced", |p| {
                p["spec"]["nodeName"] = json!(null);
                p["status"] = json!({"phase": "Pending"});
            }),
            pod("unready", |p| {
                p["status"]["conditions"][0]["status"] = json!("False")
            }),
        ];
        let plan = planned(set(1, json!({})), pods);
        let names: Vec<_> = plan.deletions().iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["unplaced", "unready"]);
    }

    #[test]
    fn a_lower_deletion_cost_goes_before_a_fuller_node() {
        let cost = |cost: &'static str| {
            move |p: &mut Value| {
                p["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": cost})
            }
        };
        let pods = vec![
            pod("dear", cost("10")),
            pod("cheap", cost("-5")),
            pod("plain", |_| {}),
        ];
        let plan = planned(set(2, json!({})), pods);
        assert_eq!(plan.deletions()[0].name, "cheap");
    }

    #[test]
    fn ended_and_terminating_pods_are_replaced() {
        let pods = vec![
            pod("ended", |p| p["status"]["phase"] = json!("Failed")),
            pod("going", |p| {
                p["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:03:00Z")
            }),
        ];
        assert_eq!(planned(set(1, json!({})), pods).creations().len(), 1);
    }

    #[test]
    fn an_orphan_that_matches_is_adopted_before_anything_is_created() {
        let orphan = pod("orphan", |p| p["metadata"]["ownerReferences"] = json!([]));
        let plan = planned(set(1, json!({})), vec![orphan]);
        assert!(plan.creations().is_empty());
        let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
            panic!("no patch")
        };
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "rs");
    }

    #[test]
    fn an_own_pod_that_no_longer_matches_is_released() {
        let plan = planned(
            set(1, json!({})),
            vec![pod("other", |p| p["metadata"]["labels"] = json!({}))],
        );
        let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
            panic!("no patch")
        };
        assert_eq!(body["metadata"]["ownerReferences"][0]["$patch"], "delete");
    }

    #[test]
    fn the_status_counts_and_is_written_once() {
        let pods = vec![
            pod("p1", |_| {}),
            pod("p2", |p| p["status"]["conditions"] = json!([])),
        ];
        let plan = planned(set(2, json!({})), pods.clone());
        let status = written_status(&plan).unwrap();
        assert_eq!(
            (
                &status["replicas"],
                &status["readyReplicas"],
                &status["availableReplicas"]
            ),
            (&json!(2), &json!(1), &json!(1))
        );
        let settled = planned(set(2, json!({"status": status})), pods);
        assert!(settled.is_empty());
    }

    #[test]
    fn a_pod_is_available_only_after_min_ready_seconds_and_the_plan_looks_again_then() {
        let mut patient = set(1, json!({})).as_ref().clone();
        patient.spec.as_mut().unwrap().min_ready_seconds = Some(150);
        let plan = planned(Arc::new(patient), vec![pod("p1", |_| {})]);
        assert_eq!(written_status(&plan).unwrap()["availableReplicas"], Value::Null);
        assert_eq!(plan.requeue_after, Some(std::time::Duration::from_secs(50)));
    }

    #[test]
    fn a_set_being_deleted_neither_creates_nor_adopts() {
        let mut going = set(3, json!({})).as_ref().clone();
        going.metadata.deletion_timestamp = Some(time::wire(at(190)));
        let plan = planned(
            Arc::new(going),
            vec![pod("o", |p| p["metadata"]["ownerReferences"] = json!([]))],
        );
        assert!(plan.creations().is_empty());
        assert!(
            plan.actions()
                .all(|action| action.subresource() == Some("status"))
        );
    }

    #[test]
    fn a_refused_creation_shows_in_the_status() {
        let observed = Observed {
            set: set(1, json!({})),
            pods: vec![],
            last_failure: Some("quota".to_owned()),
        };
        let plan = plan(&observed, at(200));
        lint::assert_clean(&plan);
        let condition = &written_status(&plan).unwrap()["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["reason"]),
            (&json!("ReplicaFailure"), &json!("FailedCreate"))
        );
    }
}
