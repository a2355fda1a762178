use super::*;
use crate::checksum::{add, fold};
use std::net::IpAddr;
use std::vec::Vec;

pub(crate) fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// An Ethernet frame of one TCP SYN (number 1000) or UDP datagram, with right checksums.
pub(crate) fn frame(src: &str, dst: &str, proto: Proto, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend_from_slice(&sport.to_be_bytes());
    l4.extend_from_slice(&dport.to_be_bytes());
    if proto == Proto::TCP {
        l4.extend_from_slice(&1000_u32.to_be_bytes());
        l4.extend_from_slice(&[0, 0, 0, 0, 0x50, tcp::SYN, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        l4.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        l4.extend_from_slice(&[0, 0]);
    }
    l4.extend_from_slice(payload);
    let (src, dst) = (ip(src), ip(dst));
    let check = if proto == Proto::TCP { 16 } else { 6 };
    let sum = pseudo(src, dst, proto, l4.len()) + sum_of(&l4);
    l4[check..check + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
    let mut all = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]].concat();
    if src.is_v4() {
        all.extend_from_slice(&[8, 0]);
        let mut h = [0_u8; 20];
        h[0] = 0x45;
        h[2..4].copy_from_slice(&(20 + l4.len() as u16).to_be_bytes());
        (h[8], h[9]) = (64, proto.0);
        h[12..16].copy_from_slice(&src.v4_word().to_ne_bytes());
        h[16..].copy_from_slice(&dst.v4_word().to_ne_bytes());
        let check = crate::checksum::finish(add(0, &h));
        h[10..12].copy_from_slice(&check);
        all.extend_from_slice(&h);
    } else {
        all.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        all.extend_from_slice(&(l4.len() as u16).to_be_bytes());
        all.extend_from_slice(&[proto.0, 64]);
        all.extend_from_slice(&src.v6_bytes());
        all.extend_from_slice(&dst.v6_bytes());
    }
    all.extend_from_slice(&l4);
    all
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum()
}

fn pseudo(src: Address, dst: Address, proto: Proto, len: usize) -> u32 {
    let addresses = if src.is_v4() {
        sum_of(&src.v4_word().to_ne_bytes()) + sum_of(&dst.v4_word().to_ne_bytes())
    } else {
        sum_of(&src.v6_bytes()) + sum_of(&dst.v6_bytes())
    };
    addresses + u32::from(proto.0) + len as u32
}

/// Writes the transport checksum anew; it stands `at` bytes behind the start of the transport header.
pub(crate) fn sum_up(bytes: &mut [u8], at: usize) {
    let p = parse(bytes).unwrap();
    let l4 = p.l4 as usize;
    bytes[l4 + at..l4 + at + 2].fill(0);
    let pseudo = if p.proto == Proto::ICMP {
        0
    } else {
        pseudo(p.src, p.dst, p.proto, bytes.len() - l4)
    };
    let check = !fold(pseudo + sum_of(&bytes[l4..]));
    bytes[l4 + at..l4 + at + 2].copy_from_slice(&check.to_be_bytes());
}

/// Whether the IPv4 header's and the transport's checksums are right.
pub(crate) fn checksums_hold(bytes: &[u8]) -> bool {
    let p = parse(bytes).unwrap();
    let l4 = &bytes[p.l4 as usize..];
    let pseudo = if p.proto == Proto::ICMP {
        0
    } else {
        pseudo(p.src, p.dst, p.proto, l4.len())
    };
    let header = !p.src.is_v4() || fold(sum_of(&bytes[14..34])) == 0xffff;
    header && fold(pseudo + sum_of(l4)) == 0xffff
}

#[test]
fn tcp_and_udp_are_parsed_in_both_families() {
    for (src, dst) in [("10.0.0.1", "10.96.0.1"), ("fd00::1", "fd00:10:96::1")] {
        for proto in [Proto::TCP, Proto::UDP] {
            let f = frame(src, dst, proto, 1234, 80, b"hello");
            let p = parse(&f[..]).unwrap();
            assert_eq!((p.src, p.dst, p.proto), (ip(src), ip(dst), proto));
            assert_eq!((p.sport.get(), p.dport.get()), (1234, 80));
            assert!(checksums_hold(&f));
        }
    }
}

#[test]
fn extension_headers_are_followed_to_the_ports() {
    let plain = frame("fd00::1", "fd00:10:96::1", Proto::UDP, 1234, 53, b"q");
    let mut f = plain[..54].to_vec();
    f[20] = 0;
    // Hop-by-hop of 8 bytes, then destination options of 16.
    f.extend_from_slice(&[60, 0, 1, 4, 0, 0, 0, 0]);
    f.extend_from_slice(&[17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    f.extend_from_slice(&plain[54..]);
    let p = parse(&f[..]).unwrap();
    assert_eq!((p.proto, p.l4, p.dport.get()), (Proto::UDP, 78, 53));
}

#[test]
fn a_later_fragment_has_no_ports() {
    let mut f = frame("10.0.0.1", "10.96.0.1", Proto::UDP, 1234, 53, b"q");
    f[21] = 8;
    let p = parse(&f[..]).unwrap();
    assert!(p.later_fragment);
    assert_eq!(p.dport.get(), 0);
}

#[test]
fn a_packet_of_any_length_is_parsed_or_refused_without_panic() {
    for (src, dst) in [("10.0.0.1", "10.96.0.1"), ("fd00::1", "fd00:10:96::1")] {
        let f = frame(src, dst, Proto::TCP, 1, 2, b"payload");
        for n in 0..f.len() {
            let _ = parse(&f[..n]);
        }
    }
}

#[test]
fn an_endless_chain_of_extension_headers_is_malformed() {
    let mut f = frame("fd00::1", "fd00::2", Proto::UDP, 1, 2, &[0; 200]);
    f[20] = 60;
    for i in (54..f.len()).step_by(8) {
        f[i] = 60;
        f[i + 1] = 0;
    }
    assert_eq!(parse(&f[..]), Err(NotParsed::Malformed));
}
