//! What an agent is told by its configuration.

use crate::dns::DnsSettings;
use crate::edge::settings::EdgeSettings;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Configuration of one node's agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The node's name in the cluster.
    pub node_name: String,
    /// The cluster's name, for messages.
    pub cluster: String,
    /// Access to the API as this node.
    pub kubeconfig: PathBuf,
    /// The container runtime's socket.
    pub cri_socket: PathBuf,
    /// Pods' volumes, logs and the agent's own state.
    pub state_dir: PathBuf,
    /// Under this many per cent of the state's disk free the node reports `DiskPressure`.
    pub disk_short: u8,
    /// The agent's sockets.
    pub run_dir: PathBuf,
    /// Where eBPF programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The node's folder in each cgroup hierarchy, such as `skep/<node>`.
    pub cgroup_parent: String,
    /// The cgroup2 folder whose processes' sockets reach services, below the hierarchy's mount: `cgroup_parent` where
    /// the node is one of several on a machine, empty (everything) where the machine is the node.
    pub socket_cgroup: String,
    /// The node's addresses, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Where the kubelet API listens (port 10250 of the node's address).
    pub kubelet_listen: SocketAddr,
    /// Its certificate (PEM).
    pub kubelet_cert: PathBuf,
    /// Its key (PEM).
    pub kubelet_key: PathBuf,
    /// The authority whose client certificates may use it (PEM).
    pub client_ca: PathBuf,
    /// The runtime's CNI configuration folder.
    pub cni_conf_dir: PathBuf,
    /// The runtime's CNI plugin folder.
    pub cni_bin_dir: PathBuf,
    /// The operator's decisions about services.
    pub edge: EdgeSettings,
    /// Addresses of the cluster's DNS service; empty while there is none.
    pub cluster_dns: Vec<IpAddr>,
    /// About names outside the cluster.
    pub dns: DnsSettings,
    /// The cluster's domain.
    pub cluster_domain: String,
}
