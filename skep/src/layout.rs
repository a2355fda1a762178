//! Where everything of a cluster lies, and which addresses it has: pure, so that every command agrees.
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// The most nodes a cluster on one machine can have; the address plan has room for more, the machine rarely.
pub const MOST_NODES: u8 = 100;
/// The name of a cluster that was given none.
pub const DEFAULT_NAME: &str = "skep";
/// The sandbox image of every node.
pub const PAUSE_IMAGE: &str = "skep.local/pause:1";

/// The name of a cluster: short, since it is part of device, host and folder names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl std::str::FromStr for ClusterName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let fine = text.len() <= 20
            && text.chars().all(label)
            && ends(text.chars().next())
            && ends(text.chars().last());
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err("a cluster name has at most 20 characters of a-z, 0-9 and -, and begins and ends with a letter or digit"
                .to_owned())
        }
    }
}

impl TryFrom<String> for ClusterName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The store a cluster keeps its objects in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Inside of the server process
    #[default]
    Embedded,
    /// An etcd process beside it
    Etcd,
}

/// What `skep up` was asked for; kept in `cluster.json` from the first start on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// How many nodes, 1 with `host`.
    pub nodes: u8,
    /// Where the objects are kept.
    pub store: StoreKind,
    /// The port on the machine's loopback address where the API is reached.
    pub api_port: u16,
    /// Whether the machine itself is the node, without namespaces.
    pub host: bool,
    /// Where `host` is set: the machine's own addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ips: Vec<IpAddr>,
    /// Where `host` is set: the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Where services of type LoadBalancer get their addresses; chosen for the cluster where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lb_pools: Vec<agent_network::Prefix>,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

/// Pods' addresses of the whole cluster.
pub const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Services' addresses.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// Addresses of services of type LoadBalancer, out of the nodes' own network and beyond its nodes.
pub const BALANCER_RANGES: [&str; 2] = ["10.89.0.192/26", "fd89::1:0/112"];
/// The cluster's DNS: the tenth address of each range.
pub const DNS_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa)),
];
/// The port of the API inside the cluster.
pub const API_PORT: u16 = 6443;
/// etcd's port, on the router's loopback address.
pub const ETCD_PORT: u16 = 2379;

/// State, logs and run-time files of all clusters.
pub fn state_root() -> PathBuf {
    PathBuf::from("/var/lib/skep")
}

/// Run-time files of all clusters.
pub fn run_root() -> PathBuf {
    PathBuf::from("/run/skep")
}

/// The folders of a cluster.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// What outlives a restart of the machine.
    pub state: PathBuf,
    /// What does not.
    pub run: PathBuf,
}

impl Dirs {
    /// The folders of the cluster of this name.
    pub fn of(name: &ClusterName) -> Self {
        Self {
            state: state_root().join(&name.0),
            run: run_root().join(&name.0),
        }
    }

    /// What the cluster was asked to be.
    pub fn cluster_file(&self) -> PathBuf {
        self.state.join("cluster.json")
    }

    /// The administrator's access, mode 0600.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// The server's data: the embedded store.
    pub fn server(&self) -> PathBuf {
        self.state.join("server")
    }

    /// etcd's data.
    pub fn etcd(&self) -> PathBuf {
        self.state.join("etcd")
    }

    /// Which processes run, with their start times.
    pub fn processes(&self) -> PathBuf {
        self.run.join("processes.json")
    }

    /// The logs of all processes.
    pub fn logs(&self) -> PathBuf {
        self.run.join("log")
    }

    /// The log of one process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// Stands if the machine had no bpffs mounted before.
    pub fn own_bpffs(&self) -> PathBuf {
        self.run.join("own-bpffs")
    }

    /// The images that every node imports at start.
    pub fn images(&self) -> PathBuf {
        self.run.join("images")
    }
}

/// One node: its name, addresses and folders.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the cluster, unique on the machine.
    pub name: String,
    /// Its own addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// What outlives a restart: containers' files, the agent's state.
    pub state: PathBuf,
    /// Sockets and configuration.
    pub run: PathBuf,
}

impl Node {
    /// The runtime's configuration.
    pub fn containerd_config(&self) -> PathBuf {
        self.run.join("containerd.toml")
    }

    /// The runtime's socket.
    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// The agent's access to the API, mode 0600.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Where the runtime looks for network configuration.
    pub fn cni_conf(&self) -> PathBuf {
        self.run.join("cni/net.d")
    }

    /// Where the runtime looks for network plugins.
    pub fn cni_bin(&self) -> PathBuf {
        self.run.join("cni/bin")
    }

    /// Below each cgroup hierarchy: everything of this node.
    pub fn cgroup(&self) -> String {
        format!("skep/{}", self.name)
    }

    /// Where the node's eBPF programs and maps are pinned, as the node sees it.
    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/skep").join(&self.name)
    }
}

impl Cluster {
    /// Where services of type LoadBalancer get their addresses: nowhere on a machine whose network is not ours, unless told.
    pub fn balancer_pools(&self) -> Vec<String> {
        if !self.lb_pools.is_empty() {
            return self.lb_pools.iter().map(ToString::to_string).collect();
        }
        let ranges: &[&str] = if self.host { &[] } else { &BALANCER_RANGES };
        ranges.iter().map(|range| (*range).to_owned()).collect()
    }

