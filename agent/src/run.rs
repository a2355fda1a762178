//! The agent's start: each part when what it needs is there, so that the node is ready as early as it can be.

use crate::config::AgentConfig;
use crate::dns::{self, Dns};
use crate::edge::{self, Edge};
use crate::host_ports;
use crate::network::NodeNetwork;
use crate::objects::Objects;
use crate::peers;
use crate::pods::Pods;
use crate::recorder::{self, Events};
use crate::runtime;
use crate::worker::Shared;
use agent_cri::cgroups::Cgroups;
use agent_cri::dirs::Dirs;
use agent_cri::{Executor, Runtime, Settings};
use agent_datapath::{Datapath, DatapathConfig};
use agent_network::PodNetwork;
use agent_node::node::Health;
use agent_node::server::tls::TlsFiles;
use agent_node::{Heartbeat, HeartbeatConfig, KubeletApi, Machine};
use agent_pods::dns::ClusterDns;
use agent_pods::fields::Facts;
use agent_pods::status::Host;
use anyhow::{Context as _, Result};
use k8s_cri::v1::VersionResponse;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Client;
use machinery_client::{Cache, WatchOptions};
use machinery_lifecycle::{Shutdown, TaskSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// Time for tasks to finish after the wish to stop.
const STOP: Duration = Duration::from_secs(5);

/// Runs the agent until shutdown. Pods run on without it.
///
/// # Errors
/// When it cannot start, or a part of it ended.
pub async fn run(config: AgentConfig, shutdown: Shutdown) -> Result<()> {
    let client = machinery_client::from_kubeconfig(&config.kubeconfig).await?;
    let mut tasks = TaskSet::new();
    let work = async {
        start(&config, &client, &mut tasks).await?;
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

fn open_datapath(config: &AgentConfig) -> Result<Arc<Datapath>> {
    let cgroup = cgroup2_mount().map(|mount| mount.join(config.socket_cgroup.trim_matches('/')));
    let (pin_dir, service_ranges) = (config.pin_dir.clone(), Vec::new());
    let settings = DatapathConfig {
        pin_dir,
        cgroup,
        service_ranges,
        sizes: None,
    };
    let datapath = Datapath::open(&settings).context("the data path cannot be opened")?;
    Ok(Arc::new(datapath))
}

/// Where the unified cgroup hierarchy is mounted: the whole tree, or beside the v1 controllers.
pub(crate) fn cgroup2_mount() -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let all = agent_cri::cgroups::hierarchies(&table);
    all.into_iter().find(|h| h.unified).map(|h| h.mount)
}

async fn start(config: &AgentConfig, client: &Client, tasks: &mut TaskSet) -> Result<()> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("the state folder {} cannot be made", config.state_dir.display()))?;
    let all_services: Cache<Service> = Cache::default();
    let (cache, api) = (all_services.clone(), client.clone());
    tasks.spawn_endless("service cache", async move {
        cache.run(api, WatchOptions::default()).await
    });
    // Before all that may have to be waited for: the pods that run need names.
    if !config.cluster_dns.is_empty() {
        dns::start(cluster_dns(config, client, &all_services), tasks).await?;
    }
    let runtime = Runtime::new(&config.cri_socket);
    let version = runtime::version(&runtime, &config.cri_socket).await;
    let machine = Machine::read(&config.state_dir);
    let (health_sender, health) = watch::channel(Health {
        problems: vec!["the agent is starting".to_owned()],
    });
    let heartbeat = Heartbeat::register(
        heartbeat_config(config, &version, &machine),
        client.clone(),
        health,
    )
    .await;
    let nodes: Cache<Node> = Cache::default();
    let (cache, api) = (nodes.clone(), client.clone());
    tasks.spawn_endless("node cache", async move {
        cache.run(api, WatchOptions::default()).await
    });
    tasks.spawn_endless("heartbeat", heartbeat.run());
    let (events, notes) = Events::new();
    tasks.spawn_endless(
        "events",
        recorder::write(client.clone(), config.node_name.clone(), notes),
    );
    events.node(
        &config.node_name,
        "Starting",
        "Starting the node agent.".to_owned(),
    );

    let datapath = open_datapath(config)?;
    let pods: Cache<Pod> = Cache::default();
    let fields = Some(format!("spec.nodeName={}", config.node_name));
    let options = WatchOptions {
        fields,
        ..WatchOptions::default()
    };
    let (cache, api) = (pods.clone(), client.clone());
    tasks.spawn_endless("pod cache", async move { cache.run(api, options).await });
    let (sender, host_ports) = watch::channel(None);
    tasks.spawn_endless("host ports", host_ports::watch(pods.clone(), sender));
    let services = Edge {
        node_name: config.node_name.clone(),
        client: client.clone(),
        datapath: Arc::clone(&datapath),
        nodes: nodes.clone(),
        events: events.clone(),
        remembered: None,
        settings: config.edge.clone(),
        dns: config.cluster_dns.clone(),
        host_ports,
        foreign_pods: false,
        foreign: tokio::sync::watch::channel(false).1,
    };
    edge::start(services, tasks)
        .await
        .context("the node's devices cannot be listed")?;
    let network = Arc::new(open_network(config, &nodes).await?);
    restore(&network, &runtime).await;
    tasks.spawn_endless(
        "peers",
        peers::run(Arc::clone(&network), nodes, config.node_name.clone()),
    );
    runtime::ready(&runtime, &health_sender).await;
    tasks.spawn_endless("runtime health", runtime::watch(runtime.clone(), health_sender));

    let (hint_sender, hints) = mpsc::channel(1);
    tasks.spawn_endless(
        "runtime events",
        agent_cri::events::watch(runtime.clone(), hint_sender),
    );
    serve_kubelet(config, &runtime, &pods, tasks).await?;
    let shared = Arc::new(Shared {
        executor: executor(config, runtime, &machine)?,
        client: client.clone(),
        network: Arc::new(NodeNetwork {
            pods: network,
            datapath,
        }),
        objects: Objects::new(client.clone(), all_services),
        events,
        host: Host {
            ips: config.node_ips.clone(),
            runtime: version.runtime_name.clone(),
        },
        node: facts(config, &machine),
        user_namespaces: !version.runtime_version.trim_start_matches('v').starts_with("1."),
    });
    let workers = Pods::new(shared, pods);
    tasks.spawn("pods", move |shutdown| async move {
        workers.run(hints, shutdown).await;
        Ok::<(), String>(())
    });
    Ok(())
}

