//! A node as the scheduler sees it: what it offers, what is taken.

use crate::pod::{HostPort, PodInfo};
use crate::resources::Resources;
use k8s_openapi::api::core::v1::{Node, Taint};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One node with the pods that are on it or about to be.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub max_pods: i64,
    pub requested: Resources,
    pub requested_for_scoring: Resources,
    pub host_ports: Vec<HostPort>,
    /// Size in bytes of each image that is there, by every name it has.
    pub images: BTreeMap<String, i64>,
    pub pods: BTreeMap<(String, String), Arc<PodInfo>>,
}

impl NodeInfo {
    /// Takes over what the API says of the node; pods stay.
    pub fn update(&mut self, node: &Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let allocatable = status.allocatable.or(status.capacity).unwrap_or_default();
        self.name = node.metadata.name.clone().unwrap_or_default();
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or_default();
        self.max_pods = allocatable
            .get("pods")
            .and_then(|q| q.0.parse().ok())
            .unwrap_or_default();
        self.allocatable = Resources::from_map(&allocatable);
        self.images = status
            .images
            .into_iter()
            .flatten()
            .flat_map(|i| {
                let size = i.size_bytes.unwrap_or_default();
                i.names
                    .unwrap_or_default()
                    .into_iter()
                    .map(move |name| (name, size))
            })
            .collect();
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.key());
        self.requested.add(&pod.requests);
        self.requested_for_scoring.add(&pod.requests_for_scoring);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.insert(pod.key(), pod);
    }

    pub fn remove(&mut self, key: &(String, String)) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.requested.subtract(&pod.requests);
        self.requested_for_scoring.subtract(&pod.requests_for_scoring);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(pod)
    }

    /// What is left of the node.
    pub fn free(&self) -> Resources {
        let mut free = self.allocatable.clone();
        free.subtract(&self.requested);
        free
    }
}
