//! What the packet path decides.
//!
//! A packet is changed in two stages, as netfilter does it before and after routing: its destination where it comes in
//! ([`from_pod`], [`from_uplink`]), its source where it goes out ([`to_pod`], [`to_uplink`]). Routes, hop limits, path MTU
//! and neighbours stay the kernel's business. [`through`] is both in one, where a packet only passes the node.
use crate::choose::{Client, Found, Front, Refusal, find};
use crate::flow::{Known, Seen, is_opening};
use crate::open::{Opening, open};
use crate::packet::{Packet, Parsed, quoted, tcp};
use crate::rewrite::Rewrite;
use crate::{FlowTable, Tables};
use datapath_abi::{
    FlowKey, FlowRole, FragmentKey, FragmentPorts, FrontendFlags, FrontendKey, Proto, Reason, Scope,
    SettingsFlags,
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

/// What becomes of a packet before it reaches the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// Unchanged to the stack, where [`from_uplink`] decides.
    ToStack,
    /// Both ends change, and it goes on to where its new destination is; where that is not possible at once (no neighbour, no
    /// route), it goes to the stack unchanged.
    Send {
        destination: Rewrite,
        source: Rewrite,
        reason: Reason,
    },
    /// Silence.
    Drop(Reason),
}

/// From where a packet comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Pod,
    Uplink,
}

/// A packet that a pod sends.
#[inline(always)]
pub fn from_pod<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    arrive(t, packet, p, len, Gate::Pod)
}

/// A packet on its way to a pod.
#[inline(always)]
pub fn to_pod<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    leave(t, packet, p, len)
}

/// A packet that comes in from another machine.
#[inline(always)]
pub fn from_uplink<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    if serves_uplink(t) {
        arrive(t, packet, p, len, Gate::Uplink)
    } else {
        Verdict::Pass
    }
}

/// A packet on its way to another machine.
#[inline(always)]
pub fn to_uplink<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    if serves_uplink(t) {
        leave(t, packet, p, len)
    } else {
        Verdict::Pass
    }
}

/// Whether packets on uplinks are to be looked at; programs ask this first, before they parse.
#[inline(always)]
pub fn serves_uplink<T: Tables>(t: &T) -> bool {
    t.settings().is_some_and(|s| s.flags.has(SettingsFlags::UPLINK))
}

/// A packet that comes in from another machine, before the stack. Whatever is unusual is left to the stack.
#[inline(always)]
pub fn through<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32) -> Through {
    let plain = matches!(p.proto, Proto::TCP | Proto::UDP) && !p.is_fragment();
    if !plain || !serves_uplink(t) {
        return Through::ToStack;
    }
    let key = key(p, FlowKey::DESTINATION);
    let mut seen = seen(t, p, len);
    seen.one_stage = true;
    if let Some(known) = t.touch(&key, &seen)
        && !known.over
    {
        return send(p, &known);
    }
    match t.frontend(&FrontendKey::new(p.dst, p.dport, p.proto)) {
        None => return Through::ToStack,
        Some(f) if f.flags.has(FrontendFlags::HERE) => return Through::ToStack,
        Some(_) => {}
    }
    match find(t, &front(p), &client(t, p, Gate::Uplink), None) {
        Found::Nowhere(Refusal::SourceNotAllowed) => Through::Drop(Reason::PacketSourceNotAllowed),
        Found::Endpoint(c) => {
            let opening = Opening {
                set: c.frontend.set,
                addr: c.backend.addr,
                port: c.backend.port,
                masquerade: masquerades(p, &c.backend, Gate::Uplink),
            };
            match open(t, p, &key, &seen, &opening) {
                Ok(known) => send(p, &known),
                Err(reason) => Through::Drop(reason),
            }
        }
        _ => Through::ToStack,
    }
}

#[inline(always)]
fn send(p: &Parsed, known: &Known) -> Through {
    let Some((addr, port)) = known.nat else {
        return Through::ToStack;
    };
    Through::Send {
        destination: Rewrite::destination(p, known.addr, known.port),
        source: Rewrite::source(p, addr, port),
        reason: Reason::PacketSentBack,
    }
}

/// The first stage: a packet towards a service is sent to an endpoint, an answer to this node's address to the client for whom the node asked.
#[inline(always)]
fn arrive<T, P>(t: &T, packet: &P, p: &Parsed, len: u32, gate: Gate) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    if p.is_error() && !p.later_fragment {
        return error(t, packet, p, FlowKey::DESTINATION);
    }
    let Some(p) = with_ports(t, p) else {
        return fragment_without_ports(t, p);
    };
    let verdict = match t.frontend(&FrontendKey::new(p.dst, p.dport, p.proto)) {
        Some(f) if p.has_ports() => {
            if f.flags.has(FrontendFlags::HERE) {
                return Verdict::Pass;
            }
            request(t, &p, len, gate)
        }
        _ => without_frontend(t, &p, len, gate),
    };
    remember_fragment(t, &p, verdict)
}

