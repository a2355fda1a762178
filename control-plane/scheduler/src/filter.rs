//! Filters that look at one node by itself. Each gives upstream's words for why a node is out.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Why a node is out; the text is what users read.
pub type Reason = String;

/// The reasons why the pod cannot be on the node, empty if it can. Later filters are not asked once one refuses, except
/// for resources, which are all named.
pub fn reasons(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let single = unschedulable(pod, node)
        .or_else(|| untolerated(pod, node))
        .or_else(|| unwanted(pod, node))
        .or_else(|| ports(pod, node));
    match single {
        Some(reason) => vec![reason],
        None => resources(pod, node),
    }
}

/// Whether freeing resources on the node could ever help: preemption looks only at such nodes.
pub fn is_resolvable(pod: &PodInfo, node: &NodeInfo) -> bool {
    unschedulable(pod, node).is_none() && untolerated(pod, node).is_none() && unwanted(pod, node).is_none()
}

fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Option<Reason> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_string(),
        effect: "NoSchedule".to_string(),
        ..Taint::default()
    };
    (node.unschedulable && !tolerated(&pod.tolerations, &taint))
        .then(|| "node(s) were unschedulable".to_string())
}

fn untolerated(pod: &PodInfo, node: &NodeInfo) -> Option<Reason> {
    let hard = node
        .taints
        .iter()
        .filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    let taint = hard.into_iter().find(|t| !tolerated(&pod.tolerations, t))?;
    Some(format!(
        "node(s) had untolerated taint {{{}: {}}}",
        taint.key,
        taint.value.as_deref().unwrap_or_default()
    ))
}

fn unwanted(pod: &PodInfo, node: &NodeInfo) -> Option<Reason> {
    let selected = pod
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let wanted = pod
        .node_terms
        .as_ref()
        .is_none_or(|t| t.matches(&node.name, &node.labels));
    (!(selected && wanted)).then(|| "node(s) didn't match Pod's node affinity/selector".to_string())
}

fn ports(pod: &PodInfo, node: &NodeInfo) -> Option<Reason> {
    let clash = pod
        .host_ports
        .iter()
        .any(|wanted| node.host_ports.iter().any(|taken| wanted.clashes(taken)));
    clash.then(|| "node(s) didn't have free ports for the requested pod ports".to_string())
}

fn resources(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let free = node.free();
    let mut out: Vec<Reason> = pod
        .requests
        .lacking_in(&free)
        .map(|name| format!("Insufficient {name}"))
        .collect();
    if node.pods.len() as i64 + 1 > node.max_pods {
        out.insert(0, "Too many pods".to_string());
    }
    out
}

/// Whether one of the tolerations covers the taint.
pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (if key.is_empty() { exists } else { key == taint.key })
            && (exists
                || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}
