//! Reading headers: Ethernet, IPv4, IPv6 with extension headers, TCP, UDP, ICMP.
use datapath_abi::{Address, Be16, Proto};

/// A packet whose bytes can be read; offset 0 is the Ethernet header.
pub trait Packet {
    /// `N` bytes from `at`; `None` beyond the end.
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

/// Length of an Ethernet header without tags.
pub const ETHERNET: u32 = 14;
/// Extension headers that are followed; a packet with more is malformed.
const MAX_EXTENSIONS: usize = 6;

/// TCP flags, as in byte 13 of the header.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What the headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    pub src: Address,
    pub dst: Address,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: Proto,
    /// Zero unless TCP.
    pub tcp_flags: u8,
    /// Offset of the TCP or UDP header.
    pub l4: u32,
    /// Not the first fragment: there are no ports.
    pub later_fragment: bool,
}

/// Why a packet was not parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotParsed {
    /// Neither IPv4 nor IPv6 (ARP, tagged, …).
    OtherProtocol,
    /// Shorter than its headers say, or headers that cannot be.
    Malformed,
}

/// Where the transport header starts and what it is.
struct Transport {
    src: Address,
    dst: Address,
    proto: Proto,
    l4: u32,
    later_fragment: bool,
}

/// Parses a packet that starts with an Ethernet header.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Result<Parsed, NotParsed> {
    let kind: [u8; 2] = packet.read(12).ok_or(NotParsed::Malformed)?;
    let t = match u16::from_be_bytes(kind) {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return Err(NotParsed::OtherProtocol),
    };
    transport(packet, &t)
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized>(packet: &P) -> Result<Transport, NotParsed> {
    let h: [u8; 20] = packet.read(ETHERNET).ok_or(NotParsed::Malformed)?;
    let header_words = h[0] & 0x0f;
    if h[0] >> 4 != 4 || header_words < 5 {
        return Err(NotParsed::Malformed);
    }
    Ok(Transport {
        src: Address::from_v4_word(u32::from_ne_bytes([h[12], h[13], h[14], h[15]])),
        dst: Address::from_v4_word(u32::from_ne_bytes([h[16], h[17], h[18], h[19]])),
        proto: Proto(h[9]),
        l4: ETHERNET + header_words as u32 * 4,
        later_fragment: u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0,
    })
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized>(packet: &P) -> Result<Transport, NotParsed> {
    let fixed: [u8; 8] = packet.read(ETHERNET).ok_or(NotParsed::Malformed)?;
    if fixed[0] >> 4 != 6 {
        return Err(NotParsed::Malformed);
    }
    let src: [u8; 16] = packet.read(ETHERNET + 8).ok_or(NotParsed::Malformed)?;
    let dst: [u8; 16] = packet.read(ETHERNET + 24).ok_or(NotParsed::Malformed)?;
    let mut t = Transport {
        src: Address::from_v6_bytes(src),
        dst: Address::from_v6_bytes(dst),
        proto: Proto(fixed[6]),
        l4: ETHERNET + 40,
        later_fragment: false,
    };
    for _ in 0..MAX_EXTENSIONS {
        // A later fragment has no headers behind this one; what follows is payload.
        if t.later_fragment || !is_extension(t.proto) {
            return Ok(t);
        }
        let h: [u8; 4] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
        match t.proto.0 {
            44 => {
                t.later_fragment = u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0;
                t.l4 += 8;
            }
            51 => t.l4 += (h[1] as u32 + 2) * 4,
            _ => t.l4 += (h[1] as u32 + 1) * 8,
        }
        t.proto = Proto(h[0]);
    }
    if is_extension(t.proto) {
        return Err(NotParsed::Malformed);
    }
    Ok(t)
}

/// Hop-by-hop, routing, fragment, authentication, destination options (RFC 8200, 4302).
#[inline(always)]
fn is_extension(proto: Proto) -> bool {
    matches!(proto.0, 0 | 43 | 44 | 51 | 60)
}

#[inline(always)]
fn transport<P: Packet + ?Sized>(packet: &P, t: &Transport) -> Result<Parsed, NotParsed> {
    let mut parsed = Parsed {
        src: t.src,
        dst: t.dst,
        sport: Be16::new(0),
        dport: Be16::new(0),
        proto: t.proto,
        tcp_flags: 0,
        l4: t.l4,
        later_fragment: t.later_fragment,
    };
    if t.later_fragment {
        return Ok(parsed);
    }
    match t.proto {
        Proto::TCP => {
            // The whole fixed header has to be there; a shorter one can neither be translated nor answered.
            let h: [u8; 20] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
            parsed.sport = Be16::from_wire([h[0], h[1]]);
            parsed.dport = Be16::from_wire([h[2], h[3]]);
            parsed.tcp_flags = h[13];
        }
        Proto::UDP => {
            let h: [u8; 8] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
            parsed.sport = Be16::from_wire([h[0], h[1]]);
            parsed.dport = Be16::from_wire([h[2], h[3]]);
        }
        _ => {}
    }
    Ok(parsed)
}

/// A packet in a byte slice.
impl Packet for [u8] {
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.get(at as usize..)?.first_chunk().copied()
    }
}

#[cfg(test)]
pub(crate) mod tests;
