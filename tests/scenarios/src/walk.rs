//! The ways that a new connection can take through a node, decided by the logic that the programs run.
use crate::Model;
use crate::tables::View;
use datapath_abi::{Address, Be16, Proto, Reason};
use datapath_logic::choose::Front;
use datapath_logic::forward::{Through, Verdict, from_pod, from_uplink, through, to_pod, to_uplink};
use datapath_logic::packet::tcp;
use datapath_logic::socket;
use datapath_logic::{Parsed, rewrite::Rewrite};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A process in a pod of this node, through its socket.
    PodSocket(IpAddr),
    /// The same packet by packet, where no socket hook acts.
    PodPackets(IpAddr),
    /// A process of the node itself, through its socket.
    Node,
    /// Anybody whose packets come in on an uplink.
    Uplink(IpAddr),
    /// The same, decided before the stack as far as that goes.
    UplinkEarly(IpAddr),
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a service's address.
    Untouched,
    /// One of these endpoints, each with whether it sees this node's address instead of the client's.
    Endpoints(BTreeMap<SocketAddr, bool>),
    Rejected,
    Dropped,
}

/// One try.
enum Once {
    Untouched,
    Endpoint(SocketAddr, bool),
    Rejected,
    Dropped,
}

/// How many tries are made: random numbers and client ports that reach every slot and almost every place of a Maglev table.
const TRIES: u32 = 512;
const HOST_NETNS: u64 = 1;

impl Model {
    /// Every outcome that a connection can have. The node is left as it was.
    pub fn connect(&self, from: From, to: SocketAddr, proto: Proto) -> Outcome {
        let mut endpoints = BTreeMap::new();
        for i in 0..TRIES {
            let view = View::new(self, i << 23);
            match once(&view, from, to, proto, 20_000 + i as u16) {
                Once::Untouched => return Outcome::Untouched,
                Once::Rejected => return Outcome::Rejected,
                Once::Dropped => return Outcome::Dropped,
                Once::Endpoint(e, masqueraded) => {
                    let before = endpoints.insert(e, masqueraded);
                    assert!(before.is_none_or(|b| b == masqueraded), "{to}: now so, now so");
                }
            }
        }
        Outcome::Endpoints(endpoints)
    }

    /// Connects once and remembers it; returns the endpoint.
    pub fn connect_once(
        &mut self,
        from: From,
        to: SocketAddr,
        proto: Proto,
        random: u32,
    ) -> Option<SocketAddr> {
        let view = View::new(self, random);
        let result = once(&view, from, to, proto, 20_000 + (random >> 20) as u16);
        let remembered = view.affinity.into_inner();
        self.affinity = remembered;
        match result {
            Once::Endpoint(e, _) => Some(e),
            _ => None,
        }
    }
}

fn once(view: &View<'_>, from: From, to: SocketAddr, proto: Proto, sport: u16) -> Once {
    match from {
        From::Node => by_socket(view, HOST_NETNS, None, to, proto, sport),
        From::PodSocket(ip) => by_socket(view, netns(ip), Some(ip), to, proto, sport),
        From::PodPackets(ip) => by_packets(view, ip, to, proto, sport, true),
        From::Uplink(ip) => by_packets(view, ip, to, proto, sport, false),
        From::UplinkEarly(ip) => early(view, ip, to, proto, sport),
    }
}

/// A made-up cookie of a pod's network namespace.
fn netns(ip: IpAddr) -> u64 {
    let words = Address::from(ip).words();
    u64::from(words[3]) << 32 | u64::from(words[1] ^ words[2]) | 2
}

/// A socket's call, and its packets where the call left the address alone.
fn by_socket(
    view: &View<'_>,
    netns: u64,
    pod: Option<IpAddr>,
    to: SocketAddr,
    proto: Proto,
    sport: u16,
) -> Once {
    let front = Front {
        addr: to.ip().into(),
        port: Be16::new(to.port()),
        proto,
    };
    match socket::connect(view, &front, netns) {
        // The socket has the client's address as its own: nothing is rewritten under way.
        socket::Verdict::To { record, .. } => Once::Endpoint(end(record.backend, record.backend_port), false),
        // No endpoint of this node: kube-proxy drops, the call ends at once here. The client gets nothing either way.
        socket::Verdict::Refuse(Reason::SocketNoLocalEndpoint | Reason::SocketSourceNotAllowed) => {
            Once::Dropped
        }
        socket::Verdict::Refuse(_) => Once::Rejected,
        socket::Verdict::Pass => match pod {
            Some(ip) => by_packets(view, ip, to, proto, sport, true),
            None => leaving(view, to, proto, sport),
        },
    }
}

