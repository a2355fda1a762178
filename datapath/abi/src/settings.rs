use crate::Address;
use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many service ranges (ServiceCIDRs, both families together) a node can know.
pub const SERVICE_RANGES: usize = 4;
/// How many ranges of pods (both families together) a node can know.
pub const POD_RANGES: usize = 4;
/// How many of its own addresses a node can know.
pub const NODE_ADDRS: usize = 8;

/// A range of addresses. A range of 0 bits is an unused entry: no service range covers everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    pub addr: Address,
    /// Prefix length of the 16-byte form: that of an IPv4 range plus 96.
    pub bits: u32,
}

impl Range {
    /// From an address and the prefix length that people write for its family.
    pub fn new(addr: core::net::IpAddr, bits: u8) -> Self {
        let more = if addr.is_ipv4() { 96 } else { 0 };
        Self {
            addr: addr.into(),
            bits: u32::from(bits) + more,
        }
    }

    /// Whether `addr` lies in this range. (A function of its own: what a kernel's verifier finds inside does not multiply with what
    /// follows.)
    #[inline(never)]
    pub fn contains(&self, addr: Address) -> bool {
        if self.bits == 0 {
            return false;
        }
        let (own, other) = (self.addr.words(), addr.words());
        let mut left = self.bits;
        let mut same = true;
        for i in 0..4 {
            let n = if left > 32 { 32 } else { left };
            let mask = if n == 0 { 0 } else { u32::MAX << (32 - n) };
            same &= (own[i] ^ other[i]) & mask.to_be() == 0;
            left -= n;
        }
        same
    }
}

/// What user space tells the programs and may change at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// [`crate::LAYOUT`] of whoever made the maps.
    pub layout: u32,
    pub flags: SettingsFlags,
    /// Addresses here are a service's or nobody's.
    pub service_ranges: [Range; SERVICE_RANGES],
    /// Sources here are pods of this cluster.
    pub pod_ranges: [Range; POD_RANGES],
    /// This node's own addresses; unused places are the unspecified IPv6 address.
    pub node_addrs: [Address; NODE_ADDRS],
    /// The addresses under which this node sends on for clients: IPv4, IPv6.
    pub masquerade: [Address; 2],
    /// The cookie of the node's own network namespace.
    pub host_netns_cookie: u64,
}

/// Bits of the settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SettingsFlags(pub u32);

impl SettingsFlags {
    /// Packets on uplinks are looked at: there is an external front, or cluster addresses shall be served from outside.
    pub const UPLINK: Self = Self(1);
    /// Answers to the node's own connections are looked at: some are translated per packet. The programs set it when they open the
    /// first one; user space keeps it.
    pub const OWN: Self = Self(2);
    /// Maps of another layout are being taken over: programs of both layouts are at work, so no TCP flow is begun that only one
    /// of them would know. What is dropped meanwhile is sent again by its sender.
    pub const HOLD: Self = Self(4);
    /// Another proxy has connections that the kernel's connection tracking still translates: the middle of a TCP connection that no
    /// flow knows is theirs.
    pub const FOREIGN: Self = Self(8);
    /// The node is being left to another proxy: known flows go on, everything else is theirs.
    pub const LEAVING: Self = Self(16);

    /// These, with or without `other`.
    #[must_use]
    pub const fn set(self, other: Self, on: bool) -> Self {
        Self(if on { self.0 | other.0 } else { self.0 & !other.0 })
    }

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Settings {
    /// Whether `addr` can only be a service's.
    #[inline(always)]
    pub fn is_service_address(&self, addr: Address) -> bool {
        self.service_ranges[0].contains(addr)
            || self.service_ranges[1].contains(addr)
            || self.service_ranges[2].contains(addr)
            || self.service_ranges[3].contains(addr)
    }

    /// Whether `addr` is a pod's.
    #[inline(always)]
    pub fn is_pod_address(&self, addr: Address) -> bool {
        self.pod_ranges[0].contains(addr)
            || self.pod_ranges[1].contains(addr)
            || self.pod_ranges[2].contains(addr)
            || self.pod_ranges[3].contains(addr)
    }

    /// Whether `addr` is this node's own.
    #[inline(never)]
    pub fn is_node_address(&self, addr: Address) -> bool {
        addr != Address::default() && self.node_addrs.contains(&addr)
    }

    /// The address of that family under which this node sends on; `None` if it has none.
    #[inline(always)]
    pub fn masquerade(&self, v4: bool) -> Option<Address> {
        let addr = self.masquerade[if v4 { 0 } else { 1 }];
        (addr != Address::default()).then_some(addr)
    }
}

const _: () = assert!(size_of::<Range>() == 20 && size_of::<Settings>() == 336);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn within(range: &str, bits: u8, addr: &str) -> bool {
        Range::new(range.parse().unwrap(), bits).contains(addr.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn a_range_ends_where_its_prefix_ends() {
        assert!(within("10.96.0.0", 16, "10.96.255.255"));
        assert!(!within("10.96.0.0", 16, "10.97.0.0"));
        assert!(within("10.96.0.0", 13, "10.103.0.1"));
        assert!(within("fd00:10:96::", 112, "fd00:10:96::ffff"));
        assert!(!within("fd00:10:96::", 112, "fd00:10:96::1:0"));
    }

    #[test]
    fn families_do_not_mix() {
        assert!(!within("10.96.0.0", 16, "fd00::1"));
        assert!(!within("::", 1, "10.96.0.1") || within("::", 1, "::1"));
    }

    #[test]
    fn an_unused_range_contains_nothing() {
        assert!(!Settings::default().is_service_address("10.0.0.1".parse::<IpAddr>().unwrap().into()));
    }
}
