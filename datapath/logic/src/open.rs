//! New flows: what is remembered of them, and under which port this node asks for a client.
use crate::choose::scale;
use crate::flow::{Known, Seen, known};
use crate::forward::key;
use crate::packet::Parsed;
use crate::{FlowTable, Tables};
use datapath_abi::{
    Address, Be16, Counted, Flow, FlowKey, FlowRole, FlowState, Proto, Reason, SettingsFlags,
};

/// How many ports are tried: at nine tenths of them in use towards one endpoint, one in five new connections still fails.
const TRIES: u32 = 16;
/// The ports that this node gives to clients: none that it gives to its own sockets (`ip_local_port_range`), and no node ports.
const LOW: (u16, u16) = (1024, 29_999);
const HIGH: (u16, u16) = (61_000, 65_535);

/// Where a new flow goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opening {
    pub counted: Counted,
    pub addr: Address,
    pub port: Be16,
    /// This node asks in the client's place, so that the answer comes back to it.
    pub masquerade: bool,
    /// It asks under the service's address, not its own.
    pub as_front: bool,
}

/// Whether this port is one that this node gives to clients.
#[inline(always)]
pub const fn is_given(port: u16) -> bool {
    (port >= LOW.0 && port <= LOW.1) || port >= HIGH.0
}

/// Remembers a new flow in all its directions, its first packet counted. The ways back are written first: an answer never finds half of it.
///
/// A function of its own: a kernel program has 512 bytes of stack, and what each part needs is needed in turns.
#[inline(never)]
pub fn open<T: Tables + FlowTable>(t: &T, p: &Parsed, seen: &Seen, to: &Opening) -> Result<Known, Reason> {
    if seen.proto == Proto::TCP && t.settings().is_some_and(|s| s.flags.has(SettingsFlags::HOLD)) {
        return Err(Reason::PacketHeld);
    }
    let mut flow = Flow {
        set: to.counted.set,
        service_number: to.counted.service,
        backend_number: to.counted.backend,
        state: FlowState::NEW,
        seen: seen.now,
        ..Flow::default()
    };
    let mut nat = (Address::default(), Be16::new(0));
    if to.masquerade {
        nat = masquerade(t, p, to, &mut flow)?;
    }
    reply(t, p, to, &mut flow)?;
    (flow.addr, flow.port) = (to.addr, to.port);
    (flow.nat, flow.nat_port) = nat;
    flow.role = FlowRole::FORWARD;
    flow.packets = 1;
    flow.bytes = seen.bytes as u64;
    if !t.insert(&key(p, FlowKey::DESTINATION), &flow) {
        return Err(Reason::FlowTableFull);
    }
    Ok(known(&flow))
}

/// The endpoint's answer, on its way to the client.
#[inline(always)]
fn reply<T: FlowTable>(t: &T, p: &Parsed, to: &Opening, flow: &mut Flow) -> Result<(), Reason> {
    let key = FlowKey {
        src: to.addr,
        dst: p.src,
        sport: to.port,
        dport: p.sport,
        proto: p.proto,
        changes: FlowKey::SOURCE,
        zero: 0,
    };
    (flow.addr, flow.port) = (p.dst, p.dport);
    flow.nat = Address::default();
    flow.nat_port = Be16::new(0);
    flow.role = FlowRole::REPLY;
    t.insert(&key, flow).then_some(()).ok_or(Reason::FlowTableFull)
}

/// Takes a port of this node's that no other flow has towards this endpoint, and writes both ways of that step.
#[inline(always)]
fn masquerade<T: Tables + FlowTable>(
    t: &T,
    p: &Parsed,
    to: &Opening,
    flow: &mut Flow,
) -> Result<(Address, Be16), Reason> {
    let own = if to.as_front {
        p.dst
    } else {
        let own = t.settings().and_then(|s| s.masquerade(p.src.is_v4()));
        own.ok_or(Reason::NoNodeAddress)?
    };
    let port = claim(t, p, to, flow, own).ok_or(Reason::NatPortsUsedUp)?;
    let key = FlowKey {
        src: p.src,
        dst: to.addr,
        sport: p.sport,
        dport: to.port,
        proto: p.proto,
        changes: FlowKey::SOURCE,
        zero: 0,
    };
    (flow.addr, flow.port) = (own, port);
    flow.nat = Address::default();
    flow.nat_port = Be16::new(0);
    flow.role = FlowRole::MASQUERADE;
    if !t.insert(&key, flow) {
        return Err(Reason::FlowTableFull);
    }
    Ok((own, port))
}

/// The entry of the way back is the claim: it can stand there once. SCTP keeps the client's port, which its peer may have been told inside the
/// association too.
#[inline(always)]
fn claim<T: Tables + FlowTable>(
    t: &T,
    p: &Parsed,
    to: &Opening,
    flow: &mut Flow,
    own: Address,
) -> Option<Be16> {
    let mut key = FlowKey {
        src: to.addr,
        dst: own,
        sport: to.port,
        dport: p.sport,
        proto: p.proto,
        changes: FlowKey::DESTINATION,
        zero: 0,
    };
    (flow.addr, flow.port) = (p.src, p.sport);
    (flow.nat, flow.nat_port) = (p.dst, p.dport);
    flow.role = FlowRole::UNMASQUERADE;
    for i in 0..TRIES {
        if p.proto.0 != Proto::SCTP.0 {
            key.dport = Be16::new(drawn(t.random()));
        }
        if t.claim(&key, flow) {
            return Some(key.dport);
        }
        // Two that take over the same port at once are told apart by nothing; a port that nobody has goes before.
        if i >= TRIES / 2 && t.is_spent(&key, flow.seen) && t.insert(&key, flow) {
            return Some(key.dport);
        }
    }
    None
}

/// One of the ports, each equally often.
#[inline(always)]
fn drawn(random: u32) -> u16 {
    let low = LOW.1 - LOW.0 + 1;
    let n = scale(random, low + (HIGH.1 - HIGH.0 + 1));
    if n < low { LOW.0 + n } else { HIGH.0 + (n - low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_that_are_given_and_no_others_are_drawn() {
        assert_eq!(drawn(0), 1024);
        assert_eq!(drawn(u32::MAX), 65_535);
        for i in 0..200_000_u32 {
            assert!(is_given(drawn(i.wrapping_mul(0x9e37_79b9))));
        }
        assert!(!is_given(30_000) && !is_given(32_768) && !is_given(60_999) && !is_given(80));
    }
}
