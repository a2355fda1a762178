//! Making room: which pods of lower priority would have to go, and where that hurts least.

use crate::filter;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use std::sync::Arc;

/// Pods to evict so that the pod fits on the node.
#[derive(Clone, Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// The cheapest set of victims over all nodes: lowest top priority, then lowest sum of priorities, then fewest.
/// `fits` says whether the pod would pass every filter on the node as changed.
pub fn choose<'a>(
    pod: &PodInfo,
    nodes: impl Iterator<Item = &'a NodeInfo>,
    fits: impl Fn(&NodeInfo) -> bool,
) -> Option<Preemption> {
    if !pod.may_preempt {
        return None;
    }
    let candidates = nodes
        .filter(|n| filter::is_resolvable(pod, n))
        .filter_map(|node| victims(pod, node, &fits));
    candidates.min_by_key(|c| {
        let top = c.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
        let sum: i64 = c
            .victims
            .iter()
            .map(|v| i64::from(v.priority) + i64::from(i32::MAX))
            .sum();
        (top, sum, c.victims.len(), c.node.clone())
    })
}

/// Takes every lower pod away, then puts back as many as still leave room, the most important first.
fn victims(pod: &PodInfo, node: &NodeInfo, fits: &impl Fn(&NodeInfo) -> bool) -> Option<Preemption> {
    let mut lower: Vec<Arc<PodInfo>> = node
        .pods
        .values()
        .filter(|p| p.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    let mut changed = node.clone();
    for victim in &lower {
        changed.remove(&victim.key());
    }
    if !fits(&changed) {
        return None;
    }
    lower.sort_by_key(|p| {
        (
            std::cmp::Reverse(p.priority),
            p.pod.metadata.creation_timestamp.clone().map(|t| t.0),
        )
    });
    let mut gone = Vec::new();
    for candidate in lower {
        changed.add(candidate.clone());
        if !fits(&changed) {
            changed.remove(&candidate.key());
            gone.push(candidate);
        }
    }
    (!gone.is_empty()).then(|| Preemption {
        node: node.name.clone(),
        victims: gone,
    })
}
