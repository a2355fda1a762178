//! Which pods have ports of this node: read from the pods themselves, for the task that writes the fronts.

use agent_services::HostPortsView;
use k8s_openapi::api::core::v1::Pod;
use machinery_client::Cache;
use tokio::sync::watch;

/// What is known of them; none before the first complete list, so that an agent that starts takes nothing away.
pub type HostPorts = Option<Vec<HostPortsView>>;

/// Publishes them whenever they change, until dropped. A pod has its ports from when its addresses are in its status, which this
/// agent writes once its sandbox is ready, until it is over or gone.
pub async fn watch(pods: Cache<Pod>, ports: watch::Sender<HostPorts>) {
    pods.synced().await;
    let mut changes = pods.changes();
    loop {
        changes.mark_unchanged();
        let mut now: Vec<_> = pods.list().iter().filter_map(|p| HostPortsView::of(p)).collect();
        now.sort_by(|a, b| a.pod.cmp(&b.pod));
        ports.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&now);
            *known = Some(now);
            changed
        });
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
