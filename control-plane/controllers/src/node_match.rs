//! Whether a pod may be on a node: its node selector and affinity, and the node's taints.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration};

use crate::selector::matches_all;
use crate::taint_eviction::tolerates;

/// Whether selector and required affinity of a pod take a node.
#[must_use]
pub fn selects(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let plain = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| wanted.is_empty() || matches_all(wanted, labels));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    plain
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| term_matches(term, node))
        })
}

/// A term without any requirement takes nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).cloned();
    let field = |key: &str| {
        if key == "metadata.name" {
            node.metadata.name.clone()
        } else {
            None
        }
    };
    (!expressions.is_empty() || !fields.is_empty())
        && expressions
            .iter()
            .all(|requirement| holds(requirement, label(&requirement.key).as_deref()))
        && fields
            .iter()
            .all(|requirement| holds(requirement, field(&requirement.key).as_deref()))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|allowed| allowed == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether all of a node's taints with one of these effects are tolerated.
#[must_use]
pub fn tolerates_all(tolerations: &[Toleration], node: &Node, effects: &[&str]) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut relevant = taints.filter(|taint| effects.contains(&taint.effect.as_str()));
    relevant.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selector_and_any_term_have_to_take_the_node() {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}});
        let node: Node = serde_json::from_value(node).unwrap();
        let takes = |selector: serde_json::Value, terms: serde_json::Value| {
            let required =
                json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            let spec =
                json!({"containers": [], "nodeSelector": selector, "affinity": {"nodeAffinity": required}});
            selects(&serde_json::from_value(spec).unwrap(), &node)
        };
        let more =
            |than: &str| json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": [than]}]});
        assert!(takes(json!({"disk": "ssd"}), json!([more("16"), more("4")])));
        assert!(!takes(json!({"disk": "hdd"}), json!([more("4")])));
        assert!(!takes(json!({}), json!([more("16")])));
        let named = |name: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
        assert!(takes(json!({}), named("n")) && !takes(json!({}), named("m")));
    }
}
