//! Node lifecycle: a node that stops reporting becomes unknown, its pods not ready; taints follow conditions
//! (<https://kubernetes.io/docs/concepts/architecture/nodes/>).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use machinery_plan::{Action, EventKind, Plan};
use serde_json::{Value, json};

use crate::pod;
use crate::time::{left, wire};

/// How long a node may say nothing.
pub const GRACE: Duration = Duration::from_secs(50);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that taint a node while they hold.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The node.
    pub node: Arc<Node>,
    /// When this process last saw a sign of life: a renewed lease or a newer status. Its own clock, so that the
    /// node's need not agree.
    pub alive_at: Timestamp,
    /// Pods on the node.
    pub pods: Vec<Arc<Pod>>,
}

/// What to do about a node, and when to look again.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let node = observed.node.as_ref();
    if node.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let silent = match left(observed.alive_at, GRACE, now) {
        Some(wait) => {
            plan.requeue(wait);
            false
        }
        None => true,
    };
    let unknown = if silent {
        unknown_conditions(node, now)
    } else {
        Vec::new()
    };
    if !unknown.is_empty() {
        plan.then(Action::patch_status(node, json!({"conditions": unknown})));
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: NodeNotReady");
        plan.then(Action::event(node, EventKind::Normal, "NodeNotReady", message));
    }
    let ready = if silent {
        "Unknown"
    } else {
        condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
    };
    if ready == "Unknown" && silent {
        plan.together(observed.pods.iter().filter_map(|pod| mark_not_ready(pod, now)));
    }
    if let Some(taints) = changed_taints(node, ready, now) {
        // The status patch above moved the resource version, so the taints wait for the next plan.
        if unknown.is_empty() {
            plan.then(Action::merge(node, json!({"spec": {"taints": taints}})));
        }
    }
    plan
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// The conditions of a silent node that still claim something.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    let unknown = |type_: &str| {
        let held = condition(node, type_);
        let (reason, message) = match held {
            Some(held) if held.status == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat = held.and_then(|held| held.last_heartbeat_time.clone());
        let mut patch = crate::condition::patch(type_, "Unknown", reason, message, now);
        patch["lastHeartbeatTime"] = json!(heartbeat.or_else(|| node.metadata.creation_timestamp.clone()));
        Some(patch)
    };
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(unknown)
        .collect()
}

/// A pod on a silent node gets no more traffic.
fn mark_not_ready(pod: &Arc<Pod>, now: Timestamp) -> Option<Action> {
    (pod::is_ready(pod) && !pod::is_terminal(pod)).then(|| {
        let message = "The node of the pod stopped reporting";
        let ready = crate::condition::patch("Ready", "False", "NodeNotReady", message, now);
        Action::patch_status(pod.as_ref(), json!({"conditions": [ready]}))
    })
}

/// The taints the node should have, if they are not those it has. Taints of others stay as they are.
fn changed_taints(node: &Node, ready: &str, now: Timestamp) -> Option<Vec<Taint>> {
    let held = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let wanted = wanted_taints(node, ready);
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    };
    let mut taints: Vec<Taint> = held
        .iter()
        .filter(|taint| !is_ours(taint) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            let time_added = Some(wire(now));
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added,
            });
        }
    }
    (taints != held).then_some(taints)
}

fn wanted_taints(node: &Node, ready: &str) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let key = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        // A node that has just registered has no condition yet; it is not ready rather than lost.
        _ if condition(node, "Ready").is_none() => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = key {
        wanted.extend([(key, "NoSchedule"), (key, "NoExecute")]);
    }
    for (type_, key) in PRESSURES {
        if condition(node, type_).is_some_and(|condition| condition.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

fn is_ours(taint: &Taint) -> bool {
    let execute = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let schedule = taint.key == UNSCHEDULABLE || PRESSURES.iter().any(|(_, key)| taint.key == *key);
    (execute && taint.effect != "PreferNoSchedule") || (schedule && taint.effect == "NoSchedule")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn world(ready: &str) -> World {
        let mut world = World::default();
        world.put::<Node>(json!({
            "metadata": {"name": "n1"},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": "1970-01-01T00:00:05Z"}]},
        }));
        world.put::<Pod>(json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }));
        world
    }

    fn look(world: &World) -> Observed {
        Observed {
            node: world.get("", "n1").unwrap(),
            alive_at: at(100),
            pods: world.all(),
        }
    }

    fn settle(world: &mut World, now: i64) {
        for _ in 0..5 {
            let plan = plan(&look(world), at(now));
            if plan.is_empty() {
                return;
            }
            world.apply(&plan);
        }
        panic!("does not settle");
    }

    fn taints(world: &World) -> Vec<String> {
        let node = world.get::<Node>("", "n1").unwrap();
        let taints = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default();
        taints
            .iter()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect()
    }

    #[test]
    fn a_live_node_is_looked_at_again_when_its_grace_ends() {
        let plan = plan(&look(&world("True")), at(120));
        assert!(plan.is_empty());
        assert_eq!(plan.requeue_after, Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable_and_its_pods_unready() {
        let mut world = world("True");
        settle(&mut world, 150);
        let node = world.get::<Node>("", "n1").unwrap();
        let ready = condition(&node, "Ready").unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_deref()),
            ("Unknown", Some("NodeStatusUnknown"))
        );
        assert_eq!(
            condition(&node, "DiskPressure").unwrap().reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        assert_eq!(
            taints(&world),
            [
                "node.kubernetes.io/unreachable:NoSchedule".to_owned(),
                "node.kubernetes.io/unreachable:NoExecute".to_owned(),
            ]
        );
        assert!(!pod::is_ready(&world.get::<Pod>("a", "p").unwrap()));
    }

    #[test]
    fn taints_follow_conditions_and_those_of_others_stay() {
        let mut world = world("False");
        world.change::<Node>("", "n1", |node| {
            node["spec"] = json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoExecute"}]});
            node["status"]["conditions"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "DiskPressure", "status": "True"}));
        });
        settle(&mut world, 110);
        assert_eq!(
            taints(&world),
            [
                "mine:NoExecute",
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/disk-pressure:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule",
            ]
        );
        world.change::<Node>("", "n1", |node| {
            node["spec"]["unschedulable"] = json!(false);
            node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        });
        settle(&mut world, 120);
        assert_eq!(taints(&world), ["mine:NoExecute"]);
    }
}
