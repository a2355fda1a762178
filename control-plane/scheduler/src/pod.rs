//! A pod as the scheduler sees it: parsed once, then only compared.

use crate::affinity::{NodeTerms, PodTerm, Weighted};
use crate::resources::{self, Resources};
use crate::topology::SpreadConstraint;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Empty or 0.0.0.0 stands for every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether the two cannot be on one node.
    pub fn clashes(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// The scheduling facts of one pod.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub priority: i32,
    pub may_preempt: bool,
    /// The node it runs on, or is bound to.
    pub node: Option<String>,
    pub terminating: bool,
    pub requests: Resources,
    pub requests_for_scoring: Resources,
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    pub node_terms: Option<NodeTerms>,
    pub preferred_nodes: Vec<(i64, NodeTerms)>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    pub preferred_pods: Vec<Weighted>,
    pub spread: Vec<SpreadConstraint>,
    pub images: Vec<String>,
    pub gated: bool,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let affinity = spec.affinity.clone().unwrap_or_default();
        let node_affinity = affinity.node_affinity.unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let attract = affinity.pod_affinity.unwrap_or_default();
        let repel = affinity.pod_anti_affinity.unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let terms = |list: &[_]| {
            list.iter()
                .map(|t| PodTerm::new(t, &namespace, &labels))
                .collect::<Vec<_>>()
        };
        let weighted = |list: &[k8s_openapi::api::core::v1::WeightedPodAffinityTerm], sign: i64| {
            let term = |w: &k8s_openapi::api::core::v1::WeightedPodAffinityTerm| Weighted {
                weight: sign * i64::from(w.weight),
                term: PodTerm::new(&w.pod_affinity_term, &namespace, &labels),
            };
            list.iter().map(term).collect::<Vec<_>>()
        };
        let mut preferred_pods = weighted(
            attract
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
                .unwrap_or_default(),
            1,
        );
        preferred_pods.extend(weighted(
            repel
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
                .unwrap_or_default(),
            -1,
        ));
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or_default(),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            node: spec.node_name.clone().filter(|n| !n.is_empty()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            requests: resources::of_pod(&pod),
            requests_for_scoring: resources::of_pod_for_scoring(&pod),
            host_ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_terms: node_affinity
                .required_during_scheduling_ignored_during_execution
                .map(|s| NodeTerms::any(&s)),
            preferred_nodes: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
                .map(|p| (i64::from(p.weight), NodeTerms::one(&p.preference)))
                .collect(),
            affinity: terms(
                attract
                    .required_during_scheduling_ignored_during_execution
                    .as_deref()
                    .unwrap_or_default(),
            ),
            anti_affinity: terms(
                repel
                    .required_during_scheduling_ignored_during_execution
                    .as_deref()
                    .unwrap_or_default(),
            ),
            preferred_pods,
            spread: SpreadConstraint::of_pod(&pod, spec, &labels),
            images: spec.containers.iter().filter_map(|c| c.image.clone()).collect(),
            gated: spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()),
            namespace,
            labels,
            pod,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Ports taken on the node: `hostPort`s, and every port of a pod in the node's own network.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_string()),
                port: p.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}
