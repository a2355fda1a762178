use crate::{Address, Be16, CountNumber, Proto};
use core::mem::{align_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a client addresses: an address, a port and a protocol that belong to a service.
///
/// Port 0 with [`Proto::ANY`] stands for the address itself: it is there if the address belongs to a service, so that
/// a port nobody serves can be refused rather than left to time out.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct FrontendKey {
    pub addr: Address,
    pub port: Be16,
    pub proto: Proto,
    pub zero: u8,
}

impl FrontendKey {
    /// The key of one port.
    #[inline(always)]
    pub const fn new(addr: Address, port: Be16, proto: Proto) -> Self {
        Self {
            addr,
            port,
            proto,
            zero: 0,
        }
    }

    /// The key of the address itself.
    #[inline(always)]
    pub const fn whole_address(addr: Address) -> Self {
        Self::new(addr, Be16::new(0), Proto::ANY)
    }
}

/// The set of endpoints of one port of one service in one family. Ids are never reused while an agent lives.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct SetId(pub u32);

/// Which writing of a set's slots is valid. Slots of a new generation are complete before the frontend names it.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Generation(pub u16);

impl Generation {
    /// The one after this, wrapping.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// Bits of a frontend.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct FrontendFlags(pub u16);

impl FrontendFlags {
    pub const NONE: Self = Self(0);
    /// Only endpoints of this node may be chosen, whoever asks (`internalTrafficPolicy: Local`, on cluster addresses).
    pub const LOCAL_ALWAYS: Self = Self(1);
    /// No endpoint of this node may be chosen, but there are some elsewhere: where only local ones count, drop rather than
    /// reject.
    pub const ELSEWHERE: Self = Self(2);
    /// Only endpoints of this node for clients from outside the cluster (`externalTrafficPolicy: Local`, on external fronts).
    pub const LOCAL_OUTSIDE: Self = Self(4);
    /// The set has source ranges, and the client has to be in one of them.
    pub const RANGES: Self = Self(8);
    /// Not a cluster address: a node port, an external address or one of a load balancer.
    pub const EXTERNAL: Self = Self(16);
    /// A node port.
    pub const NODE_PORT: Self = Self(32);
    /// Packets to this address are for this node's own sockets: they are left alone.
    pub const HERE: Self = Self(64);
    /// Clients from outside choose through the Maglev table of the set.
    pub const MAGLEV: Self = Self(128);
    /// Reserved: endpoints answer clients directly.
    pub const DIRECT: Self = Self(256);
    /// Counts for this node's own processes only: a loopback address, which every pod has for itself.
    pub const NODE_ONLY: Self = Self(512);
    /// A port of the node that leads to one pod.
    pub const HOST_PORT: Self = Self(1024);

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `other` as well, if `wanted`.
    #[must_use]
    pub const fn with_if(self, wanted: bool, other: Self) -> Self {
        if wanted { self.with(other) } else { self }
    }
}

/// Where a client is, as the policies see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A pod, or a process of this node.
    Inside,
    /// Anything else.
    Outside,
}

/// Where a frontend leads: slots of one generation of a set. The Cluster set is `0..count`, the Local set `local_first..+local`:
/// usually a prefix of the Cluster set, else slots of its own behind it.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct FrontendValue {
    pub set: SetId,
    pub generation: Generation,
    pub flags: FrontendFlags,
    /// Slots that may be chosen under policy Cluster.
    pub count: u16,
    /// Slots that may be chosen under policy Local.
    pub local: u16,
    /// The first of them.
    pub local_first: u16,
    pub zero: u16,
    /// Seconds for which a client keeps its endpoint (`sessionAffinity: ClientIP`); 0 for none.
    pub affinity: u32,
    /// Under which the service port is counted.
    pub number: CountNumber,
}

impl FrontendValue {
    /// Whether only endpoints of this node count for a client from there.
    #[inline(always)]
    pub const fn is_local_for(&self, scope: Scope) -> bool {
        self.flags.has(FrontendFlags::LOCAL_ALWAYS)
            || (matches!(scope, Scope::Outside) && self.flags.has(FrontendFlags::LOCAL_OUTSIDE))
    }

    /// The slots that a client from there may be given: the first of them, and how many.
    #[inline(always)]
    pub const fn usable(&self, scope: Scope) -> (u16, u16) {
        if self.is_local_for(scope) {
            (self.local_first, self.local)
        } else {
            (0, self.count)
        }
    }

    /// Whether any slot of the Cluster or Local set will do, whoever asks: neither address, ranges nor affinity of the client count.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        let asks = FrontendFlags::HERE.0 | FrontendFlags::RANGES.0 | FrontendFlags::NODE_ONLY.0;
        self.flags.0 & asks == 0 && self.affinity == 0
    }

    /// One more than the last slot that this frontend can lead to.
    pub const fn slots(&self) -> u16 {
        let local = self.local_first.saturating_add(self.local);
        if local > self.count { local } else { self.count }
    }
}

/// One slot of one generation of a set.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct BackendKey {
    pub set: SetId,
    pub generation: Generation,
    pub slot: u16,
}

/// An endpoint: address and port, inline in its slot.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    pub addr: Address,
    pub port: Be16,
    /// [`Backend::LOCAL`] or zero.
    pub flags: u16,
    /// Under which the endpoint is counted.
    pub number: CountNumber,
}

impl Backend {
    /// On this node: its answers come back through this node whatever their destination is.
    pub const LOCAL: u16 = 1;

