//! What the packet path decides.
use crate::choose::{Found, Refusal, find};
use crate::flow::{Seen, is_opening};
use crate::packet::{Parsed, tcp};
use crate::rewrite::Rewrite;
use crate::{FlowTable, Tables};
use datapath_abi::{
    Address, Be16, Flow, FlowKey, FlowRole, FlowState, FrontendKey, Proto, Reason, Scope, SetId,
};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is changed.
    Pass,
    /// Changed and passed on.
    Rewrite(Rewrite, Reason),
    /// The sender is told: TCP RST, or ICMP port unreachable.
    Reject(Reason),
    /// Silence.
    Drop(Reason),
}

/// A packet on its way from a client: towards a service it is sent to an endpoint.
#[inline(always)]
pub fn request<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32) -> Verdict {
    if !is_frontend(t, p) {
        return without_frontend(t, p, len);
    }
    let key = forward_key(p);
    let seen = seen(t, p, len);
    if let Some(known) = t.touch(&key, &seen)
        && !known.over
    {
        return to_endpoint(p, known.addr, known.port);
    }
    match find(t, p.dst, p.dport, p.proto, Scope::Inside, None) {
        Found::NotAService => Verdict::Pass,
        Found::Nowhere(refusal) => nowhere(p, refusal),
        Found::Endpoint(c) => {
            let pair = Pair {
                set: c.frontend.set,
                addr: c.backend.addr,
                port: c.backend.port,
            };
            open(t, p, &key, &seen, &pair)
        }
    }
}

/// A packet on its way to a client: one from an endpoint that the client knows as a service is shown as that service.
#[inline(always)]
pub fn reply<T: FlowTable>(t: &T, p: &Parsed, len: u32) -> Verdict {
    if !has_ports(p.proto) || p.later_fragment {
        return Verdict::Pass;
    }
    let key = FlowKey {
        src: p.src,
        dst: p.dst,
        sport: p.sport,
        dport: p.dport,
        proto: p.proto,
        changes: FlowKey::SOURCE,
        zero: 0,
    };
    match t.touch(&key, &seen(t, p, len)) {
        Some(known) => Verdict::Rewrite(Rewrite::source(p, known.addr, known.port), Reason::PacketAnswered),
        None => Verdict::Pass,
    }
}

#[inline(always)]
fn is_frontend<T: Tables>(t: &T, p: &Parsed) -> bool {
    has_ports(p.proto)
        && !p.later_fragment
        && t.frontend(&FrontendKey::new(p.dst, p.dport, p.proto)).is_some()
}

/// The address and port are no frontend. Outside the service ranges that is the end of it; inside, the connection may be
/// older than the end of its service, which it survives, as it does under kube-proxy.
#[inline(always)]
fn without_frontend<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32) -> Verdict {
    if !t.is_service_address(p.dst) {
        return Verdict::Pass;
    }
    if p.later_fragment {
        return Verdict::Drop(Reason::PacketFragment);
    }
    if p.proto == Proto::TCP
        && !is_opening(p.tcp_flags)
        && let Some(known) = t.touch(&forward_key(p), &seen(t, p, len))
    {
        return to_endpoint(p, known.addr, known.port);
    }
    match t.frontend(&FrontendKey::whole_address(p.dst)) {
        Some(_) => nowhere(p, Refusal::NoPort),
        None => nowhere(p, Refusal::NoService),
    }
}

/// The endpoint that a new flow goes to.
struct Pair {
    set: SetId,
    addr: Address,
    port: Be16,
}

/// Remembers a new flow in both directions, then sends its first packet on. The way back is written first: an answer never
/// finds half of it.
#[inline(always)]
fn open<T: FlowTable>(t: &T, p: &Parsed, key: &FlowKey, seen: &Seen, to: &Pair) -> Verdict {
    let back = FlowKey {
        src: to.addr,
        dst: p.src,
        sport: to.port,
        dport: p.sport,
        proto: p.proto,
        changes: FlowKey::SOURCE,
        zero: 0,
    };
    let mut flow = Flow {
        addr: p.dst,
        port: p.dport,
        state: FlowState::NEW,
        role: FlowRole::REPLY,
        set: to.set,
        seen: seen.now,
        ..Flow::default()
    };
    if !t.insert(&back, &flow) {
        return Verdict::Drop(Reason::FlowTableFull);
    }
    flow.addr = to.addr;
    flow.port = to.port;
    flow.role = FlowRole::FORWARD;
    flow.packets = 1;
    flow.bytes = seen.bytes as u64;
    if !t.insert(key, &flow) {
        return Verdict::Drop(Reason::FlowTableFull);
    }
    to_endpoint(p, to.addr, to.port)
}

#[inline(always)]
fn to_endpoint(p: &Parsed, addr: Address, port: Be16) -> Verdict {
    Verdict::Rewrite(Rewrite::destination(p, addr, port), Reason::PacketForwarded)
}

#[inline(always)]
fn nowhere(p: &Parsed, refusal: Refusal) -> Verdict {
    match refusal {
        // A reset is never answered by a reset (RFC 9293, 3.10.7.1).
        _ if p.tcp_flags & tcp::RST != 0 => Verdict::Drop(reason(refusal)),
        Refusal::NoEndpoint | Refusal::NoPort => Verdict::Reject(reason(refusal)),
        _ => Verdict::Drop(reason(refusal)),
    }
}

#[inline(always)]
fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NoEndpoint => Reason::PacketNoEndpoint,
        Refusal::NoLocalEndpoint => Reason::PacketNoLocalEndpoint,
        Refusal::NoPort => Reason::PacketNoPort,
        Refusal::NoService => Reason::PacketNoService,
        Refusal::SlotMissing => Reason::SlotMissing,
    }
}

#[inline(always)]
fn forward_key(p: &Parsed) -> FlowKey {
    FlowKey {
        src: p.src,
        dst: p.dst,
        sport: p.sport,
        dport: p.dport,
        proto: p.proto,
        changes: FlowKey::DESTINATION,
        zero: 0,
    }
}

#[inline(always)]
fn seen<T: FlowTable>(t: &T, p: &Parsed, len: u32) -> Seen {
    Seen {
        now: t.now(),
        bytes: len,
        proto: p.proto,
        tcp_flags: p.tcp_flags,
    }
}

#[inline(always)]
fn has_ports(proto: Proto) -> bool {
    proto == Proto::TCP || proto == Proto::UDP
}
