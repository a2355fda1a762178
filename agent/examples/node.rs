//! One node's agent, for trying it by hand: `node DIR NAME IP KUBECONFIG`, with containerd's socket, CNI folders and
//! the kubelet port's certificate below `DIR`, in namespaces that the caller made.

use agent::AgentConfig;
use machinery_lifecycle::Shutdown;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, name, ip, kubeconfig] = &arguments[..] else {
        anyhow::bail!("usage: node DIR NAME IP KUBECONFIG")
    };
    let (dir, ip) = (PathBuf::from(dir), ip.parse::<IpAddr>()?);
    machinery_lifecycle::logs::init(
        "info,agent=debug,agent_cri=debug",
        machinery_lifecycle::logs::Format::Text,
    );
    let config = AgentConfig {
        node_name: name.clone(),
        cluster: "try".to_owned(),
        kubeconfig: kubeconfig.into(),
        cri_socket: dir.join("containerd.sock"),
        state_dir: dir.join("state-agent"),
        disk_short: agent::DISK_SHORT,
        run_dir: dir.join("run"),
        pin_dir: PathBuf::from("/sys/fs/bpf/skep").join(name),
        cgroup_parent: format!("skep-try/{name}"),
        socket_cgroup: format!("skep-try/{name}"),
        node_ips: vec![ip],
        kubelet_listen: SocketAddr::new(ip, 10250),
        kubelet_cert: dir.join("kubelet.crt"),
        kubelet_key: dir.join("kubelet.key"),
        client_ca: dir.join("ca.crt"),
        cni_conf_dir: dir.join("cni/net.d"),
        cni_bin_dir: dir.join("cni/bin"),
        edge: agent::edge::settings::EdgeSettings::default(),
        cluster_dns: Vec::new(),
        dns: agent::dns::DnsSettings::default(),
        cluster_domain: "cluster.local".to_owned(),
    };
    agent::run(config, Shutdown::on_signals()?).await
}
