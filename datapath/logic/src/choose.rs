//! From an address that a client uses to an endpoint, or to the reason why there is none.
use crate::Tables;
use datapath_abi::{
    Address, Affinity, AffinityKey, Backend, BackendKey, Be16, Counted, FrontendFlags, FrontendKey,
    FrontendValue, MAGLEV_PLACES, MaglevKey, Member, MemberKey, Proto, Scope, SetId, SourceRangeKey,
};

/// An endpoint and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    pub frontend: FrontendValue,
    pub slot: u16,
    pub backend: Backend,
}

impl Choice {
    /// For whom it counts.
    #[inline(always)]
    pub const fn counted(&self) -> Counted {
        Counted {
            set: self.frontend.set,
            service: self.frontend.number,
            backend: self.backend.number,
        }
    }
}

/// An earlier choice that shall be kept if its endpoint is still in the set; port 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Earlier {
    pub slot: u16,
    pub addr: Address,
    pub port: Be16,
}

/// Why a service's address leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The service has no endpoint.
    NoEndpoint,
    /// It has some, but none on this node, and its policy is Local.
    NoLocalEndpoint,
    /// The client is in none of the service's source ranges.
    SourceNotAllowed,
    /// The address is a service's, the port is not.
    NoPort,
    /// The address is of the service range, and nobody's.
    NoService,
    /// The table changed twice during one look-up.
    SlotMissing,
}

/// What an address turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Not a service's: none of our business.
    NotAService,
    /// A service with this endpoint.
    Endpoint(Choice),
    /// A service, or an address reserved for one, that leads nowhere.
    Nowhere(Refusal),
}

/// What a client addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    pub addr: Address,
    pub port: Be16,
    pub proto: Proto,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    pub scope: Scope,
    /// By whom the client is known for affinity: its address, or on the socket path its network namespace.
    pub known_as: Address,
    /// The address for source ranges; unspecified if it is not known yet, and the packets have to be asked. (Not an `Option`: what
    /// `None` leaves undefined would be copied along, which the verifier refuses.)
    pub source: Address,
    /// The client's port; 0 if not known.
    pub port: Be16,
    /// A process in the node's own network.
    pub of_node: bool,
}

/// Finds an endpoint for a new connection.
///
/// Two look-ups for a service, one for any other address outside the service ranges; more for source ranges, affinity and
/// Maglev where the frontend asks for them.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, front: &Front, client: &Client, earlier: &Earlier) -> Found {
    // The frontend may flip to a new generation, and the old slots vanish, between the two look-ups; the second round
    // then reads the new frontend. Two flips within a microsecond do not happen, and are counted if they do.
    let found = look(tables, front, client, earlier);
    if matches!(found, Found::Nowhere(Refusal::SlotMissing)) {
        return look(tables, front, client, earlier);
    }
    found
}

/// A function of its own: a kernel program has 512 bytes of stack, and what each part needs is needed in turns.
#[inline(never)]
fn look<T: Tables>(tables: &T, front: &Front, client: &Client, earlier: &Earlier) -> Found {
    let key = FrontendKey::new(front.addr, front.port, front.proto);
    let Some(frontend) = tables.frontend(&key) else {
        return unknown(tables, front.addr);
    };
    if frontend.flags.has(FrontendFlags::HERE) {
        return Found::NotAService;
    }
    if frontend.flags.has(FrontendFlags::NODE_ONLY) && !client.of_node {
        return Found::NotAService;
    }
    if frontend.flags.has(FrontendFlags::RANGES) {
        if client.source == Address::default() {
            return Found::NotAService;
        }
        if !tables.admits(&SourceRangeKey::client(frontend.set, client.source)) {
            return Found::Nowhere(Refusal::SourceNotAllowed);
        }
    }
    if frontend.usable(client.scope).1 == 0 {
        return Found::Nowhere(empty(&frontend, client.scope));
    }
    let slot = slot(tables, &frontend, front, client, earlier);
    let Some(backend) = tables.backend(&slot_key(&frontend, slot)) else {
        return Found::Nowhere(Refusal::SlotMissing);
    };
    if frontend.affinity != 0 {
        remember(tables, frontend.set, &backend, client);
    }
    Found::Endpoint(Choice {
        frontend,
        slot,
        backend,
    })
}

/// The slot to use: the earlier one, the one that the client keeps, or a new one.
#[inline(always)]
fn slot<T: Tables>(
    tables: &T,
    frontend: &FrontendValue,
    front: &Front,
    client: &Client,
    earlier: &Earlier,
) -> u16 {
    if earlier.port.raw() != 0 {
        let slot = keep(tables, frontend, client.scope, earlier);
        if slot != Member::NOWHERE {
            return slot;
        }
    }
    if frontend.affinity != 0 {
        let slot = remembered(tables, frontend, client);
        if slot != Member::NOWHERE {
            return slot;
        }
    }
    draw(tables, frontend, front, client)
}

