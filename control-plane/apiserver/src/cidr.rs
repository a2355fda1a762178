//! Address ranges such as `10.96.0.0/16`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A text that is no address range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an address range; write it like 10.96.0.0/16 or fd00::/112")]
pub struct CidrError(String);

/// A range of IP addresses: a prefix and how many leading bits of it count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl Cidr {
    /// The first address, which stands for the range itself.
    #[must_use]
    pub fn base(self) -> IpAddr {
        self.base
    }

    /// Whether this is a range of IPv6 addresses.
    #[must_use]
    pub fn is_ipv6(self) -> bool {
        self.base.is_ipv6()
    }

    /// How many addresses the range has, at most `u64::MAX`.
    #[must_use]
    pub fn size(self) -> u64 {
        let width = if self.is_ipv6() { 128 } else { 32 };
        1_u64
            .checked_shl(width - u32::from(self.bits))
            .unwrap_or(u64::MAX)
    }

    /// The address at this distance from the base.
    #[must_use]
    pub fn nth(self, offset: u64) -> Option<IpAddr> {
        if offset >= self.size() {
            return None;
        }
        Some(match self.base {
            IpAddr::V4(v4) => Ipv4Addr::from(v4.to_bits().checked_add(u32::try_from(offset).ok()?)?).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(v6.to_bits().checked_add(u128::from(offset))?).into(),
        })
    }

    /// The distance of an address from the base; `None` when it is outside.
    #[must_use]
    pub fn offset(self, ip: IpAddr) -> Option<u64> {
        let distance = match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => u64::from(ip.to_bits().checked_sub(base.to_bits())?),
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                u64::try_from(ip.to_bits().checked_sub(base.to_bits())?).ok()?
            }
            _ => return None,
        };
        (distance < self.size()).then_some(distance)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let base = match ip {
            IpAddr::V4(v4) if bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                IpAddr::from(Ipv4Addr::from(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                IpAddr::from(Ipv6Addr::from(v6.to_bits() & mask))
            }
            _ => return Err(wrong()),
        };
        Ok(Self { base, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_addresses_are_inverse() {
        let v4: Cidr = "10.96.0.7/16".parse().unwrap();
        assert_eq!((v4.to_string().as_str(), v4.size()), ("10.96.0.0/16", 65536));
        assert_eq!(v4.nth(258), Some("10.96.1.2".parse().unwrap()));
        assert_eq!(v4.offset("10.96.1.2".parse().unwrap()), Some(258));
        assert_eq!(v4.offset("10.97.0.0".parse().unwrap()), None);
        let v6: Cidr = "fd00:10:96::/112".parse().unwrap();
        assert_eq!(v6.nth(1), Some("fd00:10:96::1".parse().unwrap()));
        assert_eq!(v6.offset("10.96.0.1".parse().unwrap()), None);
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
    }
}
