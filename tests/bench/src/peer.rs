//! Who is measured, and what.
use serde::{Deserialize, Serialize};

/// A way to reach a service.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// No service at all: the pod's own address, in a place without any rules. The denominator.
    Direct,
    /// Skep with socket hooks.
    Skep,
    /// Skep for a client that its socket hooks do not serve: translated per packet.
    SkepPackets,
    /// A pod's own address where Skep serves the pods: what its programs cost those who want nothing of them.
    SkepPodAddress,
    /// The real kube-proxy.
    KubeProxyNftables,
    KubeProxyIptablesNft,
    KubeProxyIptablesLegacy,
}

impl Peer {
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Skep,
        Self::SkepPackets,
        Self::SkepPodAddress,
        Self::KubeProxyNftables,
        Self::KubeProxyIptablesNft,
        Self::KubeProxyIptablesLegacy,
    ];

    /// As in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Skep => "skep",
            Self::SkepPackets => "skep-packets",
            Self::SkepPodAddress => "skep-pod-address",
            Self::KubeProxyNftables => "kube-proxy-nftables",
            Self::KubeProxyIptablesNft => "kube-proxy-iptables-nft",
            Self::KubeProxyIptablesLegacy => "kube-proxy-iptables-legacy",
        }
    }

    pub fn is_kube_proxy(self) -> bool {
        !matches!(
            self,
            Self::Direct | Self::Skep | Self::SkepPackets | Self::SkepPodAddress
        )
    }

    /// Whether its clients use pods' own addresses.
    pub fn is_to_pods(self) -> bool {
        matches!(self, Self::Direct | Self::SkepPodAddress)
    }

    /// Whether programming is measured of it: the other ways of Skep are programmed no differently.
    pub fn is_programmed(self) -> bool {
        self == Self::Skep || self.is_kube_proxy()
    }

    /// Whether clients of services outlive their endpoints there.
    pub fn is_through_services(self) -> bool {
        !self.is_to_pods()
    }
}

/// What is measured.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
pub enum Measure {
    /// connect() alone.
    Connect,
    /// TCP connect, request, response, close.
    Crr,
    /// Request and response on an established connection.
    Rr,
    /// TCP throughput.
    Stream,
    /// Datagrams that arrive.
    Udp,
    /// Everything programmed from nothing.
    ProgramCold,
    /// One endpoint changed.
    Update,
    /// A connected UDP client whose endpoint died.
    StaleUdp,
    /// Resident memory of the one who programs.
    AgentRss,
    /// The loaded programs alone, by test runs.
    NsPerPacket,
}

impl Measure {
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Crr,
        Self::Rr,
        Self::Stream,
        Self::Udp,
        Self::ProgramCold,
        Self::Update,
        Self::StaleUdp,
        Self::AgentRss,
        Self::NsPerPacket,
    ];

    /// As in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Crr => "crr",
            Self::Rr => "rr",
            Self::Stream => "stream",
            Self::Udp => "udp",
            Self::ProgramCold => "program_cold",
            Self::Update => "update",
            Self::StaleUdp => "stale_udp",
            Self::AgentRss => "agent_rss",
            Self::NsPerPacket => "ns_per_packet",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Connect | Self::Crr | Self::Rr => "us",
            Self::Stream => "Gbit/s",
            Self::Udp => "kpps",
            Self::ProgramCold | Self::Update | Self::StaleUdp => "ms",
            Self::AgentRss => "MiB",
            Self::NsPerPacket => "ns",
        }
    }

    /// In words, for tables and plots.
    pub fn title(self) -> &'static str {
        match self {
            Self::Connect => "connect() through a service",
            Self::Crr => "TCP connect, request, response, close",
            Self::Rr => "request and response, established",
            Self::Stream => "TCP throughput",
            Self::Udp => "UDP datagrams delivered",
            Self::ProgramCold => "all services programmed from nothing",
            Self::Update => "one endpoint changed",
            Self::StaleUdp => "connected UDP client of a killed endpoint recovers",
            Self::AgentRss => "memory of the agent",
            Self::NsPerPacket => "one packet in the loaded programs, by test runs",
        }
    }

    /// Whether it is measured of every peer at every number of services.
    pub fn is_of_peers(self) -> bool {
        self != Self::NsPerPacket
    }

    /// Whether it is measured in short blocks, all peers in turn.
    pub fn in_blocks(self) -> bool {
        matches!(
            self,
            Self::Connect | Self::Crr | Self::Rr | Self::Stream | Self::Udp
        )
    }

    /// How much one block is: operations, or milliseconds.
    pub fn block(self) -> usize {
        match self {
            Self::Connect => 200,
            Self::Crr => 100,
            Self::Rr => 500,
            _ => 50,
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Stream | Self::Udp)
    }
}
