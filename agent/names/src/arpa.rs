//! Names of the reverse tree, RFC 1035 section 3.5 and RFC 3596 section 2.5.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that a name such as `4.3.2.1.in-addr.arpa` (lower case, without its last dot) is about; `None` if it is
/// not about exactly one.
#[must_use]
pub fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        v4(rest).map(IpAddr::V4)
    } else if let Some(rest) = name.strip_suffix(".ip6.arpa") {
        v6(rest).map(IpAddr::V6)
    } else {
        None
    }
}

fn v4(labels: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut labels = labels.split('.');
    for octet in octets.iter_mut().rev() {
        let label = labels.next()?;
        let plain = label.bytes().all(|b| b.is_ascii_digit()) && (label == "0" || !label.starts_with('0'));
        *octet = label.parse().ok().filter(|_| plain)?;
    }
    labels.next().is_none().then(|| octets.into())
}

fn v6(labels: &str) -> Option<Ipv6Addr> {
    // 32 digits with a dot between each two, the last digit of the address first.
    let bytes = labels.as_bytes();
    if bytes.len() != 63 {
        return None;
    }
    let mut bits: u128 = 0;
    for pair in bytes.rchunks(2) {
        let (digit, dot) = match pair {
            [dot, digit] => (*digit, *dot),
            [digit] => (*digit, b'.'),
            _ => return None,
        };
        let digit = char::from(digit).to_digit(16).filter(|_| dot == b'.')?;
        bits = bits << 4 | u128::from(digit);
    }
    Some(Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read_backwards() {
        assert_eq!(
            reverse_address("1.0.3.10.in-addr.arpa"),
            Some(IpAddr::from([10, 3, 0, 1]))
        );
        let digits = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f";
        assert_eq!(
            reverse_address(&format!("{digits}.ip6.arpa")),
            Some("fd00:10:96::a".parse().unwrap())
        );
    }

    #[test]
    fn anything_but_one_whole_address_is_none() {
        for name in [
            "0.3.10.in-addr.arpa",
            "9.1.0.3.10.in-addr.arpa",
            "256.0.3.10.in-addr.arpa",
            "01.0.3.10.in-addr.arpa",
            "+1.0.3.10.in-addr.arpa",
            "in-addr.arpa",
            "a.0.ip6.arpa",
            "g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
            "a-0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
        ] {
            assert_eq!(reverse_address(name), None, "{name}");
        }
    }
}