    /// Whether the endpoint is on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

/// A range of clients that a set admits: the key of a longest-prefix-match trie.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceRangeKey {
    /// How many bits of the rest count: 32 of the set, then the prefix length of the 16-byte form.
    pub bits: u32,
    /// The set's number, highest byte first.
    pub set: [u8; 4],
    pub addr: Address,
}

impl SourceRangeKey {
    /// The key of a range.
    pub fn range(set: SetId, range: &crate::Range) -> Self {
        Self {
            bits: 32 + range.bits,
            set: set.0.to_be_bytes(),
            addr: range.addr,
        }
    }

    /// The key that looks a client up.
    #[inline(always)]
    pub const fn client(set: SetId, addr: Address) -> Self {
        Self {
            bits: 160,
            set: set.0.to_be_bytes(),
            addr,
        }
    }
}

/// A client that keeps its endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address; on the socket path [`Address::of_netns`].
    pub client: Address,
    pub set: SetId,
}

/// The endpoint that a client keeps, changed in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Affinity {
    pub addr: Address,
    pub port: Be16,
    pub zero: [u16; 3],
    /// The last new connection, in nanoseconds since boot.
    pub seen: u64,
}

/// An endpoint of one generation of a set with affinity; tells whether a remembered endpoint still counts.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct MemberKey {
    pub set: SetId,
    pub generation: Generation,
    pub port: Be16,
    pub addr: Address,
}

/// Where the endpoint stands; [`Member::NOWHERE`] if it is not in that set.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Member {
    /// Its slot in the Cluster set.
    pub slot: u16,
    /// Its slot in the Local set; the same one where that is a prefix.
    pub local_slot: u16,
}

impl Member {
    /// Not a slot: sets have one fewer at most.
    pub const NOWHERE: u16 = u16::MAX;
}

/// The Maglev table of one generation of a set.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct MaglevKey {
    pub set: SetId,
    pub generation: Generation,
    pub zero: u16,
}

/// Places of a Maglev table; a prime, as the method wants. The shares of endpoints differ by one place at most.
pub const MAGLEV_PLACES: usize = 251;

/// Which slot of the Cluster set each place leads to. The places are filled in an order that all nodes share, so that each
/// node sends a connection to the same endpoint.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Maglev(pub [u16; MAGLEV_PLACES]);

impl core::fmt::Debug for Maglev {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.0).finish()
    }
}

/// Longest owner text: namespace, name and port name of 63 characters each, two separators, and a zero.
pub const OWNER_TEXT: usize = 192;

/// Whose a set is, in words: `namespace/service:port`, filled up with zeros.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Owner(pub [u8; OWNER_TEXT]);

impl Owner {
    /// From its text; cut at [`OWNER_TEXT`] bytes.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; OWNER_TEXT];
        let n = text.len().min(OWNER_TEXT);
        bytes[..n].copy_from_slice(&text.as_bytes()[..n]);
        Self(bytes)
    }

    /// The text without the zeros.
    pub fn text(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(OWNER_TEXT);
        core::str::from_utf8(&self.0[..end]).unwrap_or("?")
    }
}

impl core::fmt::Debug for Owner {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

const _: () = assert!(size_of::<FrontendKey>() == 20 && align_of::<FrontendKey>() == 4);
const _: () = assert!(size_of::<FrontendValue>() == 24 && align_of::<FrontendValue>() == 4);
const _: () = assert!(size_of::<BackendKey>() == 8 && align_of::<BackendKey>() == 4);
const _: () = assert!(size_of::<Backend>() == 24 && align_of::<Backend>() == 4);
const _: () = assert!(size_of::<Owner>() == 192);
const _: () = assert!(size_of::<SourceRangeKey>() == 24 && align_of::<SourceRangeKey>() == 4);
const _: () = assert!(size_of::<AffinityKey>() == 20 && align_of::<AffinityKey>() == 4);
const _: () = assert!(size_of::<Affinity>() == 32 && align_of::<Affinity>() == 8);
const _: () = assert!(size_of::<MemberKey>() == 24 && align_of::<MemberKey>() == 4);
const _: () = assert!(size_of::<Member>() == 4 && align_of::<Member>() == 2);
const _: () = assert!(size_of::<MaglevKey>() == 8 && align_of::<MaglevKey>() == 4);
const _: () = assert!(size_of::<Maglev>() == 502 && align_of::<Maglev>() == 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_keeps_its_text() {
        assert_eq!(Owner::new("default/web:http").text(), "default/web:http");
    }

    #[test]
    fn an_external_local_policy_counts_for_outside_clients_only() {
        let v = FrontendValue {
            count: 5,
            local: 2,
            local_first: 5,
            flags: FrontendFlags::LOCAL_OUTSIDE,
            ..FrontendValue::default()
        };
        assert_eq!(v.usable(Scope::Inside), (0, 5));
        assert_eq!(v.usable(Scope::Outside), (5, 2));
        assert_eq!(v.slots(), 7);
        let v = FrontendValue {
            flags: FrontendFlags::LOCAL_ALWAYS,
            ..v
        };
        assert_eq!(v.usable(Scope::Inside), (5, 2));
    }

    #[test]
    fn a_range_of_a_set_looks_like_its_clients_up_to_its_length() {
        let range = crate::Range::new("192.0.2.0".parse().unwrap(), 24);
        let key = SourceRangeKey::range(SetId(7), &range);
        assert_eq!(key.bits, 32 + 96 + 24);
        let ip: core::net::IpAddr = "192.0.2.9".parse().unwrap();
        let client = SourceRangeKey::client(SetId(7), ip.into());
        assert_eq!(key.as_bytes()[4..23], client.as_bytes()[4..23]);
    }
}
