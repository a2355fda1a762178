use crate::Address;
use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many service ranges (ServiceCIDRs, both families together) a node can know.
pub const SERVICE_RANGES: usize = 4;

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

    /// Whether `addr` lies in this range.
    #[inline(always)]
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
    /// Addresses here are a service's or nobody's.
    pub service_ranges: [Range; SERVICE_RANGES],
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
}

const _: () = assert!(size_of::<Range>() == 20 && size_of::<Settings>() == 84);

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