/// A packet to a service.
#[inline(always)]
fn request<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32, gate: Gate) -> Verdict {
    let key = key(p, FlowKey::DESTINATION);
    let seen = seen(t, p, len);
    if let Some(known) = t.touch(&key, &seen)
        && !known.over
    {
        return to_endpoint(p, &known);
    }
    match find(t, &front(p), &client(t, p, gate), None) {
        Found::NotAService => Verdict::Pass,
        Found::Nowhere(refusal) => nowhere(p, refusal),
        Found::Endpoint(c) => {
            let opening = Opening {
                set: c.frontend.set,
                addr: c.backend.addr,
                port: c.backend.port,
                masquerade: masquerades(p, &c.backend, gate),
            };
            match open(t, p, &key, &seen, &opening) {
                Ok(known) => to_endpoint(p, &known),
                Err(reason) => Verdict::Drop(reason),
            }
        }
    }
}

/// The address and port are no frontend. The packet may be an answer to this node's address that is a client's; or of a connection that is
/// older than the end of its service, which it survives, as it does under kube-proxy.
#[inline(always)]
fn without_frontend<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32, gate: Gate) -> Verdict {
    let Some(settings) = t.settings() else {
        return Verdict::Pass;
    };
    let of_service = settings.is_service_address(p.dst);
    if p.has_ports() && may_have_flow(p, of_service, settings.is_node_address(p.dst), gate) {
        let known = t.touch(&key(p, FlowKey::DESTINATION), &seen(t, p, len));
        if let Some(known) = known {
            return to_endpoint(p, &known);
        }
    }
    if !of_service {
        return Verdict::Pass;
    }
    match t.frontend(&FrontendKey::whole_address(p.dst)) {
        Some(_) => nowhere(p, Refusal::NoPort),
        None => nowhere(p, Refusal::NoService),
    }
}

/// Whether a look-up among the flows is worth its time: an answer to a port that this node gives to clients, or the middle of
/// a TCP connection to an address that may have been a service's.
#[inline(always)]
fn may_have_flow(p: &Parsed, of_service: bool, of_node: bool, gate: Gate) -> bool {
    let given = of_node && (p.proto == Proto::SCTP || crate::open::is_given(p.dport.get()));
    let middle = p.proto == Proto::TCP && !is_opening(p.tcp_flags);
    given || (middle && (of_service || matches!(gate, Gate::Uplink)))
}

/// The second stage: an answer from an endpoint is shown as the service's, a masqueraded request as this node's.
#[inline(always)]
fn leave<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    if p.is_error() && !p.later_fragment {
        return error(t, packet, p, FlowKey::SOURCE);
    }
    let Some(p) = with_ports(t, p) else {
        return Verdict::Pass;
    };
    if !p.has_ports() {
        return Verdict::Pass;
    }
    let verdict = match t.touch(&key(&p, FlowKey::SOURCE), &seen(t, &p, len)) {
        Some(known) => {
            let reason = if known.role == FlowRole::MASQUERADE {
                Reason::PacketMasqueraded
            } else {
                Reason::PacketAnswered
            };
            Verdict::Rewrite(Rewrite::source(&p, known.addr, known.port), reason)
        }
        None => Verdict::Pass,
    };
    remember_fragment(t, &p, verdict)
}

/// An ICMP error: what it quotes has been translated, and is known by the way back.
#[inline(always)]
fn error<T, P>(t: &T, packet: &P, p: &Parsed, changes: u8) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let Some(q) = quoted(packet, p) else {
        return Verdict::Pass;
    };
    let source = changes == FlowKey::SOURCE;
    if !source && p.dst != q.src {
        return Verdict::Pass;
    }
    let back = FlowKey {
        src: q.dst,
        dst: q.src,
        sport: q.dport,
        dport: q.sport,
        proto: q.proto,
        changes,
        zero: 0,
    };
    match t.look(&back) {
        Some(known) => Verdict::Rewrite(
            Rewrite::quote(p, &q, source, known.addr, known.port),
            Reason::ErrorTranslated,
        ),
        None => Verdict::Pass,
    }
}

