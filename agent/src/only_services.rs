//! The agent in kube-proxy's place: services only, beside a kubelet and a pod network of any make.

use crate::edge::api::{ApiAccess, Remembered};
use crate::edge::settings::EdgeSettings;
use crate::edge::{self, Edge, handover};
use crate::recorder::{self, Events};
use agent_datapath::{Datapath, DatapathConfig};
use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use machinery_client::{Cache, WatchOptions};
use machinery_lifecycle::{Shutdown, TaskSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Time for tasks to finish after the wish to stop.
const STOP: Duration = Duration::from_secs(5);
/// The file below the state folder that remembers the API's endpoints.
const ENDPOINTS: &str = "api-endpoints";

/// Configuration of a services-only agent.
#[derive(Clone, Debug)]
pub struct ServicesAgentConfig {
    /// The node's name in the cluster.
    pub node_name: String,
    /// The way to the API.
    pub api: ApiAccess,
    /// Where eBPF programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The cgroup2 folder whose processes' sockets reach services; the root of the hierarchy if absent.
    pub cgroup: Option<PathBuf>,
    /// What is kept over restarts.
    pub state_dir: PathBuf,
    /// The operator's decisions about services.
    pub edge: EdgeSettings,
}

/// Serves services until shutdown. They are served on without it: programs and maps stay.
///
/// # Errors
/// When it cannot start, or a part of it ended.
pub async fn run_services(config: ServicesAgentConfig, shutdown: Shutdown) -> Result<()> {
    // `skep leave` waits for our end.
    let _lock = agent_datapath::lock(&config.pin_dir)?;
    let mut tasks = TaskSet::new();
    let work = async {
        start(config, &mut tasks).await?;
        Err::<(), anyhow::Error>(tasks.ended().await.into())
    };
    let result = tokio::select! {
        result = work => result,
        () = shutdown.requested() => Ok(()),
    };
    let report = tasks.stop(STOP).await;
    if !report.cut_off.is_empty() {
        tracing::warn!(tasks = ?report.cut_off, "cut off at the deadline");
    }
    result
}

async fn start(config: ServicesAgentConfig, tasks: &mut TaskSet) -> Result<()> {
    let remembered = Remembered::open(&config.state_dir.join(ENDPOINTS));
    let client = config.api.connect(&remembered).await?;
    let settings = DatapathConfig {
        pin_dir: config.pin_dir,
        cgroup: config.cgroup.or_else(crate::run::cgroup2_mount),
        service_ranges: Vec::new(),
        sizes: None,
    };
    let datapath = Arc::new(Datapath::open(&settings).context("the data path cannot be opened")?);
    let others = handover::begin(&datapath).await;
    let (sender, foreign) = watch::channel(others.context("connections of another proxy cannot be spared")?);
    tasks.spawn_endless("handover", handover::watch(Arc::clone(&datapath), sender));
    let nodes: Cache<Node> = Cache::default();
    let (cache, api) = (nodes.clone(), client.clone());
    // Upstream's API server has had streaming lists only since 1.34.
    let options = WatchOptions {
        list_first: true,
        ..WatchOptions::default()
    };
    tasks.spawn_endless("node cache", async move { cache.run(api, options).await });
    let (events, notes) = Events::new();
    tasks.spawn_endless(
        "events",
        recorder::write(client.clone(), config.node_name.clone(), notes),
    );
    let edge = Edge {
        node_name: config.node_name,
        client,
        datapath,
        nodes,
        events,
        remembered: Some(remembered),
        settings: config.edge,
        dns: Vec::new(),
        // Their network plugin makes them.
        host_ports: tokio::sync::watch::channel(Some(Vec::new())).1,
        foreign_pods: true,
        foreign,
    };
    edge::start(edge, tasks)
        .await
        .context("the node's devices cannot be listed")
}
