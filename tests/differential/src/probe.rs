//! What is asked of a node, and what it can answer.
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Client {
    /// Packets of a pod of the node, whose sockets nobody serves.
    PodPackets,
    /// The same from the one address that may be an endpoint too.
    PodSelf,
    /// A socket in a pod of the node.
    PodSocket,
    /// A socket of the node itself.
    Node,
    /// A machine outside of the cluster, in the part that some source ranges allow.
    Outside,
    /// One in the other part.
    Elsewhere,
    /// A pod of another node.
    RemotePod,
}

impl Client {
    pub const ALL: [Self; 7] = [
        Self::PodPackets,
        Self::PodSelf,
        Self::PodSocket,
        Self::Node,
        Self::Outside,
        Self::Elsewhere,
        Self::RemotePod,
    ];

    pub fn is_socket(self) -> bool {
        matches!(self, Self::PodSocket | Self::Node)
    }

    /// A pod or process of the node, whose packets and answers pass it in any case.
    pub fn is_of_the_node(self) -> bool {
        matches!(
            self,
            Self::PodPackets | Self::PodSelf | Self::PodSocket | Self::Node
        )
    }

    /// Its `n`-th address, if it is no socket's.
    pub fn address(self, v4: bool, n: u32) -> IpAddr {
        let (first, count, v6) = match self {
            Self::PodPackets => ([10, 244, 0, 64], 60, "fd00:10:244::3:0"),
            Self::PodSelf => ([10, 244, 0, 32], 1, "fd00:10:244::4:0"),
            Self::PodSocket => ([10, 244, 0, 2], 1, "fd00:10:244::2"),
            Self::Node => ([10, 89, 0, 11], 1, "fd89::11"),
            Self::Outside => ([203, 0, 113, 2], 100, "2001:db8:5200::2"),
            Self::Elsewhere => ([203, 0, 113, 130], 100, "2001:db8:5200:1::2"),
            Self::RemotePod => ([10, 244, 1, 130], 100, "fd00:10:244:1::5:0"),
        };
        let n = n % count;
        if v4 {
            Ipv4Addr::from(u32::from(Ipv4Addr::from(first)) + n).into()
        } else {
            let v6: Ipv6Addr = v6.parse().expect("an address of the test");
            Ipv6Addr::from(u128::from(v6) + u128::from(n)).into()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proto {
    Tcp,
    Udp,
}

/// Connections of one kind of client to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Probe {
    pub client: Client,
    pub to: SocketAddr,
    pub proto: Proto,
    /// Which address of the client's; another one for each try if `None`.
    pub address: Option<u32>,
}

/// Whom an endpoint sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Shown {
    Client,
    Node,
    Other(IpAddr),
}

/// What became of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Once {
    /// An endpoint got it; its answer reached the client as the address's that was asked, and what the client said then came to the
    /// same endpoint.
    Endpoint(SocketAddr, Shown),
    /// The same, up to where it was no longer so.
    Broken(SocketAddr, Shown, Fault),
    /// It was sent on as it was.
    Untouched,
    /// The client was told that there is nobody.
    Refused,
    /// Nothing came of it.
    Dropped,
}

/// Where a connection to an endpoint breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// The answer did not reach the client as that of the address it asked.
    Answer,
    /// What the client said next did not reach the same endpoint in the same way.
    Next,
}

/// Everything that tries came to.
pub type Outcome = BTreeSet<Once>;

/// What the parent wants of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Objects that are there now or changed, names of those that are gone, and the node's zone.
    State(Changes),
    /// Each so many times.
    Ask(Vec<Probe>, u16),
}

/// What changes at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    pub put: Vec<Value>,
    /// Kind and name, in the namespace `ns`.
    pub gone: Vec<(String, String)>,
    pub zone: Option<String>,
}

/// What a node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Ready,
    Outcomes(Vec<Outcome>),
    Failed(String),
}
