//! SCTP's checksum: CRC32c over the whole packet, without addresses (RFC 9260, 6.8 and appendix A).
//!
//! A CRC is linear: what changes of it after two bytes changed depends on these bytes and on how many bytes follow, not on what those are. So the
//! packet need not be read again, which a kernel program could not.
use crate::packet::{ETHERNET, PacketMut};
use crate::rewrite::Rewrite;

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Bits of a length in bytes that can occur.
const LENGTH_BITS: u32 = 16;

/// Mends the checksum after the port at [`Rewrite::port_at`] changed. False beyond the end.
#[inline(always)]
pub fn mend<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite, delta: impl FnOnce(u16, u32) -> u32) -> bool {
    let (old, new) = (r.old_port.raw().to_ne_bytes(), r.new_port.raw().to_ne_bytes());
    let Some(end) = end(packet, r) else {
        return false;
    };
    let Some(before) = packet.read::<4>(r.l4 + 8) else {
        return false;
    };
    let behind = end.saturating_sub(r.port_at() + 2);
    let change = delta(u16::from_le_bytes(old) ^ u16::from_le_bytes(new), behind);
    // Both the wire and the reflected register have the lowest byte first.
    let after = u32::from_le_bytes(before) ^ change;
    packet.write(r.l4 + 8, &after.to_le_bytes())
}

/// Where the packet ends, by its IP header: an Ethernet frame may be padded.
#[inline(always)]
fn end<P: PacketMut + ?Sized>(packet: &P, r: &Rewrite) -> Option<u32> {
    let (at, header) = if r.old_addr.is_v4() { (2, 0) } else { (4, 40) };
    let length: [u8; 2] = packet.read(ETHERNET + at)?;
    Some(ETHERNET + header + u16::from_be_bytes(length) as u32)
}

/// How the CRC changes when two bytes differ by `bits` and `behind` bytes follow.
#[inline(always)]
pub fn delta(bits: u16, behind: u32) -> u32 {
    let mut crc = bits as u32;
    let mut i = 0;
    while i < 16 {
        crc = times_x(crc);
        i += 1;
    }
    let mut i = 0;
    while i < LENGTH_BITS {
        let product = times(crc, POWERS[i as usize]);
        let wanted = mask(behind >> i);
        crc = (product & wanted) | (crc & !wanted);
        i += 1;
    }
    crc
}

/// x to the power of 8 · 2^i: what 2^i bytes behind do.
const POWERS: [u32; LENGTH_BITS as usize] = {
    let mut all = [0x0080_0000; LENGTH_BITS as usize];
    let mut i = 1;
    while i < LENGTH_BITS as usize {
        all[i] = times(all[i - 1], all[i - 1]);
        i += 1;
    }
    all
};

/// All ones if the lowest bit is set. Opaque: the compiler would make a branch of it, and hundreds of these one after another are
/// more ways than the verifier walks.
#[inline(always)]
const fn mask(bit: u32) -> u32 {
    core::hint::black_box(0_u32.wrapping_sub(bit & 1))
}

/// Times x, modulo the polynomial.
#[inline(always)]
const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ (POLYNOMIAL & mask(a))
}

/// The product of two polynomials, modulo the polynomial; the power 0 is the highest bit. No branches: the verifier walks each once.
#[inline(always)]
const fn times(mut a: u32, b: u32) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < 32 {
        sum ^= a & mask(b >> (31 - i));
        a = times_x(a);
        i += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use crate::rewrite::apply;
    use datapath_abi::{Be16, Proto};
    use std::vec::Vec;

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for b in bytes {
            crc ^= u32::from(*b);
            for _ in 0..8 {
                crc = times_x(crc);
            }
        }
        !crc
    }

    #[test]
    fn the_check_value_of_the_polynomial_is_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    fn packet(payload: usize) -> Vec<u8> {
        let mut l4: Vec<u8> = [30080_u16.to_be_bytes(), 38412_u16.to_be_bytes()].concat();
        l4.extend_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0]);
        l4.extend((0..payload).map(|i| i as u8));
        let crc = crc32c(&l4).to_le_bytes();
        l4[8..12].copy_from_slice(&crc);
        let mut all = std::vec![0; 12];
        all.extend_from_slice(&[8, 0, 0x45, 0]);
        all.extend_from_slice(&(20 + l4.len() as u16).to_be_bytes());
        all.extend_from_slice(&[0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        all.extend_from_slice(&l4);
        all
    }

    #[test]
    fn a_changed_port_has_the_checksum_of_a_new_packet() {
        for payload in [0, 1, 4, 33, 1400] {
            let mut bytes = packet(payload);
            let p = parse(&bytes[..]).unwrap();
            assert_eq!(p.proto, Proto::SCTP);
            assert!(apply(
                &mut bytes[..],
                &Rewrite::destination(&p, p.src, Be16::new(5555))
            ));
            let p = parse(&bytes[..]).unwrap();
            assert!(apply(
                &mut bytes[..],
                &Rewrite::source(&p, p.dst, Be16::new(1024))
            ));
            let mut l4 = bytes[34..].to_vec();
            let got: [u8; 4] = l4[8..12].try_into().unwrap();
            l4[8..12].fill(0);
            assert_eq!(u32::from_le_bytes(got), crc32c(&l4), "{payload} bytes of payload");
            assert_eq!(&l4[..4], &[4, 0, 0x15, 0xb3]);
        }
    }
}
