//! Rules over domains of several nodes: spreading, and affinity between pods.

use crate::affinity::{compile, extend_by_keys};
use crate::filter::tolerated;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Pod, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Labels = BTreeMap<String, String>;

/// One rule of `topologySpreadConstraints`, or of the cluster's defaults.
#[derive(Clone, Debug)]
pub struct SpreadConstraint {
    pub key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    /// `DoNotSchedule`; otherwise it only scores.
    pub hard: bool,
    selector: LabelSelector,
    honor_affinity: bool,
    honor_taints: bool,
}

impl SpreadConstraint {
    /// The pod's own constraints; else the defaults, for pods that a controller owns.
    /// Source: Kubernetes, "Pod Topology Spread Constraints: built-in default constraints".
    pub fn of_pod(pod: &Pod, spec: &PodSpec, labels: &Labels) -> Vec<Self> {
        match &spec.topology_spread_constraints {
            Some(own) if !own.is_empty() => own.iter().map(|c| Self::new(c, labels)).collect(),
            _ => Self::defaults(pod, labels),
        }
    }

    fn new(raw: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = raw.label_selector.clone();
        extend_by_keys(&mut selector, raw.match_label_keys.as_deref(), labels, "In");
        Self {
            key: raw.topology_key.clone(),
            max_skew: i64::from(raw.max_skew),
            min_domains: i64::from(raw.min_domains.unwrap_or(1)),
            hard: raw.when_unsatisfiable == "DoNotSchedule",
            selector: compile(selector.as_ref()),
            honor_affinity: raw.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: raw.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    fn defaults(pod: &Pod, labels: &Labels) -> Vec<Self> {
        let owned = pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.controller == Some(true));
        if !owned || labels.is_empty() {
            return Vec::new();
        }
        // The labels of the pod stand in for the selector of its owner: replicas carry the same ones.
        let selector = ApiSelector {
            match_labels: Some(labels.clone()),
            ..ApiSelector::default()
        };
        [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)]
            .into_iter()
            .map(|(key, max_skew)| Self {
                key: key.to_string(),
                max_skew,
                min_domains: 1,
                hard: false,
                selector: compile(Some(&selector)),
                honor_affinity: true,
                honor_taints: false,
            })
            .collect()
    }

    fn counts_node(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let selected = pod
            .node_selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value))
            && pod
                .node_terms
                .as_ref()
                .is_none_or(|t| t.matches(&node.name, &node.labels));
        let hard =
            |t: &&k8s_openapi::api::core::v1::Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
        let clean = node
            .taints
            .iter()
            .filter(hard)
            .all(|t| tolerated(&pod.tolerations, t));
        (!self.honor_affinity || selected) && (!self.honor_taints || clean)
    }

    fn matching(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let same = |p: &&std::sync::Arc<PodInfo>| {
            !p.terminating && p.namespace == pod.namespace && self.selector.matches(&p.labels)
        };
        node.pods.values().filter(same).count() as i64
    }
}

/// What the rules of one pod come to over all nodes: counted once per pod, asked per node.
pub struct Domains<'a> {
    pod: &'a PodInfo,
    /// Per constraint: matching pods by domain, over the nodes that count.
    spread: Vec<HashMap<&'a str, i64>>,
    /// Per required affinity term: domains with such a pod.
    attracted: Vec<BTreeSet<&'a str>>,
    /// Domains (key, value) which the pod's own anti-affinity forbids.
    repelled: BTreeSet<(&'a str, &'a str)>,
    /// Domains (key, value) that existing pods' anti-affinity keeps it out of.
    forbidden: BTreeSet<(&'a str, &'a str)>,
    /// Score by domain (key, value) from preferred terms, its own and those of existing pods.
    preferred: HashMap<(&'a str, &'a str), i64>,
}

/// Labels of namespaces, for terms that select namespaces.
pub type Namespaces = BTreeMap<String, Labels>;

/// A required term of an existing pod counts this much for a pod that it wants near.
const HARD_AFFINITY_WEIGHT: i64 = 1;

impl<'a> Domains<'a> {
    pub fn new(
        pod: &'a PodInfo,
        nodes: impl Iterator<Item = &'a NodeInfo> + Clone,
        namespaces: &Namespaces,
    ) -> Self {
        let mut domains = Self {
            pod,
            spread: vec![HashMap::new(); pod.spread.len()],
            attracted: vec![BTreeSet::new(); pod.affinity.len()],
            repelled: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            preferred: HashMap::new(),
        };
        for node in nodes {
            domains.count_spread(node);
            domains.count_affinity(node, namespaces);
        }
        domains
    }

    fn count_spread(&mut self, node: &'a NodeInfo) {
        let pod = self.pod;
        let has_all = |hard: bool| {
            pod.spread
                .iter()
                .filter(|c| c.hard == hard)
                .all(|c| node.labels.contains_key(&c.key))
        };
        for (constraint, counts) in pod.spread.iter().zip(&mut self.spread) {
            if let Some(domain) = node.labels.get(&constraint.key)
                && (!constraint.hard || has_all(true))
                && constraint.counts_node(pod, node)
            {
                *counts.entry(domain).or_default() += constraint.matching(pod, node);
            }
        }
    }