/// The packet with the ports of its first fragment; `None` for a later one whose first was not seen.
#[inline(always)]
fn with_ports<T: FlowTable>(t: &T, p: &Parsed) -> Option<Parsed> {
    let mut p = *p;
    if p.later_fragment {
        let ports = t.fragment(&fragment_key(&p))?;
        p.sport = ports.sport;
        p.dport = ports.dport;
    }
    Some(p)
}

/// Nobody but a service has an address of the service ranges; what cannot be told to be for one is dropped there.
#[inline(always)]
fn fragment_without_ports<T: Tables>(t: &T, p: &Parsed) -> Verdict {
    if t.settings().is_some_and(|s| s.is_service_address(p.dst)) {
        Verdict::Drop(Reason::PacketFragment)
    } else {
        Verdict::Pass
    }
}

/// Keeps the ports of a first fragment that is translated, for the later ones.
#[inline(always)]
fn remember_fragment<T: FlowTable>(t: &T, p: &Parsed, verdict: Verdict) -> Verdict {
    if p.first_fragment && matches!(verdict, Verdict::Rewrite(..)) {
        let ports = FragmentPorts {
            sport: p.sport,
            dport: p.dport,
        };
        t.keep_fragment(&fragment_key(p), &ports);
    }
    verdict
}

#[inline(always)]
fn fragment_key(p: &Parsed) -> FragmentKey {
    FragmentKey {
        src: p.src,
        dst: p.dst,
        id: p.fragment_id,
        proto: p.proto,
        zero: [0; 3],
    }
}

/// Whether the endpoint's answers would not come back to us: a remote endpoint of a client that is not a pod of this node, and
/// a pod that was given itself.
#[inline(always)]
fn masquerades(p: &Parsed, backend: &datapath_abi::Backend, gate: Gate) -> bool {
    backend.addr == p.src || (matches!(gate, Gate::Uplink) && !backend.is_local())
}

#[inline(always)]
fn front(p: &Parsed) -> Front {
    Front {
        addr: p.dst,
        port: p.dport,
        proto: p.proto,
    }
}

/// Who sends. A pod of this node is inside whatever its address; on an uplink a source in a pod range tells a pod.
#[inline(always)]
fn client<T: Tables>(t: &T, p: &Parsed, gate: Gate) -> Client {
    let inside = matches!(gate, Gate::Pod) || t.settings().is_some_and(|s| s.is_pod_address(p.src));
    Client {
        scope: if inside { Scope::Inside } else { Scope::Outside },
        known_as: p.src,
        source: Some(p.src),
        port: p.sport,
    }
}

#[inline(always)]
fn to_endpoint(p: &Parsed, known: &Known) -> Verdict {
    let reason = if known.role == FlowRole::UNMASQUERADE {
        Reason::PacketAnswered
    } else {
        Reason::PacketForwarded
    };
    Verdict::Rewrite(Rewrite::destination(p, known.addr, known.port), reason)
}

#[inline(always)]
fn nowhere(p: &Parsed, refusal: Refusal) -> Verdict {
    match refusal {
        // A reset is never answered by a reset (RFC 9293, 3.10.7.1), a later fragment never at all (RFC 1122, 3.2.2).
        _ if p.tcp_flags & tcp::RST != 0 || p.later_fragment => Verdict::Drop(reason(refusal)),
        Refusal::NoEndpoint | Refusal::NoPort => Verdict::Reject(reason(refusal)),
        _ => Verdict::Drop(reason(refusal)),
    }
}

#[inline(always)]
fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NoEndpoint => Reason::PacketNoEndpoint,
        Refusal::NoLocalEndpoint => Reason::PacketNoLocalEndpoint,
        Refusal::SourceNotAllowed => Reason::PacketSourceNotAllowed,
        Refusal::NoPort => Reason::PacketNoPort,
        Refusal::NoService => Reason::PacketNoService,
        Refusal::SlotMissing => Reason::SlotMissing,
    }
}

/// The packet as it looks, in the table of those that change this end.
#[inline(always)]
pub(crate) fn key(p: &Parsed, changes: u8) -> FlowKey {
    FlowKey {
        src: p.src,
        dst: p.dst,
        sport: p.sport,
        dport: p.dport,
        proto: p.proto,
        changes,
        zero: 0,
    }
}

#[inline(always)]
fn seen<T: Tables>(t: &T, p: &Parsed, len: u32) -> Seen {
    Seen {
        now: t.now(),
        bytes: len,
        proto: p.proto,
        tcp_flags: p.tcp_flags,
        one_stage: false,
    }
}

#[cfg(test)]
mod tests;
