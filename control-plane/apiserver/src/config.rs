//! What an API server is told at start.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::cidr::Cidr;
use crate::pki::Pki;

/// Settings of an API server.
#[derive(Clone)]
pub struct Config {
    /// Ranges service addresses come from, the primary family first; at most one of each family.
    pub service_cidrs: Vec<Cidr>,
    /// Ports for services of the types `NodePort` and `LoadBalancer`.
    pub node_ports: RangeInclusive<u16>,
    /// Keys and certificates.
    pub pki: Arc<Pki>,
    /// Addresses at which pods and nodes reach this server; they become the endpoints of the service `kubernetes`.
    pub advertise: Vec<IpAddr>,
    /// The port that goes with [`Config::advertise`].
    pub advertise_port: u16,
    /// Issuer of service-account tokens, and their audience when none is asked for.
    pub issuer: String,
    /// Requests served at a time, without watches and streams; more are answered 429.
    pub max_in_flight: usize,
    /// How long a request may take, without watches and streams.
    pub request_timeout: Duration,
    /// How long events are kept.
    pub event_ttl: Duration,
}

/// The largest request body, as upstream: 3 MiB.
pub const MAX_BODY: usize = 3 << 20;

impl Config {
    /// The defaults of a cluster, with these keys: services in `10.96.0.0/16` and `fd00:10:96::/112`, node ports
    /// 30000–32767, events kept for one hour.
    #[must_use]
    pub fn new(pki: Arc<Pki>) -> Self {
        let cidr = |text: &str| text.parse().expect("a constant range is well formed");
        Self {
            service_cidrs: vec![cidr("10.96.0.0/16"), cidr("fd00:10:96::/112")],
            node_ports: 30000..=32767,
            pki,
            advertise: Vec::new(),
            advertise_port: 6443,
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            max_in_flight: 600,
            request_timeout: Duration::from_secs(60),
            event_ttl: Duration::from_secs(3600),
        }
    }
}
