//! Saying no with a packet: TCP reset, ICMP port unreachable. Built from the packet that is refused, and sent back.
//!
//! Each function fills a zeroed buffer with the bytes behind the Ethernet header; `None` if the packet's headers are too unusual to be quoted. They
//! read what they need from the packet again, so that a kernel program can make each a subprogram with a small stack.
use crate::checksum::{add_range, finish};
use crate::packet::{ETHERNET, Packet, tcp};
use datapath_abi::Proto;

/// How far an answer can travel.
const HOPS: u8 = 64;

/// IPv4 and TCP header of a reset.
pub type Reset4 = [u8; 40];
/// IPv6 and TCP header of a reset.
pub type Reset6 = [u8; 60];
/// IPv4 and ICMP header, then the refused packet's IPv4 header and eight bytes.
pub type Unreachable4 = [u8; 56];
/// IPv6 and ICMPv6 header, then the refused packet's IPv6 header and eight bytes.
pub type Unreachable6 = [u8; 96];

/// A reset over IPv4 for the TCP header at `l4`.
#[inline(always)]
pub fn reset4<P: Packet + ?Sized>(packet: &P, l4: u32, out: &mut Reset4) -> Option<()> {
    keep_in_memory(out);
    let total = ipv4_header(packet, out, Proto::TCP)?;
    reset(packet, l4, ETHERNET + total, out, 20)?;
    let sum = add_range(Proto::TCP.0 as u32 + 20, out, 12, 40);
    [out[36], out[37]] = finish(sum);
    Some(())
}

/// A reset over IPv6 for the TCP header at `l4`.
#[inline(always)]
pub fn reset6<P: Packet + ?Sized>(packet: &P, l4: u32, out: &mut Reset6) -> Option<()> {
    keep_in_memory(out);
    let payload = ipv6_header(packet, out, Proto::TCP)?;
    reset(packet, l4, ETHERNET + 40 + payload, out, 40)?;
    let sum = add_range(Proto::TCP.0 as u32 + 20, out, 8, 60);
    [out[56], out[57]] = finish(sum);
    Some(())
}

/// RFC 792 type 3 code 3. A packet with IPv4 options is not answered: the quote would lack its ports.
#[inline(always)]
pub fn unreachable4<P: Packet + ?Sized>(packet: &P, l4: u32, out: &mut Unreachable4) -> Option<()> {
    if l4 != ETHERNET + 20 {
        return None;
    }
    keep_in_memory(out);
    ipv4_header(packet, out, Proto::ICMP)?;
    let quote: [u8; 28] = packet.read(ETHERNET)?;
    out[28..56].copy_from_slice(&quote);
    (out[20], out[21]) = (3, 3);
    [out[22], out[23]] = finish(add_range(0, out, 20, 56));
    Some(())
}

/// RFC 4443 type 1 code 4. A packet with extension headers is not answered, for the same reason.
#[inline(always)]
pub fn unreachable6<P: Packet + ?Sized>(packet: &P, l4: u32, out: &mut Unreachable6) -> Option<()> {
    if l4 != ETHERNET + 40 {
        return None;
    }
    keep_in_memory(out);
    ipv6_header(packet, out, Proto::ICMPV6)?;
    let quote: [u8; 48] = packet.read(ETHERNET)?;
    out[48..96].copy_from_slice(&quote);
    (out[40], out[41]) = (1, 4);
    let pseudo = Proto::ICMPV6.0 as u32 + 56;
    [out[42], out[43]] = finish(add_range(pseudo, out, 8, 96));
    Some(())
}

/// Keeps the compiler from holding each byte in a register of its own: it would spill them all, eight bytes for each, and a
/// kernel program has 512.
#[inline(always)]
fn keep_in_memory<const N: usize>(bytes: &mut [u8; N]) {
    core::hint::black_box(bytes);
}

/// The TCP header of a reset (RFC 9293, 3.10.7.1) at `at`, without its checksum. `end` is where the refused segment ends.
#[inline(always)]
fn reset<P: Packet + ?Sized, const N: usize>(
    packet: &P,
    l4: u32,
    end: u32,
    out: &mut [u8; N],
    at: usize,
) -> Option<()> {
    let t: [u8; 20] = packet.read(l4)?;
    (out[at], out[at + 1], out[at + 2], out[at + 3]) = (t[2], t[3], t[0], t[1]);
    if t[13] & tcp::ACK != 0 {
        // The peer told which number it expects.
        out[at + 4..at + 8].copy_from_slice(&[t[8], t[9], t[10], t[11]]);
        out[at + 13] = tcp::RST;
    } else {
        let payload = end.saturating_sub(l4 + (t[12] >> 4) as u32 * 4);
        let used = payload + (t[13] & tcp::SYN != 0) as u32 + (t[13] & tcp::FIN != 0) as u32;
        let seq = u32::from_be_bytes([t[4], t[5], t[6], t[7]]);
        out[at + 8..at + 12].copy_from_slice(&seq.wrapping_add(used).to_be_bytes());
        out[at + 13] = tcp::RST | tcp::ACK;
    }
    out[at + 12] = 5 << 4;
    Some(())
}

