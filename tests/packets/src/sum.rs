//! Checksums from the whole of what they cover, never from a change.
use datapath_abi::Proto;
use std::net::IpAddr;

/// What the pseudo header adds (RFC 9293, 3.1; RFC 8200, 8.1).
pub fn pseudo(from: IpAddr, to: IpAddr, proto: Proto, len: usize) -> u32 {
    let of = |ip| match ip {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    of(from) + of(to) + u32::from(proto.0) + len as u32
}

/// The sum of 16-bit words; an odd last byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum()
}

/// Carries added back in.
pub fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// SCTP's checksum (RFC 9260, appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for bit in bytes.iter().flat_map(|b| (0..8).map(move |i| b >> i & 1)) {
        let out = crc & 1 ^ u32::from(bit);
        crc = crc >> 1 ^ if out == 1 { 0x82f6_3b78 } else { 0 };
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_have_their_published_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
    }
}
