//! Reading headers: Ethernet, IPv4, IPv6 with extension headers, TCP, UDP, ICMP.
use crate::checksum::update;
use crate::rewrite::Rewrite;
use crate::sctp;
use datapath_abi::{Address, Be16, Proto};

/// A packet whose bytes can be read; offset 0 is the Ethernet header.
pub trait Packet {
    /// `N` bytes from `at`; `None` beyond the end.
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

/// Which checksum covers bytes that change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mend {
    /// That of an IPv4 header.
    Header,
    /// That of a transport header. `pseudo`: the bytes are in its pseudo header, not in the packet behind it. `udp`: zero says
    /// that there is none, and stays; a result of zero is written as all ones (RFC 768).
    Transport { pseudo: bool, udp: bool },
}

/// A packet that can be changed.
pub trait PacketMut: Packet {
    /// Overwrites bytes; checksums are the caller's business. False beyond the end.
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> bool;
    /// Mends the checksum at `check` after covered bytes (2, 4 or 16 of them) changed. False beyond the end.
    fn mend<const N: usize>(&mut self, check: u32, old: &[u8; N], new: &[u8; N], mend: Mend) -> bool;
    /// Mends SCTP's checksum after a port changed. (In a kernel program [`sctp::delta`] is a function of its own: it is long.)
    #[inline(always)]
    fn mend_sctp(&mut self, r: &Rewrite) -> bool {
        sctp::mend(self, r, sctp::delta)
    }
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
    /// Zero unless ICMP or ICMPv6.
    pub icmp_type: u8,
    /// Offset of the transport header.
    pub l4: u32,
    /// Not the first fragment: there are no ports.
    pub later_fragment: bool,
    /// The first of several fragments.
    pub first_fragment: bool,
    /// The datagram's identification, if it is in fragments.
    pub fragment_id: u32,
}

impl Parsed {
    /// An ICMP error, which quotes the packet that it is about.
    #[inline(always)]
    pub const fn is_error(&self) -> bool {
        match self.proto {
            Proto::ICMP => matches!(self.icmp_type, 3 | 4 | 11 | 12),
            Proto::ICMPV6 => self.icmp_type < 128 && self.icmp_type != 0,
            _ => false,
        }
    }

    /// Whether a service can have this protocol.
    #[inline(always)]
    pub const fn has_ports(&self) -> bool {
        matches!(self.proto, Proto::TCP | Proto::UDP | Proto::SCTP)
    }

    #[inline(always)]
    pub(crate) const fn is_fragment(&self) -> bool {
        self.later_fragment || self.first_fragment
    }
}

/// The headers that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    pub src: Address,
    pub dst: Address,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: Proto,
    /// Offset of the quoted IP header.
    pub at: u32,
    /// Offset of the quoted transport header.
    pub l4: u32,
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
    first_fragment: bool,
    fragment_id: u32,
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
    let offset = u16::from_be_bytes([h[6], h[7]]);
    if h[0] >> 4 != 4 || header_words < 5 {
        return Err(NotParsed::Malformed);
    }
    Ok(Transport {
        src: Address::from_v4_word(u32::from_ne_bytes([h[12], h[13], h[14], h[15]])),
        dst: Address::from_v4_word(u32::from_ne_bytes([h[16], h[17], h[18], h[19]])),
        proto: Proto(h[9]),
        l4: ETHERNET + header_words as u32 * 4,
        later_fragment: offset & 0x1fff != 0,
        first_fragment: offset & 0x3fff == 0x2000,
        fragment_id: u16::from_ne_bytes([h[4], h[5]]) as u32,
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
        first_fragment: false,
        fragment_id: 0,
    };
    for _ in 0..MAX_EXTENSIONS {
        // A later fragment has no headers behind this one; what follows is payload.
        if t.later_fragment || !is_extension(t.proto) {
            return Ok(t);
        }
        let h: [u8; 4] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
        match t.proto.0 {
            44 => {
                let offset = u16::from_be_bytes([h[2], h[3]]);
                let id: [u8; 4] = packet.read(t.l4 + 4).ok_or(NotParsed::Malformed)?;
                t.later_fragment = offset & 0xfff8 != 0;
                t.first_fragment = offset & 0xfff9 == 1;
                t.fragment_id = u32::from_ne_bytes(id);
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
        icmp_type: 0,
        l4: t.l4,
        later_fragment: t.later_fragment,
        first_fragment: t.first_fragment,
        fragment_id: t.fragment_id,
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
        Proto::SCTP => {
            let h: [u8; 12] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
            parsed.sport = Be16::from_wire([h[0], h[1]]);
            parsed.dport = Be16::from_wire([h[2], h[3]]);
        }
        Proto::ICMP | Proto::ICMPV6 => {
            let h: [u8; 8] = packet.read(t.l4).ok_or(NotParsed::Malformed)?;
            parsed.icmp_type = h[0];
        }
        _ => {}
    }
    Ok(parsed)
}

/// What an ICMP error is about; `None` if that has no ports, or is quoted in too few bytes or with extension headers.
#[inline(always)]
pub fn quoted<P: Packet + ?Sized>(packet: &P, p: &Parsed) -> Option<Quoted> {
    let at = p.l4 + 8;
    let mut q = Quoted {
        src: Address::default(),
        dst: Address::default(),
        sport: Be16::new(0),
        dport: Be16::new(0),
        proto: Proto::ANY,
        at,
        l4: at,
    };
    if p.src.is_v4() {
        let h: [u8; 20] = packet.read(at)?;
        if h[0] >> 4 != 4 || u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
            return None;
        }
        q.src = Address::from_v4_word(u32::from_ne_bytes([h[12], h[13], h[14], h[15]]));
        q.dst = Address::from_v4_word(u32::from_ne_bytes([h[16], h[17], h[18], h[19]]));
        q.proto = Proto(h[9]);
        q.l4 = at + (h[0] & 0x0f) as u32 * 4;
    } else {
        let fixed: [u8; 8] = packet.read(at)?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        q.src = Address::from_v6_bytes(packet.read(at + 8)?);
        q.dst = Address::from_v6_bytes(packet.read(at + 24)?);
        q.proto = Proto(fixed[6]);
        q.l4 = at + 40;
    }
    if !matches!(q.proto, Proto::TCP | Proto::UDP | Proto::SCTP) {
        return None;
    }
    let ports: [u8; 4] = packet.read(q.l4)?;
    q.sport = Be16::from_wire([ports[0], ports[1]]);
    q.dport = Be16::from_wire([ports[2], ports[3]]);
    Some(q)
}

/// A packet in a byte slice.
impl Packet for [u8] {
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.get(at as usize..)?.first_chunk().copied()
    }
}

impl PacketMut for [u8] {
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> bool {
        let place = self
            .get_mut(at as usize..)
            .and_then(|rest| rest.first_chunk_mut());
        match place {
            Some(place) => {
                *place = *bytes;
                true
            }
            None => false,
        }
    }

    fn mend<const N: usize>(&mut self, check: u32, old: &[u8; N], new: &[u8; N], mend: Mend) -> bool {
        let Some(before) = self.read::<2>(check) else {
            return false;
        };
        let udp = matches!(mend, Mend::Transport { udp: true, .. });
        if udp && before == [0, 0] {
            return true;
        }
        let mut after = update(before, old, new);
        if udp && after == [0, 0] {
            after = [0xff, 0xff];
        }
        self.write(check, &after)
    }
}

#[cfg(test)]
pub(crate) mod tests;
