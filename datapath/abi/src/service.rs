use crate::{Address, Be16, Proto};
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
    /// Zero; later the scope (inside, outside).
    pub scope: u8,
}

impl FrontendKey {
    /// The key of one port.
    #[inline(always)]
    pub const fn new(addr: Address, port: Be16, proto: Proto) -> Self {
        Self {
            addr,
            port,
            proto,
            scope: 0,
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
    /// Only endpoints of this node may be chosen (`internalTrafficPolicy: Local`).
    pub const LOCAL_ONLY: Self = Self(1);
    /// No endpoint of this node, but there are some elsewhere: with `LOCAL_ONLY`, drop rather than reject.
    pub const ELSEWHERE: Self = Self(2);

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
}

/// Where a frontend leads: `count` slots of one generation of a set. Slots `0..local` are on this node.
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
    /// Slots that may be chosen under policy Local; a prefix of all slots.
    pub local: u16,
    /// Zero; later the seconds of ClientIP affinity.
    pub affinity: u32,
}

impl FrontendValue {
    /// How many slots this frontend may choose from.
    #[inline(always)]
    pub const fn usable(&self) -> u16 {
        if self.flags.has(FrontendFlags::LOCAL_ONLY) {
            self.local
        } else {
            self.count
        }
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
    /// Zero; later terminating and node bits.
    pub flags: u16,
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
const _: () = assert!(size_of::<FrontendValue>() == 16 && align_of::<FrontendValue>() == 4);
const _: () = assert!(size_of::<BackendKey>() == 8 && align_of::<BackendKey>() == 4);
const _: () = assert!(size_of::<Backend>() == 20 && align_of::<Backend>() == 4);
const _: () = assert!(size_of::<Owner>() == 192);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_keeps_its_text() {
        assert_eq!(Owner::new("default/web:http").text(), "default/web:http");
    }

    #[test]
    fn a_local_frontend_uses_local_slots_only() {
        let v = FrontendValue {
            count: 5,
            local: 2,
            ..FrontendValue::default()
        };
        assert_eq!(v.usable(), 5);
        let v = FrontendValue {
            flags: FrontendFlags::LOCAL_ONLY,
            ..v
        };
        assert_eq!(v.usable(), 2);
    }
}
