//! Eviction by taint: a pod leaves a node whose `NoExecute` taints it does not tolerate, at once or after the time its
//! tolerations name (<https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use machinery_plan::{Action, EventKind, Plan};
use serde_json::json;

use crate::pod::{is_terminal, is_terminating};
use crate::time::{left, seconds};

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// A pod that is bound to a node.
    pub pod: Arc<Pod>,
    /// Its node.
    pub node: Arc<Node>,
}

/// Deletes the pod if it has to go, or looks again when it will have to.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let pod = observed.pod.as_ref();
    if is_terminal(pod) || is_terminating(pod) {
        return plan;
    }
    match stay(pod, &observed.node, now) {
        Stay::Forever => {}
        Stay::For(time) => plan.requeue(time),
        Stay::Over => {
            let message = "Taint manager: deleting due to NoExecute taint";
            let target =
                crate::condition::patch("DisruptionTarget", "True", "DeletionByTaintManager", message, now);
            plan.then(Action::event(
                pod,
                EventKind::Normal,
                "TaintManagerEviction",
                "Marking for deletion",
            ));
            plan.then(Action::patch_status(pod, json!({"conditions": [target]})));
            plan.then(Action::delete(pod));
        }
    }
    plan
}

enum Stay {
    Forever,
    For(Duration),
    Over,
}

/// How long the pod may stay: as long as the shortest of the tolerations that it needs.
fn stay(pod: &Pod, node: &Node, now: Timestamp) -> Stay {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let tolerations: Vec<&Toleration> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.tolerations.iter().flatten())
        .collect();
    let mut shortest: Option<Duration> = None;
    for taint in taints.filter(|taint| taint.effect == "NoExecute") {
        let needed: Vec<_> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if needed.is_empty() {
            return Stay::Over;
        }
        let limit = needed
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min();
        let Some(limit) = limit else { continue };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        match left(since, seconds(limit), now) {
            Some(time) => shortest = Some(shortest.map_or(time, |shortest| shortest.min(time))),
            None => return Stay::Over,
        }
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

/// Whether a toleration covers a taint.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let same_effect = effect.is_empty() || effect == taint.effect;
    let same_key = key == taint.key || (key.is_empty() && toleration.operator.as_deref() == Some("Exists"));
    let value = match toleration.operator.as_deref() {
        None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
        Some(operator) => operator == "Exists",
    };
    same_effect && same_key && value
}

#[cfg(test)]
mod tests {
    use machinery_plan::lint;
    use serde_json::Value;

    use super::*;

    fn planned(tolerations: Value, added: i64, now: i64) -> Plan {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [], "tolerations": tolerations},
        });
        let added = Timestamp::from_second(added).unwrap().to_string();
        let taint =
            json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": added});
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": [taint]}});
        let observed = Observed {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            node: Arc::new(serde_json::from_value(node).unwrap()),
        };
        let plan = plan(&observed, Timestamp::from_second(now).unwrap());
        lint::assert_clean(&plan);
        plan
    }

    fn for_seconds(time: Option<i64>) -> Value {
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": time}])
    }

    #[test]
    fn a_pod_without_toleration_goes_at_once() {
        assert_eq!(planned(json!([]), 100, 100).deletions()[0].name, "p");
    }

    #[test]
    fn a_pod_stays_for_the_time_it_tolerates_the_taint() {
        let waiting = planned(for_seconds(Some(300)), 100, 150);
        assert!(waiting.is_empty());
        assert_eq!(waiting.requeue_after, Some(Duration::from_secs(250)));
        assert_eq!(planned(for_seconds(Some(300)), 100, 400).deletions().len(), 1);
    }

    #[test]
    fn a_toleration_without_limit_or_for_everything_holds_forever() {
        assert_eq!(planned(for_seconds(None), 100, 9000), Plan::nothing());
        assert_eq!(
            planned(json!([{"operator": "Exists"}]), 100, 9000),
            Plan::nothing()
        );
    }
}
