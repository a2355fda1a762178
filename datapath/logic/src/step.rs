//! The parts of which decisions about packets are made.
use crate::choose::{Client, Earlier, Found, Front, Refusal, find};
use crate::flow::{Known, Seen, is_opening};
use crate::forward::{Gate, Step, Verdict, Work, key};
use crate::open::{Opening, is_given, open};
use crate::packet::{Packet, Parsed, quoted, tcp};
use crate::rewrite::Rewrite;
use crate::{FlowTable, Tables};
use datapath_abi::{
    FlowKey, FlowRole, FragmentKey, FragmentPorts, FrontendFlags, FrontendKey, Proto, Reason, Scope,
    SettingsFlags,
};

/// Runs one step. `what` is a constant wherever this is called in the kernel: only that step is left there.
#[inline(always)]
pub fn step<T, P>(what: Step, t: &T, packet: &P, w: &mut Work) -> bool
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    match what {
        Step::Ports => has_ports(t, w),
        Step::ErrorIn => is_error(t, packet, w, FlowKey::DESTINATION),
        Step::ErrorOut => is_error(t, packet, w, FlowKey::SOURCE),
        Step::Front => is_front(t, w),
        Step::Known => is_known(t, w, false),
        Step::KnownThrough => is_known(t, w, true),
        Step::NoFront => without_front(t, w),
        Step::Choose => is_chosen(t, w),
        Step::Open => is_open(t, w),
        Step::Rename => is_renamed(t, w),
        Step::Remember => remembers(t, w),
        Step::Turn => is_turned(t, w),
        Step::ServeOwn => {
            t.serve_own();
            true
        }
    }
}

#[inline(always)]
fn has_ports<T: Tables + FlowTable>(t: &T, w: &mut Work) -> bool {
    if !w.p.later_fragment {
        return true;
    }
    match t.fragment(&fragment_key(&w.p)) {
        Some(ports) => {
            w.p.sport = ports.sport;
            w.p.dport = ports.dport;
            true
        }
        None => {
            w.verdict = fragment_without_ports(t, &w.p);
            false
        }
    }
}

#[inline(always)]
fn is_front<T: Tables>(t: &T, w: &mut Work) -> bool {
    if !w.p.has_ports() {
        return false;
    }
    match t.frontend(&FrontendKey::new(w.p.dst, w.p.dport, w.p.proto)) {
        Some(f) => {
            w.here = f.flags.has(FrontendFlags::HERE);
            !w.here
        }
        None => false,
    }
}

#[inline(always)]
fn is_known<T: Tables + FlowTable>(t: &T, w: &mut Work, one_stage: bool) -> bool {
    let seen = Seen {
        one_stage,
        ..seen(t, &w.p, w.len)
    };
    match t.touch(&key(&w.p, FlowKey::DESTINATION), &seen) {
        Some(known) if !known.over => {
            go(w, &known);
            true
        }
        _ => false,
    }
}

/// What a known flow's packet becomes.
#[inline(always)]
fn go(w: &mut Work, known: &Known) {
    if known.role == FlowRole::FOREIGN {
        return;
    }
    if let Some((addr, port)) = known.nat {
        (w.nat, w.nat_port) = (addr, port);
    }
    w.verdict = to_endpoint(&w.p, known);
}

#[inline(always)]
fn is_chosen<T: Tables>(t: &T, w: &mut Work) -> bool {
    if is_others(t, &w.p) {
        return false;
    }
    match find(t, &front(&w.p), &client(t, &w.p, w.gate), &Earlier::default()) {
        Found::NotAService => false,
        Found::Nowhere(refusal) => {
            w.verdict = nowhere(&w.p, refusal);
            false
        }
        Found::Endpoint(c) => {
            w.opening = Opening {
                counted: c.counted(),
                addr: c.backend.addr,
                port: c.backend.port,
                masquerade: masquerades(&w.p, &c.backend, w.gate),
                as_front: false,
            };
            true
        }
    }
}

#[inline(always)]
fn is_open<T: Tables + FlowTable>(t: &T, w: &mut Work) -> bool {
    let seen = seen(t, &w.p, w.len);
    match open(t, &w.p, &seen, &w.opening) {
        Ok(known) => {
            go(w, &known);
            true
        }
        Err(reason) => {
            w.verdict = Verdict::Drop(reason);
            false
        }
    }
}

