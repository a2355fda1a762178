//! The other nodes: routes to their pods, kept as the API knows them.

use agent_network::{PeerNode, PodNetwork, Prefix};
use k8s_openapi::api::core::v1::Node;
use machinery_client::Cache;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Changes come in bunches when a cluster starts.
const SETTLE: Duration = Duration::from_millis(20);
/// Pause before routes the kernel refused are tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The ranges of a node's pods, IPv4 first.
#[must_use]
pub fn pod_cidrs(node: &Node) -> Vec<Prefix> {
    let spec = node.spec.clone().unwrap_or_default();
    let list = spec
        .pod_cidrs
        .filter(|l| !l.is_empty())
        .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let mut prefixes: Vec<Prefix> = list.iter().filter_map(|c| c.parse().ok()).collect();
    prefixes.sort_by_key(|p| p.to_string().contains(':'));
    prefixes
}

fn peer(node: &Node) -> PeerNode {
    let addresses = node
        .status
        .as_ref()
        .and_then(|s| s.addresses.clone())
        .unwrap_or_default();
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    PeerNode {
        name: node.metadata.name.clone().unwrap_or_default(),
        pod_cidrs: pod_cidrs(node),
        node_ips: internal.filter_map(|a| a.address.parse().ok()).collect(),
    }
}

/// Keeps the routes as the nodes in `cache` are, until dropped.
pub async fn run(network: Arc<PodNetwork>, cache: Cache<Node>, own: String) {
    cache.synced().await;
    let mut changes = cache.changes();
    let mut known: Option<Vec<PeerNode>> = None;
    loop {
        changes.mark_unchanged();
        let others = cache.list();
        let others = others
            .iter()
            .filter(|n| n.metadata.name.as_deref() != Some(own.as_str()));
        let peers: Vec<PeerNode> = others.map(|n| peer(n)).collect();
        // Nodes change with each heartbeat; their routes hardly ever do.
        if known.as_ref() != Some(&peers) {
            if let Err(error) = network.sync_node_routes(&peers).await {
                tracing::warn!(%error, "node routes not written, will be tried again");
                sleep(AGAIN).await;
                continue;
            }
            known = Some(peers);
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        sleep(SETTLE).await;
    }
}
