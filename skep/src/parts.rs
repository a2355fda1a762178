//! `skep server` and `skep agent`: reads their configuration and runs them until they are told to stop.
use crate::cli::{AgentArgs, Only, ServerArgs};
use crate::config::{self, AgentConfig, ServerConfig};
use crate::services;
use crate::standalone;
use agent::dns::DnsSettings;
use agent::edge::settings::EdgeSettings;
use anyhow::{Context, Result};
use control_plane::{Listen, StoreKind};
use machinery_lifecycle::{Shutdown, logs};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;

/// Health and metrics of the controllers and the scheduler, on the loopback address.
const CONTROLLERS_PORT: u16 = 10257;
/// See there.
const SCHEDULER_PORT: u16 = 10259;
/// Where an agent's configuration is when nothing else is said.
const AGENT_CONFIG: &str = "/etc/skep/agent.yaml";
/// The port of a node's kubelet API.
const KUBELET_PORT: u16 = 10250;

/// Runs the control plane.
///
/// # Errors
/// What keeps it from running.
pub fn server(args: &ServerArgs) -> Result<()> {
    let mut config: ServerConfig = config::read(&args.config, "ServerConfig")?;
    if let Some(pools) = &args.lb_pool {
        config.load_balancer_pools = pools.iter().map(ToString::to_string).collect();
    }
    logs::init(&args.log, logs::Format::Text);
    run(async |shutdown| {
        let machine = crate::doctor::addresses().await?;
        let config = standalone::complete(config, &machine);
        control_plane::run(server_config(config)?, shutdown)
            .await
            .map_err(Into::into)
    })
}

fn server_config(config: ServerConfig) -> Result<control_plane::ServerConfig> {
    let mut listen: Vec<Listen> = config.listen.into_iter().map(Listen::Address).collect();
    if config.listen_on_stdin {
        let socket = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("standard input is not open")?;
        listen.push(Listen::Socket(TcpListener::from(socket)));
    }
    let store = match config.store.etcd_endpoints {
        endpoints if endpoints.is_empty() => StoreKind::Embedded,
        endpoints => StoreKind::Etcd { endpoints },
    };
    let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    Ok(control_plane::ServerConfig {
        pki_dir: config.pki_dir,
        listen,
        advertise: config.advertise,
        advertise_port: config.advertise_port,
        names: config.names,
        store,
        pod_cidrs: config.pod_cidrs,
        service_cidrs: config.service_cidrs,
        load_balancer_pools: config.load_balancer_pools,
        controllers_port: local(CONTROLLERS_PORT),
        scheduler_port: local(SCHEDULER_PORT),
        ..control_plane::ServerConfig::new(config.data_dir)
    })
}

/// Runs a node's agent, or its services alone.
///
/// # Errors
/// What keeps it from running.
pub fn agent(args: &AgentArgs) -> Result<()> {
    agent_datapath::share_one_heap();
    if args.only == Some(Only::Services) {
        let config = services::config(args)?;
        crate::doctor::require_root("a node's agent")?;
        logs::init(&args.log, logs::Format::Text);
        return run(async |shutdown| agent::run_services(config, shutdown).await);
    }
    let path = args.config.as_deref().unwrap_or(Path::new(AGENT_CONFIG));
    let config: AgentConfig = config::read(path, "AgentConfig")?;
    let edge = services::settings(&args.services, &config.services)?;
    crate::doctor::require_root("a node's agent")?;
    logs::init(&args.log, logs::Format::Text);
    let dns = config.dns.settings()?;
    let config = agent_config(config, edge, dns);
    run(async |shutdown| agent::run(config, shutdown).await)
}

fn agent_config(config: AgentConfig, edge: EdgeSettings, dns: DnsSettings) -> agent::AgentConfig {
    agent::AgentConfig {
        node_name: config.node_name,
        cluster: config.cluster,
        kubeconfig: config.kubeconfig,
        cri_socket: config.cri_socket,
        state_dir: config.state_dir,
        disk_short: config.disk_pressure_percent,
        run_dir: config.run_dir,
        pin_dir: config.pin_dir,
        cgroup_parent: config.cgroup_parent,
        socket_cgroup: config.socket_cgroup,
        node_ips: config.node_ips,
        // One socket for both families.
        kubelet_listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), KUBELET_PORT),
        kubelet_cert: config.kubelet_cert,
        kubelet_key: config.kubelet_key,
        client_ca: config.client_ca,
        cni_conf_dir: config.cni_conf_dir,
        cni_bin_dir: config.cni_bin_dir,
        edge,
        cluster_dns: config.cluster_dns,
        dns,
        cluster_domain: "cluster.local".to_owned(),
    }
}

/// Runs a part on a runtime of its own until it ends or a signal asks it to.
fn run(part: impl AsyncFnOnce(Shutdown) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot wait for signals")?;
        part(shutdown).await
    })
}
