//! PodDisruptionBudget: how many pods may be evicted now
//! (<https://kubernetes.io/docs/tasks/run-application/configure-pdb/>).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_plan::{Action, Plan};

use crate::ownership::controller_of;
use crate::pod::{is_active, is_ready};
use crate::time::{left, wire};

/// For how long an eviction that was granted holds a place, should the pod not be deleted after all.
const GRANT: Duration = Duration::from_secs(120);

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The budget.
    pub budget: Arc<PodDisruptionBudget>,
    /// Pods of its namespace that its selector takes.
    pub pods: Vec<Arc<Pod>>,
    /// How many pods each controller wants, by its uid; a controller that is missing here has no scale.
    pub scales: BTreeMap<String, i32>,
}

/// What to do next for a budget.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let budget = observed.budget.as_ref();
    let mut plan = Plan::nothing();
    if budget.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let old = budget.status.clone().unwrap_or_default();
    let granted = granted(&old, &observed.pods, now, &mut plan);
    let healthy = observed.pods.iter().filter(|pod| is_active(pod) && is_ready(pod));
    let healthy = count(healthy.filter(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        !granted.contains_key(name)
    }));
    let (expected, wanted, trouble) = match wanted(observed) {
        Ok((expected, wanted)) => (expected, wanted, None),
        Err(trouble) => (0, 0, Some(trouble)),
    };
    let room = if expected <= 0 || trouble.is_some() {
        0
    } else {
        (healthy - wanted).max(0)
    };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(wanted),
        expected_pods: Some(expected),
        disruptions_allowed: Some(room),
        disrupted_pods: Some(granted).filter(|granted| !granted.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(&old, budget, room, trouble, now)),
    };
    if status != old {
        plan.then(Action::status(budget, &status));
    }
    plan
}

/// Evictions that were granted and whose pods are still to go.
fn granted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let mut granted = old.disrupted_pods.clone().unwrap_or_default();
    granted.retain(|name, since| {
        let pod = pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(name));
        if !pod.is_some_and(|pod| is_active(pod)) {
            return false;
        }
        let wait = left(since.0, GRANT, now);
        wait.inspect(|wait| plan.requeue(*wait)).is_some()
    });
    granted
}

