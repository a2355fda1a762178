//! Starts the parts, in the order in which they need each other.

use super::announce::{self, Election};
use super::api::Remembered;
use super::elect::Addresses;
use super::facts::{self, NodeFacts};
use super::health::LATE;
use super::http::{Answer, Answers};
use super::metrics::ServiceMetrics;
use super::ports::{self, Counted, Failed, Health};
use super::settings::EdgeSettings;
use super::traffic::TrafficMetrics;
use super::upkeep;
use crate::host_ports::HostPorts;
use crate::recorder::Events;
use crate::services::{self, ServicesConfig};
use agent_datapath::Datapath;
use agent_network::announce::Owned;
use agent_network::interfaces::{self, Interface};
use agent_network::link::LinkError;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use machinery_client::Cache;
use machinery_lifecycle::metrics::CONTENT_TYPE;
use machinery_lifecycle::{Readiness, TaskSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// What the services part of an agent works with.
pub struct Edge {
    /// The node's name.
    pub node_name: String,
    /// The way to the API.
    pub client: Client,
    /// The maps and programs.
    pub datapath: Arc<Datapath>,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// Where events go.
    pub events: Events,
    /// Is told where the API's endpoints are.
    pub remembered: Option<Arc<Remembered>>,
    /// The operator's decisions.
    pub settings: EdgeSettings,
    /// Addresses of services that the node answers itself: the cluster's DNS.
    pub dns: Vec<IpAddr>,
    /// The pods that have ports of the node.
    pub host_ports: watch::Receiver<HostPorts>,
    /// Whether another plugin makes the pods' devices.
    pub foreign_pods: bool,
    /// Whether another proxy has connections on this node.
    pub foreign: watch::Receiver<bool>,
}

/// Starts watching the node, writing services, and answering for their health.
///
/// # Errors
/// When the node's devices cannot be listed.
pub async fn start(edge: Edge, tasks: &mut TaskSet) -> Result<(), LinkError> {
    let (devices, work) = interfaces::watch().await?;
    tasks.spawn_endless("devices", work);
    let (sender, node) = watch::channel(None);
    let watching = facts::watch(
        edge.node_name.clone(),
        edge.nodes.clone(),
        devices.clone(),
        (edge.settings.clone(), edge.dns.clone()),
        sender,
    );
    tasks.spawn_endless("node facts", watching);
    let (health, metrics) = (Health::new(LATE), ServiceMetrics::default());
    let (addresses, balancers) = watch::channel(Addresses::new());
    let config = ServicesConfig {
        node_name: edge.node_name.clone(),
        facts: node.clone(),
        dns: edge.dns.clone(),
        host_ports: edge.host_ports.clone(),
        addresses,
        health: health.clone(),
        metrics: metrics.clone(),
        remembered: edge.remembered.clone(),
        foreign: edge.foreign.clone(),
    };
    let synced = Readiness::new().condition("services");
    let (client, datapath) = (edge.client.clone(), Arc::clone(&edge.datapath));
    tasks.spawn("services", move |shutdown| {
        services::run(client, datapath, config, synced, shutdown)
    });
    look_after(&edge, &metrics, &node, tasks);
    if edge.settings.announce {
        announce_from(&edge, &metrics, devices, balancers, tasks);
    }
    serve(&edge, health, &metrics, node, tasks);
    Ok(())
}

fn announce_from(
    edge: &Edge,
    metrics: &ServiceMetrics,
    devices: watch::Receiver<Vec<Interface>>,
    addresses: watch::Receiver<Addresses>,
    tasks: &mut TaskSet,
) {
    let election = Election {
        own: edge.node_name.clone(),
        nodes: edge.nodes.clone(),
        addresses,
        port: edge.settings.health.map(|address| address.port()),
        metrics: metrics.clone(),
    };
    let (owned, answered) = watch::channel(Owned::new());
    tasks.spawn_endless("election", announce::run(election, owned));
    tasks.spawn_endless(
        "announced addresses",
        agent_network::announce::run(devices, answered),
    );
}

fn look_after(
    edge: &Edge,
    metrics: &ServiceMetrics,
    node: &watch::Receiver<Option<NodeFacts>>,
    tasks: &mut TaskSet,
) {
    let datapath = Arc::clone(&edge.datapath);
    let devices = upkeep::devices(datapath, node.clone(), edge.foreign_pods);
    tasks.spawn_endless("uplinks", devices);
    let datapath = Arc::clone(&edge.datapath);
    let (metrics, events) = (metrics.clone(), edge.events.clone());
    tasks.spawn_endless(
        "flows",
        upkeep::flows(datapath, metrics, events, edge.node_name.clone()),
    );
}

fn serve(
    edge: &Edge,
    health: Health,
    metrics: &ServiceMetrics,
    node: watch::Receiver<Option<NodeFacts>>,
    tasks: &mut TaskSet,
) {
    if let Some(address) = edge.settings.metrics {
        let datapath = Arc::clone(&edge.datapath);
        let traffic = TrafficMetrics::new(datapath, edge.settings.endpoint_metrics);
        metrics
            .registry()
            .register(|all| all.register_collector(Box::new(traffic)));
        let metrics = metrics.clone();
        let answers: Answers = Arc::new(move |path| numbers(&metrics, path));
        tasks.spawn_endless(
            "metrics port",
            ports::serve_when_free(address, "metrics", answers),
        );
    }
    if let Some(address) = edge.settings.health {
        let metrics = metrics.clone();
        let counted: Counted = Arc::new(move |path, status| metrics.answered(path, status));
        tasks.spawn_endless("health port", ports::serve_node(health.clone(), address, counted));
    }
    let (sender, listen) = watch::channel(Vec::new());
    tasks.spawn_endless("health addresses", follow_addresses(node, sender));
    let events = edge.events.clone();
    let failed: Failed = Arc::new(move |name, message| {
        events.service_warning(
            &name.namespace,
            &name.name,
            "FailedToStartServiceHealthcheck",
            message,
        );
    });
    tasks.spawn_endless(
        "health-check ports",
        ports::serve_services(health, listen, failed),
    );
}

/// What kube-proxy's metrics port answers.
fn numbers(metrics: &ServiceMetrics, path: &str) -> Answer {
    match path {
        "/metrics" => Answer {
            status: 200,
            media_type: CONTENT_TYPE,
            headers: Vec::new(),
            body: metrics.encode(),
        },
        "/healthz" => Answer::text(200, "ok"),
        "/proxyMode" => Answer::text(200, "ebpf"),
        _ => Answer::text(404, "not found"),
    }
}

async fn follow_addresses(mut node: watch::Receiver<Option<NodeFacts>>, listen: watch::Sender<Vec<IpAddr>>) {
    node.mark_changed();
    while node.changed().await.is_ok() {
        let facts = node.borrow_and_update();
        let now = facts
            .as_ref()
            .map(|f| f.health_listen.clone())
            .unwrap_or_default();
        drop(facts);
        listen.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
    std::future::pending::<()>().await;
}
