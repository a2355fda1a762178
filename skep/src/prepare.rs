//! What a cluster needs on disk before it starts: keys, configuration files, images.
use crate::config::{self, API_VERSION, AgentConfig, ServerConfig, StoreConfig};
use crate::layout::{API_PORT, Cluster, ETCD_PORT, Node, POD_RANGES, SERVICE_RANGES, StoreKind};
use crate::node;
use anyhow::{Context, Result};
use control_plane_apiserver::pki::Pki;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// Writes everything; keys and certificates that are there stay.
///
/// # Errors
/// The file or key that fails.
pub fn cluster(cluster: &Cluster) -> Result<()> {
    let dirs = cluster.dirs();
    for dir in [&dirs.state, &dirs.run] {
        private_dir(dir)?;
    }
    config::write_private(
        &dirs.cluster_file(),
        serde_json::to_string_pretty(cluster)?.as_bytes(),
    )?;
    let pki = Pki::open_or_create(&dirs.pki(), &cluster.server_names())
        .context("cannot make the cluster's keys")?;
    let admin = pki
        .issue_client("kubernetes-admin", &["system:masters"])
        .context("cannot make the administrator's key")?;
    config::write_private(
        &dirs.kubeconfig(),
        pki.kubeconfig(&cluster.machine_url(), &admin).as_bytes(),
    )?;
    config::write(&dirs.run.join("server.yaml"), &server(cluster))?;
    node::write_images(&dirs.images())?;
    cluster.nodes().iter().try_for_each(|n| member(cluster, n, &pki))
}

fn private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

fn server(cluster: &Cluster) -> ServerConfig {
    let dirs = cluster.dirs();
    let etcd = (cluster.store == StoreKind::Etcd).then(|| format!("http://127.0.0.1:{ETCD_PORT}"));
    let port = if cluster.host { cluster.api_port } else { API_PORT };
    // On the machine itself the loopback address is served by the inherited socket.
    let listen = if cluster.host {
        cluster
            .host_ips
            .iter()
            .filter(|ip| !ip.is_loopback())
            .map(|ip| SocketAddr::new(*ip, port))
            .collect()
    } else {
        vec![SocketAddr::from(([0u16; 8], port))]
    };
    ServerConfig {
        api_version: API_VERSION.to_owned(),
        kind: "ServerConfig".to_owned(),
        data_dir: dirs.server(),
        pki_dir: dirs.pki(),
        listen,
        listen_on_stdin: true,
        advertise: cluster.server_ips(),
        advertise_port: port,
        names: cluster.server_names(),
        store: StoreConfig {
            etcd_endpoints: etcd.into_iter().collect(),
        },
        pod_cidrs: POD_RANGES.map(str::to_owned).to_vec(),
        service_cidrs: SERVICE_RANGES.map(str::to_owned).to_vec(),
        load_balancer_pools: cluster.balancer_pools(),
    }
}

/// A node's keys, its access to the API, and its configuration.
fn member(cluster: &Cluster, node: &Node, pki: &Pki) -> Result<()> {
    for dir in [&node.state, &node.run] {
        private_dir(dir)?;
    }
    let user = format!("system:node:{}", node.name);
    let client = pki
        .issue_client(&user, &["system:nodes"])
        .context("cannot make the node's key")?;
    config::write_private(
        &node.kubeconfig(),
        pki.kubeconfig(&cluster.cluster_url(), &client).as_bytes(),
    )?;
    let mut names: Vec<String> = node.ips.iter().map(IpAddr::to_string).collect();
    names.extend([node.name.clone(), IpAddr::V4(Ipv4Addr::LOCALHOST).to_string()]);
    let serving = pki
        .issue_kubelet_server(&node.name, &names)
        .context("cannot make the node's certificate")?;
    let config = agent(cluster, node);
    config::write_private(&config.kubelet_cert, serving.cert_pem.as_bytes())?;
    config::write_private(&config.kubelet_key, serving.key_pem.as_bytes())?;
    config::write_private(&config.client_ca, pki.ca_pem().as_bytes())?;
    config::write(&node.run.join("agent.yaml"), &config)?;
    node::prepare(node)
}

fn agent(cluster: &Cluster, node: &Node) -> AgentConfig {
    AgentConfig {
        api_version: API_VERSION.to_owned(),
        kind: "AgentConfig".to_owned(),
        node_name: node.name.clone(),
        cluster: cluster.name.to_string(),
        kubeconfig: node.kubeconfig(),
        cri_socket: node.cri_socket(),
        state_dir: node.state.clone(),
        // Nodes that share a machine's disk with everything else on it are none the worse for its being full.
        disk_pressure_percent: if cluster.host { agent::DISK_SHORT } else { 1 },
        run_dir: node.run.clone(),
        pin_dir: node.pins(),
        cgroup_parent: node.cgroup(),
        socket_cgroup: if cluster.host {
            String::new()
        } else {
            node.cgroup()
        },
        node_ips: node.ips.clone(),
        kubelet_cert: node.state.join("pki/kubelet.crt"),
        kubelet_key: node.state.join("pki/kubelet.key"),
        client_ca: node.state.join("pki/ca.crt"),
        cni_conf_dir: node.cni_conf(),
        cni_bin_dir: node.cni_bin(),
        cluster_dns: crate::layout::DNS_ADDRESSES.to_vec(),
        dns: config::DnsSection::default(),
        services: config::ServicesSection {
            cluster_cidr: Some(crate::layout::POD_RANGES.map(str::to_owned).to_vec()),
            ..config::ServicesSection::default()
        },
    }
}