/// How many pods there should be, and how many of them have to be healthy.
fn wanted(observed: &Observed) -> Result<(i32, i32), String> {
    let spec = observed.budget.spec.clone().unwrap_or_default();
    let pods = || observed.pods.iter().filter(|pod| is_active(pod));
    match (spec.max_unavailable, spec.min_available) {
        (Some(most), _) => {
            let expected = scale(observed)?;
            Ok((expected, (expected - part(&most, expected)?).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((count(pods()), least)),
        (None, Some(least)) => {
            let expected = scale(observed)?;
            Ok((expected, part(&least, expected)?))
        }
        (None, None) => Ok((count(pods()), 0)),
    }
}

/// What all controllers of the pods want together.
fn scale(observed: &Observed) -> Result<i32, String> {
    let mut owners = BTreeSet::new();
    for pod in observed.pods.iter().filter(|pod| is_active(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata) else {
            return Err(format!(
                "pod {name} has no controller, so that shares of its number mean nothing"
            ));
        };
        if !observed.scales.contains_key(&owner.uid) {
            return Err(format!(
                "{} {} of pod {name} has no scale",
                owner.kind, owner.name
            ));
        }
        owners.insert(&owner.uid);
    }
    Ok(owners
        .into_iter()
        .filter_map(|uid| observed.scales.get(uid))
        .sum())
}

/// A number, or a share of `whole` rounded up.
fn part(share: &IntOrString, whole: i32) -> Result<i32, String> {
    match share {
        IntOrString::Int(number) => Ok(*number),
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i32>().ok());
            let percent = percent.ok_or_else(|| format!("`{text}` is no number and no percentage"))?;
            let hundredths = i64::from(whole) * i64::from(percent);
            Ok(i32::try_from((hundredths + 99).div_euclid(100)).unwrap_or(i32::MAX))
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

fn conditions(
    old: &PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    room: i32,
    trouble: Option<String>,
    now: Timestamp,
) -> Vec<Condition> {
    let (status, reason) = match (&trouble, room) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let mut all = old.conditions.clone().unwrap_or_default();
    let held = all
        .iter()
        .position(|condition| condition.type_ == "DisruptionAllowed");
    let since = held
        .filter(|index| all[*index].status == status)
        .map_or_else(|| wire(now), |index| all[index].last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: trouble.unwrap_or_default(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    };
    match held {
        Some(index) => all[index] = new,
        None => all.push(new),
    }
    all
}

#[cfg(test)]
mod tests {
    use machinery_plan::{Operation, lint};
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, ready: &str, owner: &str) -> Arc<Pod> {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true});
        let pod = json!({
            "metadata": {"name": name, "namespace": "a", "ownerReferences": [owner]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn observed(spec: Value, status: Value) -> Observed {
        let budget = json!({
            "metadata": {"name": "b", "namespace": "a", "uid": "b", "resourceVersion": "1", "generation": 3},
            "spec": spec, "status": status,
        });
        Observed {
            budget: Arc::new(serde_json::from_value(budget).unwrap()),
            pods: vec![
                pod("p1", "True", "rs"),
                pod("p2", "True", "rs"),
                pod("p3", "False", "rs"),
            ],
            scales: BTreeMap::from([("rs".to_owned(), 3)]),
        }
    }

    fn written(observed: &Observed) -> Option<Value> {
        let plan = plan(observed, at(100));
        lint::assert_clean(&plan);
        plan.actions().find_map(|action| match &action.operation {
            Operation::Update { body, .. } => Some(body["status"].clone()),
            _ => None,
        })
    }

    fn numbers(status: &Value) -> [i64; 4] {
        [
            "expectedPods",
            "desiredHealthy",
            "currentHealthy",
            "disruptionsAllowed",
        ]
        .map(|name| status[name].as_i64().unwrap())
    }

    #[test]
    fn numbers_and_shares_leave_the_room_that_healthy_pods_make() {
        let status = |spec| written(&observed(spec, json!(null))).unwrap();
        assert_eq!(numbers(&status(json!({"minAvailable": 1}))), [3, 1, 2, 1]);
        assert_eq!(numbers(&status(json!({"minAvailable": "50%"}))), [3, 2, 2, 0]);
        assert_eq!(numbers(&status(json!({"maxUnavailable": 2}))), [3, 1, 2, 1]);
        assert_eq!(numbers(&status(json!({"maxUnavailable": "34%"}))), [3, 1, 2, 1]);
        assert_eq!(
            status(json!({"minAvailable": 1}))["conditions"][0]["status"],
            "True"
        );
    }

    #[test]
    fn the_status_is_written_once() {
        let status = written(&observed(json!({"minAvailable": 1}), json!(null))).unwrap();
        assert_eq!(status["observedGeneration"], 3);
        assert_eq!(written(&observed(json!({"minAvailable": 1}), status)), None);
    }

    #[test]
    fn a_granted_eviction_holds_its_place_until_the_pod_goes_or_time_is_over() {
        let granted = |since: &str| {
            let status = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0,
                "disruptedPods": {"p1": since, "gone": since}});
            written(&observed(json!({"minAvailable": 1}), status)).unwrap()
        };
        let held = granted("1970-01-01T00:01:00Z");
        assert_eq!(numbers(&held), [3, 1, 1, 0]);
        assert_eq!(held["disruptedPods"].as_object().unwrap().len(), 1);
        assert_eq!(numbers(&granted("1969-12-31T00:00:00Z")), [3, 1, 2, 1]);
    }

    #[test]
    fn pods_without_a_scale_cannot_have_shares() {
        let mut observed = observed(json!({"maxUnavailable": 1}), json!(null));
        observed.scales.clear();
        let status = written(&observed).unwrap();
        assert_eq!(numbers(&status)[3], 0);
        assert_eq!(status["conditions"][0]["reason"], "SyncFailed");
    }
}