/// The address and port are no frontend. The packet may be an answer to this node's address that is a client's; or of a
/// connection that is older than the end of its service, which it survives, as it does under kube-proxy.
#[inline(always)]
fn without_front<T: Tables + FlowTable>(t: &T, w: &mut Work) -> bool {
    let Some(settings) = t.settings() else {
        return false;
    };
    if w.here {
        return false;
    }
    let of_service = settings.is_service_address(w.p.dst);
    let of_node = settings.is_node_address(w.p.dst);
    if w.p.has_ports()
        && may_have_flow(&w.p, of_service, of_node, w.gate)
        && let Some(known) = t.touch(&key(&w.p, FlowKey::DESTINATION), &seen(t, &w.p, w.len))
    {
        go(w, &known);
        return true;
    }
    if of_service && !is_others(t, &w.p) {
        let refusal = match t.frontend(&FrontendKey::whole_address(w.p.dst)) {
            Some(f) if f.flags.has(FrontendFlags::HERE) => return false,
            Some(_) => Refusal::NoPort,
            None => Refusal::NoService,
        };
        w.verdict = nowhere(&w.p, refusal);
    } else {
        w.own = of_node && settings.flags.has(SettingsFlags::OWN) && w.p.has_ports();
    }
    false
}

/// Whether a packet that no flow knows is another proxy's: all of them where the node is being left to it; the middle of a TCP
/// connection where there are some that began under it.
#[inline(always)]
fn is_others<T: Tables>(t: &T, p: &Parsed) -> bool {
    t.settings().is_some_and(|s| {
        let middle = p.proto == Proto::TCP && !is_opening(p.tcp_flags);
        s.flags.has(SettingsFlags::LEAVING) || (middle && s.flags.has(SettingsFlags::FOREIGN))
    })
}

/// Whether a look-up among the flows is worth its time: an answer to a port that this node gives to clients, or the middle of
/// a TCP connection to an address that may have been a service's.
#[inline(always)]
fn may_have_flow(p: &Parsed, of_service: bool, of_node: bool, gate: Gate) -> bool {
    let given = (of_node || matches!(gate, Gate::Own)) && (p.proto == Proto::SCTP || is_given(p.dport.get()));
    let middle = p.proto == Proto::TCP && !is_opening(p.tcp_flags);
    given || (middle && (of_service || matches!(gate, Gate::Uplink)))
}

#[inline(always)]
fn is_renamed<T: Tables + FlowTable>(t: &T, w: &mut Work) -> bool {
    let known = t.touch(&key(&w.p, FlowKey::SOURCE), &seen(t, &w.p, w.len));
    let Some(known) = known else {
        return false;
    };
    let reason = if known.role == FlowRole::MASQUERADE {
        Reason::PacketMasqueraded
    } else {
        Reason::PacketAnswered
    };
    w.verdict = Verdict::Rewrite(Rewrite::source(&w.p, known.addr, known.port), reason);
    true
}

/// An ICMP error: what it quotes has been translated, and is known by the way back.
#[inline(always)]
fn is_error<T, P>(t: &T, packet: &P, w: &mut Work, changes: u8) -> bool
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let Some(q) = quoted(packet, &w.p) else {
        return false;
    };
    let source = changes == FlowKey::SOURCE;
    if !source && w.p.dst != q.src {
        return false;
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
    let Some(known) = t.look(&back) else {
        // One about a packet of the node's own socket is known by the other table.
        w.own = !source
            && t.settings()
                .is_some_and(|s| s.flags.has(SettingsFlags::OWN) && s.is_node_address(w.p.dst));
        return false;
    };
    w.verdict = Verdict::Rewrite(
        Rewrite::quote(&w.p, &q, source, known.addr, known.port),
        Reason::ErrorTranslated,
    );
    true
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

/// Only of a first fragment that is translated. SCTP's checksum depends on how much follows, which a first fragment does not tell: where a
/// port would change, the datagram is lost rather than damaged.
#[inline(always)]
fn remembers<T: FlowTable>(t: &T, w: &mut Work) -> bool {
    let Verdict::Rewrite(r, _) = &w.verdict else {
        return false;
    };
    if w.p.proto == Proto::SCTP && r.old_port != r.new_port {
        w.verdict = Verdict::Drop(Reason::PacketFragment);
        return false;
    }
    let ports = FragmentPorts {
        sport: w.p.sport,
        dport: w.p.dport,
    };
    t.keep_fragment(&fragment_key(&w.p), &ports);
    true
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

/// Whether client and endpoint are both the node's own: packets between them never leave it, unless each is shown the service's address in
/// the other's place.
#[inline(always)]
fn is_turned<T: Tables>(t: &T, w: &mut Work) -> bool {
    let turned = t.settings().is_some_and(|s| s.is_node_address(w.opening.addr));
    w.opening.as_front = turned;
    w.opening.masquerade = turned;
    turned
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
    let inside = !matches!(gate, Gate::Uplink) || t.settings().is_some_and(|s| s.is_pod_address(p.src));
    Client {
        scope: if inside { Scope::Inside } else { Scope::Outside },
        known_as: p.src,
        source: p.src,
        port: p.sport,
        of_node: matches!(gate, Gate::Own),
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
