//! Waiting for the nodes of a cluster, by watching them through the API.
use crate::layout::Cluster;
use crate::output::Going;
use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use machinery_client::kube::api::{Api, ListParams, WatchEvent, WatchParams};
use machinery_client::{from_kubeconfig, kube};
use machinery_lifecycle::Folder;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

/// Longest pause before the API is asked again, whatever it was that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of the nodes: name → `None` when Ready, else why not.
pub type Nodes = BTreeMap<String, Option<String>>;

/// Ends when every node of the cluster is Ready. `seen` always holds what is known, for whoever stops waiting.
///
/// # Errors
/// When the cluster's kubeconfig cannot be used.
pub async fn all_ready(cluster: &Cluster, seen: &mut Nodes, going: &Going) -> Result<()> {
    let client = from_kubeconfig(&cluster.dirs().kubeconfig())
        .await
        .context("cannot use the kubeconfig")?;
    let nodes: Api<Node> = Api::all(client);
    let record = cluster.dirs().processes();
    loop {
        let mut changes =
            Folder::watch(record.parent().unwrap_or(&record)).context("cannot watch the cluster")?;
        match follow(&nodes, cluster, seen, going).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => tracing::debug!("the API does not answer yet: {e}"),
        }
        // The connection was cut, since the server has ended: connections wait in a socket that the supervisor holds open,
        // and it notes the processes anew when it starts one again.
        let _ = tokio::time::timeout(AGAIN, changes.changed()).await;
    }
}

/// One list and the watch behind it; whether every node became Ready before the watch ended.
async fn follow(
    nodes: &Api<Node>,
    cluster: &Cluster,
    seen: &mut Nodes,
    going: &Going,
) -> Result<bool, kube::Error> {
    going.waits_for("the API");
    let list = nodes.list(&ListParams::default()).await?;
    seen.clear();
    list.items.iter().for_each(|n| note(n, seen));
    if complete(cluster, seen, going) {
        return Ok(true);
    }
    let version = list.metadata.resource_version.unwrap_or_default();
    let mut events = pin!(nodes.watch(&WatchParams::default(), &version).await?);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => note(&node, seen),
            WatchEvent::Deleted(node) => {
                seen.remove(node.metadata.name.as_deref().unwrap_or_default());
            }
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(_) => return Ok(false),
        }
        if complete(cluster, seen, going) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn note(node: &Node, seen: &mut Nodes) {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|c| c.type_ == "Ready"));
    let why = match ready {
        Some(c) if c.status == "True" => None,
        Some(c) => Some(
            c.message
                .clone()
                .or_else(|| c.reason.clone())
                .unwrap_or_else(|| "not Ready".to_owned()),
        ),
        None => Some("has not reported its state".to_owned()),
    };
    seen.insert(node.metadata.name.clone().unwrap_or_default(), why);
}

fn complete(cluster: &Cluster, seen: &Nodes, going: &Going) -> bool {
    let missing = missing(cluster, seen);
    if let Some((name, why)) = missing.first() {
        going.waits_for(&format!("{name}: {why}"));
    }
    missing.is_empty()
}

/// The nodes that are not Ready, and why.
pub fn missing(cluster: &Cluster, seen: &Nodes) -> Vec<(String, String)> {
    let why = |name: &str| match seen.get(name) {
        Some(None) => None,
        Some(Some(why)) => Some(why.clone()),
        None => Some("has not joined".to_owned()),
    };
    cluster
        .nodes()
        .into_iter()
        .filter_map(|n| why(&n.name).map(|w| (n.name, w)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::cluster;

    fn node(name: &str, status: &str) -> Node {
        let value = serde_json::json!({
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": status, "message": "no network"}]},
        });
        serde_json::from_value(value).expect("a node")
    }

    #[test]
    fn what_is_missing_is_said_per_node() {
        let mut seen = Nodes::new();
        note(&node("a-1", "True"), &mut seen);
        assert_eq!(
            missing(&cluster(2), &seen),
            [("a-2".to_owned(), "has not joined".to_owned())]
        );
        note(&node("a-2", "False"), &mut seen);
        assert_eq!(
            missing(&cluster(2), &seen),
            [("a-2".to_owned(), "no network".to_owned())]
        );
        note(&node("a-2", "True"), &mut seen);
        assert!(missing(&cluster(2), &seen).is_empty());
    }
}