fn cluster_dns(config: &AgentConfig, client: &Client, services: &Cache<Service>) -> Dns {
    Dns {
        addresses: config.cluster_dns.clone(),
        domain: config.cluster_domain.clone(),
        settings: config.dns.clone(),
        client: client.clone(),
        services: services.clone(),
    }
}

async fn serve_kubelet(
    config: &AgentConfig,
    runtime: &Runtime,
    pods: &Cache<Pod>,
    tasks: &mut TaskSet,
) -> Result<()> {
    let files = TlsFiles {
        cert: config.kubelet_cert.clone(),
        key: config.kubelet_key.clone(),
        client_ca: config.client_ca.clone(),
    };
    let acceptor = TlsAcceptor::from(Arc::new(agent_node::server::tls::config(&files)?));
    let address = config.kubelet_listen;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("the kubelet port {address} cannot be opened"))?;
    let api = KubeletApi {
        node: config.node_name.clone(),
        runtime: runtime.clone(),
        pods: pods.clone(),
        dirs: Dirs::new(&config.state_dir),
    };
    tasks.spawn_endless("kubelet API", Arc::new(api).serve(listener, acceptor));
    Ok(())
}

fn heartbeat_config(config: &AgentConfig, version: &VersionResponse, machine: &Machine) -> HeartbeatConfig {
    let number = version.runtime_version.trim_start_matches('v');
    HeartbeatConfig {
        name: config.node_name.clone(),
        ips: config.node_ips.clone(),
        port: config.kubelet_listen.port(),
        runtime: format!("{}://{}", version.runtime_name, number),
        machine: machine.clone(),
        state: config.state_dir.clone(),
        disk_short: config.disk_short,
    }
}

fn facts(config: &AgentConfig, machine: &Machine) -> Facts {
    Facts {
        host_ips: config.node_ips.clone(),
        pod_ips: Vec::new(),
        cpu_milli: machine.cpus * 1000,
        memory: machine.memory,
        ephemeral_storage: machine.disk,
    }
}

fn executor(config: &AgentConfig, runtime: Runtime, machine: &Machine) -> Result<Executor> {
    let settings = Settings {
        node_name: config.node_name.clone(),
        dns: ClusterDns {
            servers: config.cluster_dns.clone(),
            domain: config.cluster_domain.clone(),
        },
        memory: machine.memory,
    };
    let cgroups = Cgroups::open(&config.cgroup_parent)?;
    Ok(Executor::new(
        runtime,
        Dirs::new(&config.state_dir),
        cgroups,
        settings,
    ))
}

/// Waits for the node's ranges, then sets the pod network up; that also tells the runtime that there is one.
async fn open_network(config: &AgentConfig, nodes: &Cache<Node>) -> Result<PodNetwork> {
    let key = machinery_plan::Key::new("", &config.node_name);
    let mut changes = nodes.changes();
    loop {
        changes.mark_unchanged();
        let cidrs = nodes.get(&key).map(|n| peers::pod_cidrs(&n)).unwrap_or_default();
        if !cidrs.is_empty() {
            let state_file = config.state_dir.join("addresses.json");
            let cni_conf_dir = config.cni_conf_dir.clone();
            let settings = agent_network::Config {
                pod_cidrs: cidrs,
                state_file,
                cni_conf_dir,
                mtu: None,
            };
            return PodNetwork::open(settings).context("the pod network cannot be set up");
        }
        changes.changed().await.context("the node cache ended")?;
    }
}

/// What sandboxes hold is what counts: the state file may be older than a crash.
async fn restore(network: &PodNetwork, runtime: &Runtime) {
    let Ok(sandboxes) = runtime.sandboxes(None).await else {
        return;
    };
    let held: Vec<(String, Vec<std::net::IpAddr>)> = sandboxes
        .iter()
        .filter_map(|s| {
            let annotations = s.annotations.clone().into_iter().collect();
            let uid = s.labels.get(agent_pods::names::LABEL_POD_UID)?;
            Some((uid.clone(), PodNetwork::addresses_in(&annotations)))
        })
        .collect();
    if let Err(error) = network.restore(held.iter().map(|(uid, ips)| (uid.as_str(), ips.clone()))) {
        tracing::warn!(%error, "addresses in use were not noted");
    }
}