    fn count_affinity(&mut self, node: &'a NodeInfo, namespaces: &Namespaces) {
        let none = Labels::new();
        let labels_of = |namespace: &str| namespaces.get(namespace).unwrap_or(&none);
        let pod = self.pod;
        let wants_others =
            !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty());
        for other in node.pods.values() {
            if wants_others {
                let there = |term: &crate::affinity::PodTerm| {
                    term.selects(&other.namespace, &other.labels, labels_of(&other.namespace))
                };
                for (term, found) in pod.affinity.iter().zip(&mut self.attracted) {
                    if there(term) {
                        found.extend(node.labels.get(&term.topology_key).map(String::as_str));
                    }
                }
                for term in pod.anti_affinity.iter().filter(|t| there(t)) {
                    self.repelled.extend(domain(node, &term.topology_key));
                }
                for weighted in pod.preferred_pods.iter().filter(|w| there(&w.term)) {
                    self.add_score(node, &weighted.term.topology_key, weighted.weight);
                }
            }
            let meant = |term: &crate::affinity::PodTerm| {
                term.selects(&pod.namespace, &pod.labels, labels_of(&pod.namespace))
            };
            for term in other.anti_affinity.iter().filter(|t| meant(t)) {
                self.forbidden.extend(domain(node, &term.topology_key));
            }
            for weighted in other.preferred_pods.iter().filter(|w| meant(&w.term)) {
                self.add_score(node, &weighted.term.topology_key, weighted.weight);
            }
            for term in other.affinity.iter().filter(|t| meant(t)) {
                self.add_score(node, &term.topology_key, HARD_AFFINITY_WEIGHT);
            }
        }
    }

    fn add_score(&mut self, node: &'a NodeInfo, key: &'a str, weight: i64) {
        if let Some(domain) = domain(node, key) {
            *self.preferred.entry(domain).or_default() += weight;
        }
    }

    /// Why the node is out by these rules.
    pub fn refuses(&self, node: &NodeInfo, namespaces: &Namespaces) -> Option<&'static str> {
        self.skewed(node).or_else(|| self.apart(node, namespaces))
    }

    fn skewed(&self, node: &NodeInfo) -> Option<&'static str> {
        for (constraint, counts) in self.pod.spread.iter().zip(&self.spread).filter(|(c, _)| c.hard) {
            let Some(domain) = node.labels.get(&constraint.key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let few = (counts.len() as i64) < constraint.min_domains;
            let least = if few {
                0
            } else {
                counts.values().copied().min().unwrap_or_default()
            };
            let own = i64::from(constraint.selector.matches(&self.pod.labels));
            let here = counts.get(domain.as_str()).copied().unwrap_or_default();
            if here + own - least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    fn apart(&self, node: &NodeInfo, namespaces: &Namespaces) -> Option<&'static str> {
        let on_node = |set: &BTreeSet<(&str, &str)>| {
            set.iter()
                .any(|(key, value)| node.labels.get(*key).is_some_and(|v| v == value))
        };
        if on_node(&self.forbidden) {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        if on_node(&self.repelled) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let near = self
            .pod
            .affinity
            .iter()
            .zip(&self.attracted)
            .all(|(term, found)| {
                node.labels
                    .get(&term.topology_key)
                    .is_some_and(|d| found.contains(d.as_str()))
            });
        if near || self.is_first_of_its_kind(node, namespaces) {
            return None;
        }
        Some("node(s) didn't match pod affinity rules")
    }

    /// The first of a group of pods that want each other may go anywhere: else none could ever start.
    fn is_first_of_its_kind(&self, node: &NodeInfo, namespaces: &Namespaces) -> bool {
        let none = Labels::new();
        let own = namespaces.get(&self.pod.namespace).unwrap_or(&none);
        self.attracted.iter().all(BTreeSet::is_empty)
            && self.pod.affinity.iter().all(|term| {
                term.selects(&self.pod.namespace, &self.pod.labels, own)
                    && node.labels.contains_key(&term.topology_key)
            })
    }

    /// How well the preferred terms between pods are met on the node; higher is better, unbounded.
    pub fn affinity_score(&self, node: &NodeInfo) -> i64 {
        let on =
            |((key, value), _): &(&(&str, &str), &i64)| node.labels.get(*key).is_some_and(|v| v == value);
        self.preferred.iter().filter(on).map(|(_, weight)| weight).sum()
    }

    /// How crowded the node's domains are by the soft constraints; lower is better. None where a label is missing.
    pub fn crowding(&self, node: &NodeInfo) -> Option<f64> {
        let mut sum = 0.0;
        for (constraint, counts) in self.pod.spread.iter().zip(&self.spread).filter(|(c, _)| !c.hard) {
            // A default constraint on a label which no node has says nothing; on some nodes only, it counts them out.
            if counts.is_empty() {
                continue;
            }
            let here = counts
                .get(node.labels.get(&constraint.key)?.as_str())
                .copied()
                .unwrap_or_default();
            // Constraints over many domains weigh more: logarithmically, as upstream does.
            let weight = (counts.len() as f64 + 2.0).ln();
            sum += here as f64 * weight + (constraint.max_skew - 1) as f64;
        }
        Some(sum)
    }

    pub fn has_soft_spread(&self) -> bool {
        self.pod.spread.iter().any(|c| !c.hard)
    }
}

fn domain<'a>(node: &'a NodeInfo, key: &'a str) -> Option<(&'a str, &'a str)> {
    node.labels.get(key).map(|value| (key, value.as_str()))
}