/// The answer's IPv4 header, complete with checksum: from the refused packet's destination to its source. Returns the
/// refused packet's total length.
#[inline(always)]
fn ipv4_header<P: Packet + ?Sized, const N: usize>(
    packet: &P,
    out: &mut [u8; N],
    proto: Proto,
) -> Option<u32> {
    let h: [u8; 20] = packet.read(ETHERNET)?;
    (out[0], out[3]) = (0x45, N as u8);
    // Do not fragment, as the kernel's own answers.
    out[6] = 0x40;
    (out[8], out[9]) = (HOPS, proto.0);
    out[12..16].copy_from_slice(&[h[16], h[17], h[18], h[19]]);
    out[16..20].copy_from_slice(&[h[12], h[13], h[14], h[15]]);
    [out[10], out[11]] = finish(add_range(0, out, 0, 20));
    Some(u16::from_be_bytes([h[2], h[3]]) as u32)
}

/// The answer's IPv6 header. Returns the refused packet's payload length.
#[inline(always)]
fn ipv6_header<P: Packet + ?Sized, const N: usize>(
    packet: &P,
    out: &mut [u8; N],
    proto: Proto,
) -> Option<u32> {
    (out[0], out[5]) = (0x60, (N - 40) as u8);
    (out[6], out[7]) = (proto.0, HOPS);
    let dst: [u8; 16] = packet.read(ETHERNET + 24)?;
    out[8..24].copy_from_slice(&dst);
    let src: [u8; 16] = packet.read(ETHERNET + 8)?;
    out[24..40].copy_from_slice(&src);
    let length: [u8; 2] = packet.read(ETHERNET + 4)?;
    Some(u16::from_be_bytes(length) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::{frame, ip};
    use crate::packet::{Parsed, parse};
    use std::vec::Vec;

    fn sent_back(original: &[u8], answer: &[u8]) -> (Parsed, Vec<u8>) {
        let mut bytes = original[..14].to_vec();
        bytes.extend_from_slice(answer);
        (parse(&bytes[..]).unwrap(), bytes)
    }

    #[test]
    fn a_syn_is_reset_with_the_number_that_it_used_up() {
        for (src, dst) in [("10.0.0.1", "10.96.0.1"), ("fd00::1", "fd00:10:96::1")] {
            let syn = frame(src, dst, Proto::TCP, 4000, 80, &[]);
            let l4 = parse(&syn[..]).unwrap().l4;
            let (mut four, mut six) = ([0; 40], [0; 60]);
            let bytes = if src.contains(':') {
                reset6(&syn[..], l4, &mut six).unwrap();
                six.to_vec()
            } else {
                reset4(&syn[..], l4, &mut four).unwrap();
                four.to_vec()
            };
            let (p, all) = sent_back(&syn, &bytes);
            assert_eq!((p.src, p.dst), (ip(dst), ip(src)));
            assert_eq!((p.sport.get(), p.dport.get()), (80, 4000));
            assert_eq!(p.tcp_flags, tcp::RST | tcp::ACK);
            let ack = u32::from_be_bytes(all[p.l4 as usize + 8..][..4].try_into().unwrap());
            assert_eq!(ack, 1001, "the test's SYN has number 1000");
            assert!(crate::packet::tests::checksums_hold(&all));
        }
    }

    #[test]
    fn a_datagram_is_answered_by_port_unreachable_that_quotes_it() {
        for (src, dst) in [("10.0.0.1", "10.96.0.1"), ("fd00::1", "fd00:10:96::1")] {
            let datagram = frame(src, dst, Proto::UDP, 4000, 53, b"question");
            let l4 = parse(&datagram[..]).unwrap().l4;
            let (mut four, mut six) = ([0; 56], [0; 96]);
            let bytes = if src.contains(':') {
                unreachable6(&datagram[..], l4, &mut six).unwrap();
                six.to_vec()
            } else {
                unreachable4(&datagram[..], l4, &mut four).unwrap();
                four.to_vec()
            };
            let (p, all) = sent_back(&datagram, &bytes);
            assert_eq!((p.src, p.dst), (ip(dst), ip(src)));
            let quoted = &all[p.l4 as usize + 8..];
            assert_eq!(quoted, &datagram[14..14 + quoted.len()]);
            assert!(crate::packet::tests::checksums_hold(&all));
        }
    }
}
