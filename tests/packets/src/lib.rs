//! One table of packets, for the logic on the host and for the loaded programs alike: what goes in, what has to come out.
use datapath_abi::{Address, Be16, Proto};
use std::net::SocketAddr;

mod frame;
pub use frame::{Frame, checksums_hold};

/// TCP flags in the table.
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Where a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    ToPod,
}

/// What has to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passes, byte by byte the same.
    Untouched,
    /// Passes with this destination.
    SentTo(&'static str),
    /// Passes with this source.
    ComesFrom(&'static str),
    /// Answered by a reset, or by port unreachable.
    Rejected,
    Dropped,
}

/// A packet of a case.
pub struct Step {
    pub hook: Hook,
    pub frame: Frame,
    pub outcome: Outcome,
}

/// A service of a case: address, protocol, endpoints.
pub type ServiceLine = (&'static str, Proto, &'static [&'static str]);

/// Some services, then packets in order.
pub struct Case {
    pub name: &'static str,
    pub services: Vec<ServiceLine>,
    pub steps: Vec<Step>,
}

/// Reads an address of the table.
pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("the table's address {text}: {e}"))
}

/// As the maps have it.
pub fn wire(text: &str) -> (Address, Be16) {
    let addr = at(text);
    (addr.ip().into(), Be16::new(addr.port()))
}

/// The table's way of writing one packet: hook, protocol, TCP flags, from, to, outcome.
type Line = (Hook, Proto, u8, &'static str, &'static str, Outcome);

fn case(name: &'static str, services: &[ServiceLine], lines: Vec<Line>) -> Case {
    let step = |(hook, proto, flags, from, to, outcome): Line| Step {
        hook,
        frame: Frame::new(proto, flags, at(from), at(to)),
        outcome,
    };
    Case {
        name,
        services: services.to_vec(),
        steps: lines.into_iter().map(step).collect(),
    }
}

/// The table.
pub fn table() -> Vec<Case> {
    use Hook::{FromPod, ToPod};
    use Outcome::{ComesFrom, Dropped, Rejected, SentTo, Untouched};
    use flag::{ACK, RST, SYN};
    const TCP: Proto = Proto::TCP;
    const UDP: Proto = Proto::UDP;
    const V4: &str = "10.96.0.10:80";
    const V6: &str = "[fd00:10:96::10]:80";
    const CLIENT: &str = "10.244.0.9:4000";
    const CLIENT6: &str = "[fd00:10:244::9]:4000";
    const WEB: &[&str] = &["10.244.0.2:8080"];
    const WEB6: &[&str] = &["[fd00:10:244::2]:8080"];
    vec![
        case(
            "a TCP connection over IPv4 goes to the endpoint and comes back as the service",
            &[(V4, TCP, WEB)],
            vec![
                (FromPod, TCP, SYN, CLIENT, V4, SentTo("10.244.0.2:8080")),
                (ToPod, TCP, SYN | ACK, "10.244.0.2:8080", CLIENT, ComesFrom(V4)),
                (FromPod, TCP, ACK, CLIENT, V4, SentTo("10.244.0.2:8080")),
            ],
        ),
        case(
            "a TCP connection over IPv6 goes to the endpoint and comes back as the service",
            &[(V6, TCP, WEB6)],
            vec![
                (FromPod, TCP, SYN, CLIENT6, V6, SentTo("[fd00:10:244::2]:8080")),
                (
                    ToPod,
                    TCP,
                    SYN | ACK,
                    "[fd00:10:244::2]:8080",
                    CLIENT6,
                    ComesFrom(V6),
                ),
            ],
        ),
        case(
            "a datagram over IPv4 goes to the endpoint and comes back as the service",
            &[(V4, UDP, WEB)],
            vec![
                (FromPod, UDP, 0, CLIENT, V4, SentTo("10.244.0.2:8080")),
                (ToPod, UDP, 0, "10.244.0.2:8080", CLIENT, ComesFrom(V4)),
            ],
        ),
        case(
            "a datagram over IPv6 goes to the endpoint and comes back as the service",
            &[(V6, UDP, WEB6)],
            vec![
                (FromPod, UDP, 0, CLIENT6, V6, SentTo("[fd00:10:244::2]:8080")),
                (ToPod, UDP, 0, "[fd00:10:244::2]:8080", CLIENT6, ComesFrom(V6)),
            ],
        ),
        case(
            "packets that no service is addressed by are left alone",
            &[(V4, TCP, WEB)],
            vec![
                (FromPod, TCP, SYN, CLIENT, "10.244.0.2:8080", Untouched),
                (ToPod, TCP, SYN | ACK, "10.244.0.2:8080", CLIENT, Untouched),
                (FromPod, UDP, 0, CLIENT6, "[fd00:10:244::2]:53", Untouched),
            ],
        ),
        case(
            "a service without endpoints rejects connections and datagrams",
            &[
                (V4, TCP, &[]),
                ("10.96.0.53:53", UDP, &[]),
                (V6, TCP, &[]),
                ("[fd00:10:96::53]:53", UDP, &[]),
            ],
            vec![
                (FromPod, TCP, SYN, CLIENT, V4, Rejected),
                (FromPod, UDP, 0, CLIENT, "10.96.0.53:53", Rejected),
                (FromPod, TCP, SYN, CLIENT6, V6, Rejected),
                (FromPod, UDP, 0, CLIENT6, "[fd00:10:96::53]:53", Rejected),
            ],
        ),
        case(
            "a reset is never answered by a reset",
            &[(V4, TCP, &[])],
            vec![(FromPod, TCP, RST, CLIENT, V4, Dropped)],
        ),
        case(
            "a port that the service does not have is rejected",
            &[(V4, TCP, WEB)],
            vec![
                (FromPod, TCP, SYN, CLIENT, "10.96.0.10:81", Rejected),
                (FromPod, UDP, 0, CLIENT, V4, Rejected),
            ],
        ),
        case(
            "an address of the service range that nobody has is dropped",
            &[(V4, TCP, WEB)],
            vec![
                (FromPod, TCP, SYN, CLIENT, "10.96.0.11:80", Dropped),
                (FromPod, UDP, 0, CLIENT6, "[fd00:10:96::11]:53", Dropped),
            ],
        ),
        case(
            "the same port for TCP and UDP leads to different endpoints",
            &[(V4, TCP, WEB), (V4, UDP, &["10.244.0.3:5353"])],
            vec![
                (FromPod, TCP, SYN, CLIENT, V4, SentTo("10.244.0.2:8080")),
                (FromPod, UDP, 0, CLIENT, V4, SentTo("10.244.0.3:5353")),
            ],
        ),
    ]
}
