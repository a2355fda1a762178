//! Connection state: how a packet changes a flow's entry and how long an entry counts.
use crate::packet::tcp;
use datapath_abi::{Address, Be16, Flow, FlowRole, FlowState, Proto};

const SECOND: u64 = 1_000_000_000;
/// Lifetimes follow the kernel's connection tracking, which kube-proxy's users are used to.
const UDP_ONE_WAY: u64 = 30 * SECOND;
const UDP_BOTH_WAYS: u64 = 120 * SECOND;
const TCP_OPENING: u64 = 120 * SECOND;
const TCP_OPEN: u64 = 5 * 24 * 3600 * SECOND;
const TCP_CLOSING: u64 = 120 * SECOND;
/// How long an endpoint that has closed its side is silent before its port of this node may be another client's.
const TCP_SILENT: u64 = 2 * SECOND;

/// What one packet tells about its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Nanoseconds since boot.
    pub now: u64,
    /// Bytes of the packet.
    pub bytes: u32,
    pub proto: Proto,
    /// Zero unless TCP.
    pub tcp_flags: u8,
    /// Only entries that change both ends count: where the others are left to a later stage, which counts them.
    pub one_stage: bool,
}

/// What the entry says about the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The address and port that replace the packet's.
    pub addr: Address,
    pub port: Be16,
    /// What the other end becomes, where both are changed in one place; `None` for nothing.
    pub nat: Option<(Address, Be16)>,
    pub role: FlowRole,
    /// The entry belongs to a connection that is over: choose anew.
    pub over: bool,
}

/// What the entry says, whoever asks.
#[inline(always)]
pub fn known(flow: &Flow) -> Known {
    Known {
        addr: flow.addr,
        port: flow.port,
        nat: (flow.nat != Address::default()).then_some((flow.nat, flow.nat_port)),
        role: flow.role,
        over: false,
    }
}

/// Counts the packet in and says what to do with it.
#[inline(always)]
pub fn advance(flow: &mut Flow, seen: &Seen) -> Known {
    let over = expired(flow, seen) || restarts(flow, seen);
    let mine = !seen.one_stage || flow.nat != Address::default();
    if !over && mine {
        flow.seen = seen.now;
        flow.packets += 1;
        flow.bytes += seen.bytes as u64;
        flow.state = next(flow.state, seen);
    }
    Known { over, ..known(flow) }
}

/// How long an entry in this state counts after its last packet, in nanoseconds.
#[inline(always)]
pub fn lifetime(proto: Proto, state: FlowState) -> u64 {
    match (proto, state) {
        (Proto::TCP, FlowState::NEW) => TCP_OPENING,
        (Proto::TCP, FlowState::ESTABLISHED) => TCP_OPEN,
        (Proto::TCP, _) => TCP_CLOSING,
        (_, FlowState::NEW) => UDP_ONE_WAY,
        _ => UDP_BOTH_WAYS,
    }
}

/// Whether a port that this node gave to a client can be given again: its time is over, or the endpoint has closed the
/// connection and been silent since. Without the latter, a client that opens and closes would use all of them up within the two minutes that
/// a closed connection is remembered.
#[inline(always)]
pub fn spent(flow: &Flow, proto: Proto, now: u64) -> bool {
    let silent = now.saturating_sub(flow.seen);
    let closed = flow.state == FlowState::CLOSING || flow.state == FlowState::CLOSED;
    silent > lifetime(proto, flow.state) || (proto == Proto::TCP && closed && silent > TCP_SILENT)
}

#[inline(always)]
fn expired(flow: &Flow, seen: &Seen) -> bool {
    seen.now.saturating_sub(flow.seen) > lifetime(seen.proto, flow.state)
}

/// A SYN on an entry that is past its own opening is a new connection from the same port.
#[inline(always)]
fn restarts(flow: &Flow, seen: &Seen) -> bool {
    seen.proto == Proto::TCP && is_opening(seen.tcp_flags) && flow.state != FlowState::NEW
}

/// A SYN that is not an answer.
#[inline(always)]
pub fn is_opening(tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

#[inline(always)]
fn next(state: FlowState, seen: &Seen) -> FlowState {
    if seen.proto != Proto::TCP {
        // The second packet of a direction tells nothing about the other; two seconds of life do no harm.
        return FlowState::ESTABLISHED;
    }
    if seen.tcp_flags & tcp::RST != 0 {
        FlowState::CLOSED
    } else if seen.tcp_flags & tcp::FIN != 0 {
        FlowState::CLOSING
    } else if state == FlowState::NEW && !is_opening(seen.tcp_flags) {
        FlowState::ESTABLISHED
    } else {
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(now: u64, flags: u8) -> Seen {
        Seen {
            now,
            bytes: 60,
            proto: Proto::TCP,
            tcp_flags: flags,
            one_stage: false,
        }
    }

    #[test]
    fn a_repeated_syn_keeps_the_endpoint_and_a_new_one_does_not() {
        let mut f = Flow::default();
        assert!(!advance(&mut f, &tcp(1, tcp::SYN)).over);
        assert!(!advance(&mut f, &tcp(2, tcp::SYN)).over);
        assert!(!advance(&mut f, &tcp(3, tcp::ACK)).over);
        assert_eq!(f.state, FlowState::ESTABLISHED);
        assert!(advance(&mut f, &tcp(4, tcp::SYN)).over);
    }

    #[test]
    fn a_closed_connection_is_spent_when_its_endpoint_has_been_silent() {
        let mut f = Flow::default();
        advance(&mut f, &tcp(SECOND, tcp::SYN | tcp::ACK));
        assert!(!spent(&f, Proto::TCP, 100 * SECOND), "it is open");
        advance(&mut f, &tcp(100 * SECOND, tcp::FIN | tcp::ACK));
        assert!(!spent(&f, Proto::TCP, 101 * SECOND));
        assert!(spent(&f, Proto::TCP, 103 * SECOND));
    }

    #[test]
    fn packets_and_bytes_are_counted_in_the_entry() {
        let mut f = Flow::default();
        advance(&mut f, &tcp(1, tcp::SYN));
        advance(&mut f, &tcp(2, tcp::ACK));
        assert_eq!((f.packets, f.bytes, f.seen), (2, 120, 2));
    }

    #[test]
    fn an_idle_datagram_flow_is_over_after_its_lifetime() {
        let seen = |now| Seen {
            now,
            bytes: 1,
            proto: Proto::UDP,
            tcp_flags: 0,
            one_stage: false,
        };
        let mut f = Flow::default();
        assert!(!advance(&mut f, &seen(30 * SECOND)).over);
        assert!(!advance(&mut f, &seen(150 * SECOND)).over);
        assert!(advance(&mut f, &seen(271 * SECOND)).over);
    }
}
