//! What a control plane is told at start.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// Where the API listens.
#[derive(Debug)]
pub enum Listen {
    /// An address to bind.
    Address(SocketAddr),
    /// A socket that listens already, such as one inherited from another network namespace.
    Socket(TcpListener),
}

/// Where objects are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// In a file below the data folder.
    #[default]
    Embedded,
    /// In etcd, at these URLs.
    Etcd {
        /// Such as `http://127.0.0.1:2379`.
        endpoints: Vec<String>,
    },
}

/// Settings of a control plane.
#[derive(Debug)]
pub struct ServerConfig {
    /// The embedded store and the kubeconfigs.
    pub data_dir: PathBuf,
    /// Keys and certificates; made when missing.
    pub pki_dir: PathBuf,
    /// Where the API listens.
    pub listen: Vec<Listen>,
    /// The addresses that pods and nodes reach the API at, the primary family first.
    pub advertise: Vec<IpAddr>,
    /// The port that goes with them.
    pub advertise_port: u16,
    /// Names and addresses that the server's certificate is valid for.
    pub names: Vec<String>,
    /// Where objects are kept.
    pub store: StoreKind,
    /// Pod address ranges, one per family, the primary first.
    pub pod_cidrs: Vec<String>,
    /// Service address ranges, one per family, the primary first.
    pub service_cidrs: Vec<String>,
    /// Ranges that services of type LoadBalancer get their addresses from; none means that nobody gives them any.
    pub load_balancer_pools: Vec<String>,
    /// Fixed bits of a node's part of the IPv4 and of the IPv6 pod range.
    pub node_cidr_lengths: (u8, u8),
    /// Where the controllers answer `/healthz` and `/metrics` (10257 is upstream's port); nowhere if absent.
    pub controllers_port: Option<SocketAddr>,
    /// The same for the scheduler (10259).
    pub scheduler_port: Option<SocketAddr>,
    /// How long stopping may take altogether.
    pub stop_within: Duration,
}

impl ServerConfig {
    /// The defaults of a cluster with this data folder, listening on one port of the loopback address.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        Self {
            pki_dir: data_dir.join("pki"),
            data_dir,
            listen: vec![Listen::Address((loopback, 6443).into())],
            advertise: vec![loopback],
            advertise_port: 6443,
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            store: StoreKind::Embedded,
            pod_cidrs: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()],
            service_cidrs: vec!["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()],
            load_balancer_pools: Vec::new(),
            node_cidr_lengths: (24, 64),
            controllers_port: None,
            scheduler_port: None,
            stop_within: Duration::from_secs(10),
        }
    }
}