/// A slot by chance; or for clients from outside, where the frontend says so, the one that every node draws for this connection.
///
/// A function of its own, for the stack's sake.
#[inline(never)]
fn draw<T: Tables>(tables: &T, frontend: &FrontendValue, front: &Front, client: &Client) -> u16 {
    let shared = frontend.flags.has(FrontendFlags::MAGLEV)
        && matches!(client.scope, Scope::Outside)
        && !frontend.is_local_for(Scope::Outside);
    if shared {
        let key = MaglevKey {
            set: frontend.set,
            generation: frontend.generation,
            zero: 0,
        };
        let place = scale(connection_hash(front, client), MAGLEV_PLACES as u16);
        if let Some(slot) = tables.maglev(&key, place) {
            return slot;
        }
    }
    let (first, usable) = frontend.usable(client.scope);
    first.wrapping_add(scale(tables.random(), usable))
}

/// The slot of the endpoint that the client keeps; [`Member::NOWHERE`] if there is none that it may be given still.
///
/// A function of its own, for the stack's sake.
#[inline(never)]
fn remembered<T: Tables>(tables: &T, frontend: &FrontendValue, client: &Client) -> u16 {
    let key = AffinityKey {
        client: client.known_as,
        set: frontend.set,
    };
    let Some(kept) = tables.affinity(&key) else {
        return Member::NOWHERE;
    };
    let age = tables.now().saturating_sub(kept.seen);
    if age > frontend.affinity as u64 * 1_000_000_000 {
        return Member::NOWHERE;
    }
    let key = MemberKey {
        set: frontend.set,
        generation: frontend.generation,
        port: kept.port,
        addr: kept.addr,
    };
    match tables.member(&key) {
        Some(member) if frontend.is_local_for(client.scope) => member.local_slot,
        Some(member) => member.slot,
        None => Member::NOWHERE,
    }
}

/// A function of its own, for the stack's sake.
#[inline(never)]
fn remember<T: Tables>(tables: &T, set: SetId, backend: &Backend, client: &Client) {
    let key = AffinityKey {
        client: client.known_as,
        set,
    };
    tables.keep_affinity(
        &key,
        &Affinity {
            addr: backend.addr,
            port: backend.port,
            zero: [0; 3],
            seen: tables.now(),
        },
    );
}

/// Every node computes the same of a connection. Each word is stirred in by a multiplication with an odd constant; the end is
/// the finisher of MurmurHash3, which lets every bit of the input reach the high bits that are used.
#[inline(always)]
fn connection_hash(front: &Front, client: &Client) -> u32 {
    let (a, b) = (client.known_as.words(), front.addr.words());
    let ports = (client.port.raw() as u32) << 16 | front.port.raw() as u32;
    let words = [
        a[0],
        a[1],
        a[2],
        a[3],
        b[0],
        b[1],
        b[2],
        b[3],
        ports,
        front.proto.0 as u32,
    ];
    let mut h = 0x9747_b28c_u32;
    let mut i = 0;
    while i < 10 {
        h = (h ^ u32::from_be(words[i])).wrapping_mul(0x85eb_ca6b);
        h = h.rotate_left(13);
        i += 1;
    }
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// What an address without a frontend of this port is.
///
/// A function of its own, for the stack's sake.
#[inline(never)]
pub fn unknown<T: Tables>(tables: &T, addr: Address) -> Found {
    if !tables.settings().is_some_and(|s| s.is_service_address(addr)) {
        return Found::NotAService;
    }
    match tables.frontend(&FrontendKey::whole_address(addr)) {
        Some(f) if f.flags.has(FrontendFlags::HERE) => Found::NotAService,
        Some(_) => Found::Nowhere(Refusal::NoPort),
        None => Found::Nowhere(Refusal::NoService),
    }
}

/// The slot of the earlier endpoint, if it still is in the set: its old one, or the one before or behind, because one came or went.
/// Else [`Member::NOWHERE`].
///
/// A function of its own, for the stack's sake.
#[inline(never)]
fn keep<T: Tables>(tables: &T, frontend: &FrontendValue, scope: Scope, e: &Earlier) -> u16 {
    let (first, usable) = frontend.usable(scope);
    for slot in [e.slot, e.slot.wrapping_sub(1), e.slot.wrapping_add(1)] {
        if slot.wrapping_sub(first) >= usable {
            continue;
        }
        if let Some(backend) = tables.backend(&slot_key(frontend, slot))
            && backend.addr == e.addr
            && backend.port == e.port
        {
            return slot;
        }
    }
    Member::NOWHERE
}

#[inline(always)]
fn empty(frontend: &FrontendValue, scope: Scope) -> Refusal {
    if frontend.is_local_for(scope) && frontend.flags.has(FrontendFlags::ELSEWHERE) {
        Refusal::NoLocalEndpoint
    } else {
        Refusal::NoEndpoint
    }
}

#[inline(always)]
pub(crate) fn slot_key(frontend: &FrontendValue, slot: u16) -> BackendKey {
    BackendKey {
        set: frontend.set,
        generation: frontend.generation,
        slot,
    }
}

/// Maps 32 random bits onto `0..n` without a division.
#[inline(always)]
pub(crate) fn scale(random: u32, n: u16) -> u16 {
    ((random as u64 * n as u64) >> 32) as u16
}

#[cfg(test)]
mod tests;
