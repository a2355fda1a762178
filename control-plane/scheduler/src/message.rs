//! The words in which a pod that fits nowhere is reported.

use crate::filter::Reason;
use std::collections::BTreeMap;

/// `0/5 nodes are available: 2 Insufficient cpu, 3 node(s) were unschedulable.`
pub fn unschedulable(node_count: usize, reasons: &BTreeMap<Reason, usize>) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    if parts.is_empty() {
        return format!("0/{node_count} nodes are available.");
    }
    format!("0/{node_count} nodes are available: {}.", parts.join(", "))
}
