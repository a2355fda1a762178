//! An address range in CIDR notation.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range such as `10.244.1.0/24` or `fd00:10:244:1::/64`; the host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    base: IpAddr,
    length: u8,
}

/// Why a text is not a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an address range: write it like 10.244.1.0/24 or fd00:10:244:1::/64")]
pub struct ParsePrefixError(String);

impl Prefix {
    /// The range of `length` leading bits that holds `address`; `None` when there are not that many bits.
    pub fn containing(address: IpAddr, length: u8) -> Option<Self> {
        let width = width(address);
        if length > width {
            return None;
        }
        let host = width - length;
        let bits = bits(address);
        let base = if host >= 128 { 0 } else { (bits >> host) << host };
        Some(Self {
            base: from_bits(address, base),
            length,
        })
    }

    /// The first address of the range.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// How many leading bits are fixed.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the range holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::containing(address, self.length).is_some_and(|p| p == *self)
    }

    /// Whether this is an IPv4 range.
    pub fn is_v4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// How many addresses the range holds, at most 2^32.
    pub fn size(&self) -> u64 {
        1u64 << u32::from(width(self.base) - self.length).min(32)
    }

    /// The address `offset` places behind the first one; `None` outside of the range.
    pub fn nth(&self, offset: u64) -> Option<IpAddr> {
        (offset < self.size()).then(|| from_bits(self.base, bits(self.base) + u128::from(offset)))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The address of `family`'s kind with these bits; IPv4 takes the low 32.
fn from_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Prefix::containing(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| ParsePrefixError(text.to_owned()))
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cut_off() {
        let p: Prefix = "10.244.1.77/24".parse().unwrap();
        assert_eq!(p.to_string(), "10.244.1.0/24");
        let p: Prefix = "fd00:10:244:1::9/64".parse().unwrap();
        assert_eq!(p.to_string(), "fd00:10:244:1::/64");
    }

    #[test]
    fn the_whole_address_space_is_a_range() {
        let p: Prefix = "::/0".parse().unwrap();
        assert!(p.contains("ffff::1".parse().unwrap()));
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap().size(), 1 << 32);
    }

    #[test]
    fn too_many_bits_are_refused() {
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
        assert!("10.0.0.0".parse::<Prefix>().is_err());
    }

    #[test]
    fn a_range_ends_where_it_ends() {
        let p: Prefix = "10.244.1.0/24".parse().unwrap();
        assert_eq!(p.nth(255), Some("10.244.1.255".parse().unwrap()));
        assert_eq!(p.nth(256), None);
        assert!(!p.contains("10.244.2.0".parse().unwrap()));
        assert!(!p.contains("fd00::1".parse().unwrap()));
    }
}
