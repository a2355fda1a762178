//! The scheduler's picture of the cluster, and the choice of a node for one pod.

use crate::filter::{self, Reason};
use crate::message;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::preempt::{self, Preemption};
use crate::score;
use crate::topology::{Domains, Namespaces};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

type Key = (String, String);

/// Above this many nodes only a share is looked at for each pod, and never fewer than this.
/// Source: Kubernetes, "Scheduler Performance Tuning".
const MIN_FEASIBLE: usize = 100;

/// Nodes with their pods, kept up to date object by object.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    /// Nodes that exist in the API; others only carry pods that name them.
    known: BTreeMap<String, ()>,
    place: HashMap<Key, String>,
    namespaces: Namespaces,
    /// Where the next search starts, so that over time every node gets its turn.
    start: usize,
}

/// What became of one pod.
#[derive(Debug)]
pub enum Decision {
    /// It goes to this node.
    Node(String),
    /// It fits nowhere now.
    Unschedulable(Unschedulable),
}

/// Why a pod fits nowhere, and what could be done.
#[derive(Debug)]
pub struct Unschedulable {
    /// In upstream's words, for the condition and the Event.
    pub message: String,
    pub preemption: Option<Preemption>,
}

impl Cluster {
    pub fn upsert_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.entry(name.clone()).or_default().update(node);
        self.known.insert(name, ());
    }

    pub fn remove_node(&mut self, name: &str) {
        self.known.remove(name);
        if self.nodes.get(name).is_some_and(|n| n.pods.is_empty()) {
            self.nodes.remove(name);
        }
    }

    pub fn upsert_namespace(&mut self, namespace: &Namespace) {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        self.namespaces
            .insert(name, namespace.metadata.labels.clone().unwrap_or_default());
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Takes over a pod as observed: one that has a node and has not ended takes its place there.
    pub fn upsert_pod(&mut self, pod: Arc<Pod>) {
        let ended = pod
            .status
            .as_ref()
            .and_then(|s| s.phase.as_deref())
            .is_some_and(|p| p == "Succeeded" || p == "Failed");
        let info = PodInfo::new(pod);
        let key = info.key();
        self.remove_pod(&key);
        if let Some(node) = info.node.clone().filter(|_| !ended) {
            self.put(node, info);
        }
    }

    pub fn remove_pod(&mut self, key: &Key) {
        if let Some(node) = self.place.remove(key)
            && let Some(info) = self.nodes.get_mut(&node)
        {
            info.remove(key);
            if info.pods.is_empty() && !self.known.contains_key(&node) {
                self.nodes.remove(&node);
            }
        }
    }

    /// Counts the pod on the node before the API has confirmed the binding. A later observation replaces this.
    pub fn assume(&mut self, pod: &PodInfo, node: &str) {
        let mut info = pod.clone();
        info.node = Some(node.to_string());
        self.remove_pod(&info.key());
        self.put(node.to_string(), info);
    }

    fn put(&mut self, node: String, info: PodInfo) {
        self.place.insert(info.key(), node.clone());
        self.nodes.entry(node).or_default().add(Arc::new(info));
    }

    /// Number of nodes in the API.
    pub fn node_count(&self) -> usize {
        self.known.len()
    }

    fn known_nodes(&self) -> impl Iterator<Item = &NodeInfo> + Clone {
        self.known.keys().filter_map(|name| self.nodes.get(name))
    }

    /// Chooses a node. `tie` breaks ties between equally good nodes: any number, taken at random by the caller.
    pub fn schedule(&mut self, pod: &PodInfo, tie: u64) -> Decision {
        let start = self.start;
        let (decision, looked_at) = self.choose(pod, start, tie);
        self.start = (start + looked_at) % self.known.len().max(1);
        decision
    }

    fn choose(&self, pod: &PodInfo, start: usize, tie: u64) -> (Decision, usize) {
        let domains = Domains::new(pod, self.known_nodes(), &self.namespaces);
        let total = self.known.len();
        let enough = enough_nodes(total);
        let mut feasible: Vec<&NodeInfo> = Vec::new();
        let mut reasons = BTreeMap::<Reason, usize>::new();
        let mut looked_at = 0;
        for node in self.known_nodes().cycle().skip(start).take(total) {
            looked_at += 1;
            let mut against = filter::reasons(pod, node);
            if against.is_empty() {
                against.extend(domains.refuses(node, &self.namespaces).map(str::to_string));
            }
            if against.is_empty() {
                feasible.push(node);
            }
            for reason in against {
                *reasons.entry(reason).or_default() += 1;
            }
            if feasible.len() >= enough {
                break;
            }
        }
        let decision = match best(pod, &feasible, &domains, total, tie) {
            Some(node) => Decision::Node(node),
            None => Decision::Unschedulable(self.unschedulable(pod, &reasons)),
        };
        (decision, looked_at)
    }

    fn unschedulable(&self, pod: &PodInfo, reasons: &BTreeMap<Reason, usize>) -> Unschedulable {
        let mut message = match self.known.len() {
            0 => "no nodes available to schedule pods".to_string(),
            total => message::unschedulable(total, reasons),
        };
        let fits = |changed: &NodeInfo| {
            let others = self
                .known_nodes()
                .filter(|n| n.name != changed.name)
                .chain(std::iter::once(changed));
            filter::reasons(pod, changed).is_empty()
                && Domains::new(pod, others, &self.namespaces)
                    .refuses(changed, &self.namespaces)
                    .is_none()
        };
        let preemption = preempt::choose(pod, self.known_nodes(), fits);
        if preemption.is_none() && !self.known.is_empty() {
            message.push_str(&format!(
                " preemption: 0/{} nodes are available: {} {}.",
                self.known.len(),
                self.known.len(),
                "No preemption victims found for incoming pod"
            ));
        }
        Unschedulable { message, preemption }
    }
}

/// How many nodes that fit are enough: all of a small cluster, a shrinking share of a large one.
fn enough_nodes(total: usize) -> usize {
    if total < MIN_FEASIBLE {
        return total;
    }
    let percent = 50usize.saturating_sub(total / 125).max(5);
    (total * percent / 100).max(MIN_FEASIBLE)
}

fn best(pod: &PodInfo, nodes: &[&NodeInfo], domains: &Domains<'_>, total: usize, tie: u64) -> Option<String> {
    if let [only] = nodes {
        return Some(only.name.clone());
    }
    let totals = score::totals(pod, nodes, domains, total);
    let most = totals.iter().copied().fold(f64::MIN, f64::max);
    let top: Vec<&&NodeInfo> = nodes
        .iter()
        .zip(&totals)
        .filter(|(_, t)| **t >= most)
        .map(|(n, _)| n)
        .collect();
    let at = usize::try_from(tie % top.len().max(1) as u64).unwrap_or_default();
    top.get(at).map(|n| n.name.clone())
}