/// A packet of the node itself, on its way out.
fn leaving(view: &View<'_>, to: SocketAddr, proto: Proto, sport: u16) -> Once {
    let own = view
        .settings
        .masquerade(to.is_ipv4())
        .expect("a node has addresses")
        .to_ip();
    match to_uplink(view, NO_BYTES, &packet(own, to, proto, sport), 60) {
        Verdict::Pass => Once::Untouched,
        Verdict::Drop(_) => Once::Dropped,
        other => panic!("{to}: {other:?}"),
    }
}

const NO_BYTES: &[u8] = &[];

fn packet(src: IpAddr, to: SocketAddr, proto: Proto, sport: u16) -> Parsed {
    Parsed {
        src: src.into(),
        dst: to.ip().into(),
        sport: Be16::new(sport),
        dport: Be16::new(to.port()),
        proto,
        tcp_flags: if proto == Proto::TCP { tcp::SYN } else { 0 },
        icmp_type: 0,
        l4: if src.is_ipv4() { 34 } else { 54 },
        later_fragment: false,
        first_fragment: false,
        fragment_id: 0,
    }
}

/// The first packet through both stages, and the endpoint's answer back through them.
fn by_packets(view: &View<'_>, ip: IpAddr, to: SocketAddr, proto: Proto, sport: u16, of_pod: bool) -> Once {
    let first = packet(ip, to, proto, sport);
    let verdict = if of_pod {
        from_pod(view, NO_BYTES, &first, 60)
    } else {
        from_uplink(view, NO_BYTES, &first, 60)
    };
    let mut p = first;
    match verdict {
        Verdict::Pass => return Once::Untouched,
        Verdict::Reject(_) => return Once::Rejected,
        Verdict::Drop(_) => return Once::Dropped,
        Verdict::Rewrite(r, _) => change(&mut p, &r),
    }
    // Pods' devices and uplinks ask the same table here.
    if let Verdict::Rewrite(r, _) = to_pod(view, NO_BYTES, &p, 60) {
        change(&mut p, &r);
    }
    answered(view, &first, &p, of_pod);
    Once::Endpoint(end(p.dst, p.dport), p.src != first.src)
}

/// The endpoint's answer comes to the client as the front's.
fn answered(view: &View<'_>, first: &Parsed, sent: &Parsed, of_pod: bool) {
    let mut answer = Parsed {
        src: sent.dst,
        dst: sent.src,
        sport: sent.dport,
        dport: sent.sport,
        tcp_flags: if first.proto == Proto::TCP {
            tcp::SYN | tcp::ACK
        } else {
            0
        },
        ..*first
    };
    if sent.src != first.src {
        let verdict = if of_pod {
            from_pod(view, NO_BYTES, &answer, 60)
        } else {
            from_uplink(view, NO_BYTES, &answer, 60)
        };
        match verdict {
            Verdict::Rewrite(r, _) => change(&mut answer, &r),
            other => panic!("the answer {answer:?} is not given to the client: {other:?}"),
        }
    }
    match to_uplink(view, NO_BYTES, &answer, 60) {
        Verdict::Rewrite(r, _) => change(&mut answer, &r),
        other => panic!("the answer {answer:?} is not shown as the service's: {other:?}"),
    }
    assert_eq!(
        (answer.src, answer.sport, answer.dst, answer.dport),
        (first.dst, first.dport, first.src, first.sport)
    );
}

/// The one-stage decision, which is followed where it decides, and must agree with the stack's where it does not.
fn early(view: &View<'_>, ip: IpAddr, to: SocketAddr, proto: Proto, sport: u16) -> Once {
    let first = packet(ip, to, proto, sport);
    match through(view, &first, 60) {
        Through::ToStack => by_packets(view, ip, to, proto, sport, false),
        Through::Drop(_) => Once::Dropped,
        Through::Send {
            destination, source, ..
        } => {
            let mut p = first;
            change(&mut p, &destination);
            change(&mut p, &source);
            let back = Parsed {
                src: p.dst,
                dst: p.src,
                sport: p.dport,
                dport: p.sport,
                tcp_flags: 0,
                ..first
            };
            let Through::Send {
                destination, source, ..
            } = through(view, &back, 60)
            else {
                panic!("the answer {back:?} is not sent back");
            };
            assert_eq!(
                (
                    destination.new_addr,
                    destination.new_port,
                    source.new_addr,
                    source.new_port
                ),
                (first.src, first.sport, first.dst, first.dport)
            );
            Once::Endpoint(end(p.dst, p.dport), true)
        }
    }
}

fn change(p: &mut Parsed, r: &Rewrite) {
    if r.source {
        (p.src, p.sport) = (r.new_addr, r.new_port);
    } else {
        (p.dst, p.dport) = (r.new_addr, r.new_port);
    }
}

fn end(addr: Address, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}