    /// Its folders.
    pub fn dirs(&self) -> Dirs {
        Dirs::of(&self.name)
    }

    /// Its nodes in order.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.nodes).map(|n| self.node(n)).collect()
    }

    fn node(&self, number: u8) -> Node {
        let dirs = self.dirs();
        let (name, ips) = if self.host {
            let name = self.host_name.clone().unwrap_or_else(|| "localhost".to_owned());
            (name, self.host_ips.clone())
        } else {
            (
                format!("{}-{number}", self.name),
                lan_addresses(10 + number).to_vec(),
            )
        };
        Node {
            state: dirs.state.join(&name),
            run: dirs.run.join(&name),
            name,
            ips,
        }
    }

    /// Where nodes reach the API.
    pub fn server_ips(&self) -> Vec<IpAddr> {
        if self.host {
            self.host_ips.clone()
        } else {
            lan_addresses(1).to_vec()
        }
    }

    /// Where kubectl reaches the API on this machine.
    pub fn machine_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// Where nodes reach the API, as a URL.
    pub fn cluster_url(&self) -> String {
        let port = if self.host { self.api_port } else { API_PORT };
        let ip = self
            .server_ips()
            .first()
            .copied()
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        format!("https://{}", std::net::SocketAddr::new(ip, port))
    }

    /// Names and addresses the server's certificate is valid for.
    pub fn server_names(&self) -> Vec<String> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "::1",
            "10.96.0.1",
            "fd00:10:96::1",
        ];
        let own = self.server_ips().into_iter().map(|ip| ip.to_string());
        names.iter().map(|n| (*n).to_owned()).chain(own).collect()
    }
}

/// The addresses with this number in the segment that joins router and nodes.
pub fn lan_addresses(number: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd89, 0, 0, 0, 0, 0, 0, decimal_as_hex(number));
    [IpAddr::V4(Ipv4Addr::new(10, 89, 0, number)), IpAddr::V6(v6)]
}

/// 11 → 0x11, so that both families' addresses of a node look alike.
fn decimal_as_hex(number: u8) -> u16 {
    u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10)
}

/// Prefix lengths of [`lan_addresses`].
pub fn lan_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 24 } else { 64 }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn cluster(nodes: u8) -> Cluster {
        Cluster {
            name: "a".parse().expect("a fine name"),
            nodes,
            store: StoreKind::Embedded,
            api_port: 40001,
            host: false,
            host_ips: vec![],
            host_name: None,
            lb_pools: vec![],
            created: 0,
        }
    }

    #[test]
    fn balancers_have_addresses_of_the_nodes_network_that_no_node_has() {
        let cluster = cluster(MOST_NODES);
        let pools: Vec<agent_network::Prefix> = cluster
            .balancer_pools()
            .iter()
            .map(|p| p.parse().expect("a range"))
            .collect();
        let taken = |ip: &IpAddr| pools.iter().any(|p| p.contains(*ip));
        assert_eq!(pools.len(), 2);
        assert!(!cluster.nodes().iter().flat_map(|n| &n.ips).any(taken));
        let own = Cluster {
            host: true,
            ..cluster
        };
        assert!(
            own.balancer_pools().is_empty(),
            "the machine's network is not ours to take from"
        );
    }

    #[test]
    fn nodes_have_addresses_of_both_families_that_look_alike() {
        let nodes = cluster(2).nodes();
        assert_eq!(nodes[0].name, "a-1");
        assert_eq!(nodes[1].ips[0].to_string(), "10.89.0.12");
        assert_eq!(nodes[1].ips[1].to_string(), "fd89::12");
    }

    #[test]
    fn no_two_nodes_share_an_address() {
        let all: std::collections::BTreeSet<_> = cluster(MOST_NODES)
            .nodes()
            .into_iter()
            .flat_map(|n| n.ips)
            .chain(cluster(1).server_ips())
            .collect();
        assert_eq!(all.len(), 2 * (usize::from(MOST_NODES) + 1));
    }

    #[test]
    fn nodes_reach_the_api_at_the_router_and_the_machine_at_loopback() {
        assert_eq!(cluster(1).cluster_url(), "https://10.89.0.1:6443");
        assert_eq!(cluster(1).machine_url(), "https://127.0.0.1:40001");
    }

    #[test]
    fn a_name_that_would_not_fit_in_a_path_is_refused() {
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a.b", "aaaaaaaaaaaaaaaaaaaaa"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
        assert!("test-1".parse::<ClusterName>().is_ok());
    }

    #[test]
    fn socket_paths_fit_the_kernel_limit() {
        let mut cluster = cluster(MOST_NODES);
        cluster.name = "aaaaaaaaaaaaaaaaaaaa".parse().expect("20 characters");
        let longest = cluster.nodes().pop().expect("has nodes").cri_socket();
        assert!(longest.as_os_str().len() + ".ttrpc".len() < 108);
    }
}
