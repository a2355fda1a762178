//! Scores of the nodes that are left, each plug-in from 0 to 100, summed with the default weights of 1.36.

use crate::filter::tolerated;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::topology::Domains;

const MAX: f64 = 100.0;

/// Weights of the default profile.
const TAINTS: f64 = 3.0;
const NODE_AFFINITY: f64 = 2.0;
const SPREAD: f64 = 2.0;
const POD_AFFINITY: f64 = 2.0;
const FIT: f64 = 1.0;
const BALANCE: f64 = 1.0;
const IMAGES: f64 = 1.0;

/// Images below this size do not matter, above this they matter no more (bytes per container).
const IMAGE_FLOOR: f64 = 23.0 * 1024.0 * 1024.0;
const IMAGE_CEILING: f64 = 1000.0 * 1024.0 * 1024.0;

/// The total of each node, in the order given.
pub fn totals(pod: &PodInfo, nodes: &[&NodeInfo], domains: &Domains<'_>, node_count: usize) -> Vec<f64> {
    let mut totals = vec![0.0; nodes.len()];
    let mut add = |weight: f64, scores: Vec<f64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    add(FIT, nodes.iter().map(|n| least_allocated(pod, n)).collect());
    add(BALANCE, nodes.iter().map(|n| balanced(pod, n)).collect());
    add(
        IMAGES,
        nodes.iter().map(|n| images(pod, n, nodes, node_count)).collect(),
    );
    if nodes
        .iter()
        .any(|n| n.taints.iter().any(|t| t.effect == "PreferNoSchedule"))
    {
        add(
            TAINTS,
            reversed(nodes.iter().map(|n| soft_taints(pod, n)).collect()),
        );
    }
    if !pod.preferred_nodes.is_empty() {
        add(
            NODE_AFFINITY,
            normalised(nodes.iter().map(|n| node_affinity(pod, n)).collect()),
        );
    }
    add(
        POD_AFFINITY,
        ranged(nodes.iter().map(|n| domains.affinity_score(n) as f64).collect()),
    );
    if domains.has_soft_spread() {
        add(SPREAD, spread(nodes, domains));
    }
    totals
}

/// What would be left of CPU and memory, in hundredths.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> f64 {
    let left = |capacity: i64, used: i64| {
        if capacity <= 0 || used > capacity {
            0.0
        } else {
            (capacity - used) as f64 * MAX / capacity as f64
        }
    };
    let used = |taken: i64, wanted: i64| taken + wanted;
    let asked = &pod.requests_for_scoring;
    let taken = &node.requested_for_scoring;
    let cpu = left(node.allocatable.milli_cpu, used(taken.milli_cpu, asked.milli_cpu));
    let memory = left(node.allocatable.memory, used(taken.memory, asked.memory));
    ((cpu + memory) / 2.0).floor()
}

/// How evenly CPU and memory would be used: 100 when both to the same share.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> f64 {
    let share = |capacity: i64, used: i64| {
        if capacity <= 0 {
            0.0
        } else {
            (used as f64 / capacity as f64).min(1.0)
        }
    };
    let cpu = share(
        node.allocatable.milli_cpu,
        node.requested.milli_cpu + pod.requests.milli_cpu,
    );
    let memory = share(
        node.allocatable.memory,
        node.requested.memory + pod.requests.memory,
    );
    // With two resources the standard deviation is half of their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX).floor()
}

/// How much of the pod's images is there already, spread-weighted so that one node does not draw everything.
fn images(pod: &PodInfo, node: &NodeInfo, nodes: &[&NodeInfo], node_count: usize) -> f64 {
    if pod.images.is_empty() || node.images.is_empty() {
        return 0.0;
    }
    let there = |image: &String| {
        let size = *node.images.get(image)? as f64;
        let holders = nodes.iter().filter(|n| n.images.contains_key(image)).count();
        Some(size * holders as f64 / node_count.max(1) as f64)
    };
    let sum: f64 = pod.images.iter().filter_map(there).sum();
    let ceiling = IMAGE_CEILING * pod.images.len() as f64;
    ((sum.clamp(IMAGE_FLOOR, ceiling) - IMAGE_FLOOR) * MAX / (ceiling - IMAGE_FLOOR)).floor()
}

fn soft_taints(pod: &PodInfo, node: &NodeInfo) -> f64 {
    let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|t| !tolerated(&pod.tolerations, t)).count() as f64
}

fn node_affinity(pod: &PodInfo, node: &NodeInfo) -> f64 {
    let met = pod
        .preferred_nodes
        .iter()
        .filter(|(_, terms)| terms.matches(&node.name, &node.labels));
    met.map(|(weight, _)| *weight as f64).sum()
}

fn spread(nodes: &[&NodeInfo], domains: &Domains<'_>) -> Vec<f64> {
    let crowding: Vec<Option<f64>> = nodes.iter().map(|n| domains.crowding(n)).collect();
    let known = crowding.iter().flatten();
    let most = known.clone().copied().fold(f64::MIN, f64::max);
    let least = known.copied().fold(f64::MAX, f64::min);
    let score = |c: &Option<f64>| match c {
        None => 0.0,
        Some(_) if most <= 0.0 => MAX,
        Some(c) => (MAX * (most + least - c) / most).floor(),
    };
    crowding.iter().map(score).collect()
}

/// To 0..100 by the largest.
fn normalised(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(0.0, f64::max);
    scores
        .into_iter()
        .map(|s| if most > 0.0 { (s * MAX / most).floor() } else { 0.0 })
        .collect()
}

/// To 0..100 by the largest, the fewest being best.
fn reversed(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(0.0, f64::max);
    scores
        .into_iter()
        .map(|s| {
            if most > 0.0 {
                MAX - (s * MAX / most).floor()
            } else {
                MAX
            }
        })
        .collect()
}

/// To 0..100 between the smallest and the largest; equal scores say nothing.
fn ranged(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::MIN, f64::max);
    let least = scores.iter().copied().fold(f64::MAX, f64::min);
    scores
        .into_iter()
        .map(|s| {
            if most > least {
                (MAX * (s - least) / (most - least)).floor()
            } else {
                0.0
            }
        })
        .collect()
}
