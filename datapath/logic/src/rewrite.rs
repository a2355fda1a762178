//! Changing one end of a packet: address and port, with the checksums that cover them.
use crate::checksum::update;
use crate::packet::{ETHERNET, Mend, PacketMut, Parsed, Quoted};
use datapath_abi::{Address, Be16, Proto};

/// One end of a packet changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite {
    /// The source (of a reply) or the destination (of a request).
    pub source: bool,
    pub old_addr: Address,
    pub new_addr: Address,
    pub old_port: Be16,
    pub new_port: Be16,
    pub proto: Proto,
    /// Offset of the transport header.
    pub l4: u32,
    pub part: Part,
}

/// What of a packet changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Address and port.
    Whole,
    /// The address only: a later fragment has no ports and no checksum.
    Address,
    /// The address, and in the packet that an ICMP error quotes the opposite end with this address; IP and transport header of
    /// the quote are at these offsets.
    Quote {
        old: Address,
        proto: Proto,
        at: u32,
        l4: u32,
    },
}

/// Offset of the checksum in an IPv4 header.
pub const IPV4_CHECK: u32 = ETHERNET + 10;

impl Rewrite {
    /// The destination becomes `addr:port`.
    #[inline(always)]
    pub fn destination(p: &Parsed, addr: Address, port: Be16) -> Self {
        Self {
            source: false,
            old_addr: p.dst,
            new_addr: addr,
            old_port: p.dport,
            new_port: port,
            proto: p.proto,
            l4: p.l4,
            part: part(p),
        }
    }

    /// The source becomes `addr:port`.
    #[inline(always)]
    pub fn source(p: &Parsed, addr: Address, port: Be16) -> Self {
        Self {
            source: true,
            old_addr: p.src,
            new_addr: addr,
            old_port: p.sport,
            new_port: port,
            proto: p.proto,
            l4: p.l4,
            part: part(p),
        }
    }

    /// An ICMP error's source or destination becomes `addr`, and the opposite end of its quote `addr:port`: it is sent to where the quoted packet
    /// came from (RFC 5508, 4.2).
    #[inline(always)]
    pub fn quote(p: &Parsed, q: &Quoted, source: bool, addr: Address, port: Be16) -> Self {
        Self {
            source,
            old_addr: if source { p.src } else { p.dst },
            new_addr: addr,
            old_port: if source { q.dport } else { q.sport },
            new_port: port,
            proto: p.proto,
            l4: p.l4,
            part: Part::Quote {
                old: if source { q.dst } else { q.src },
                proto: q.proto,
                at: q.at,
                l4: q.l4,
            },
        }
    }

    /// Offset of the address that changes.
    #[inline(always)]
    pub fn addr_at(&self) -> u32 {
        ETHERNET + addr_offset(self.old_addr.is_v4(), self.source)
    }

    /// Offset of the port that changes.
    #[inline(always)]
    pub fn port_at(&self) -> u32 {
        if self.source { self.l4 } else { self.l4 + 2 }
    }
}

#[inline(always)]
fn part(p: &Parsed) -> Part {
    if p.later_fragment {
        Part::Address
    } else {
        Part::Whole
    }
}

#[inline(always)]
fn addr_offset(v4: bool, source: bool) -> u32 {
    match (v4, source) {
        (true, true) => 12,
        (true, false) => 16,
        (false, true) => 8,
        (false, false) => 24,
    }
}

/// Offset of the Internet checksum in a transport header; `None` for a protocol without.
#[inline(always)]
fn check_offset(proto: Proto) -> Option<u32> {
    match proto {
        Proto::TCP => Some(16),
        Proto::UDP => Some(6),
        Proto::ICMP | Proto::ICMPV6 => Some(2),
        _ => None,
    }
}

/// Applies a rewrite. Returns false if the packet is too short for it or the families differ; the packet may then be changed in
/// part, and is to be dropped.
#[must_use]
#[inline(always)]
pub fn apply<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite) -> bool {
    if r.old_addr.is_v4() != r.new_addr.is_v4() {
        return false;
    }
    match r.part {
        Part::Whole => ends(packet, r),
        Part::Address => address(packet, r, None),
        Part::Quote { old, proto, at, l4 } => quote(packet, r, &Inner { old, proto, at, l4 }),
    }
}

#[inline(always)]
fn ends<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite) -> bool {
    let check = check_offset(r.proto).map(|o| r.l4 + o);
    if !address(packet, r, check) {
        return false;
    }
    if r.old_port == r.new_port {
        return true;
    }
    let (old, new) = (r.old_port.raw().to_ne_bytes(), r.new_port.raw().to_ne_bytes());
    let mended = match check {
        Some(check) => packet.mend(check, &old, &new, transport(r.proto, false)),
        None => packet.mend_sctp(r),
    };
    mended && packet.write(r.port_at(), &new)
}

#[inline(always)]
fn transport(proto: Proto, pseudo: bool) -> Mend {
    Mend::Transport {
        pseudo,
        udp: proto.0 == Proto::UDP.0,
    }
}

/// Changes the address, with the checksums that cover it: the IPv4 header's, and the one at `check`. ICMPv4's does not.
#[inline(always)]
fn address<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite, check: Option<u32>) -> bool {
    let mend = transport(r.proto, true);
    if r.old_addr.is_v4() {
        let (old, new) = (
            r.old_addr.v4_word().to_ne_bytes(),
            r.new_addr.v4_word().to_ne_bytes(),
        );
        let covered = match check {
            Some(check) if r.proto.0 != Proto::ICMP.0 => packet.mend(check, &old, &new, mend),
            _ => true,
        };
        covered && packet.mend(IPV4_CHECK, &old, &new, Mend::Header) && packet.write(r.addr_at(), &new)
    } else {
        let (old, new) = (r.old_addr.v6_bytes(), r.new_addr.v6_bytes());
        let covered = match check {
            Some(check) => packet.mend(check, &old, &new, mend),
            None => true,
        };
        covered && packet.write(r.addr_at(), &new)
    }
}

/// The end of a quoted packet that changes.
struct Inner {
    old: Address,
    proto: Proto,
    at: u32,
    l4: u32,
}

/// Changes an ICMP error and its quote. Every change inside the quote is one of what the ICMP checksum covers.
///
/// A function of its own: a kernel program has 512 bytes of stack, and what each part needs is needed in turns.
#[inline(never)]
fn quote<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite, inner: &Inner) -> bool {
    let check = r.l4 + 2;
    let (old, new) = (r.old_port.raw().to_ne_bytes(), r.new_port.raw().to_ne_bytes());
    let port_at = if r.source { inner.l4 + 2 } else { inner.l4 };
    quoted_address(packet, r, inner, check)
        && quoted_check(packet, r, inner, check)
        && covered(packet, check, port_at, &old, &new)
        && address(packet, r, Some(check))
}

/// Writes bytes that the ICMP checksum covers.
#[inline(always)]
fn covered<P: PacketMut + ?Sized, const N: usize>(
    packet: &mut P,
    check: u32,
    at: u32,
    old: &[u8; N],
    new: &[u8; N],
) -> bool {
    let mend = Mend::Transport {
        pseudo: false,
        udp: false,
    };
    packet.mend(check, old, new, mend) && packet.write(at, new)
}

#[inline(always)]
fn quoted_address<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite, inner: &Inner, check: u32) -> bool {
    let at = inner.at + addr_offset(inner.old.is_v4(), !r.source);
    if !inner.old.is_v4() {
        return covered(packet, check, at, &inner.old.v6_bytes(), &r.new_addr.v6_bytes());
    }
    let (old, new) = (
        inner.old.v4_word().to_ne_bytes(),
        r.new_addr.v4_word().to_ne_bytes(),
    );
    let Some(header) = packet.read::<2>(inner.at + 10) else {
        return false;
    };
    let mended = update(header, &old, &new);
    covered(packet, check, inner.at + 10, &header, &mended) && covered(packet, check, at, &old, &new)
}

/// The transport checksum of the quote, if it is quoted and there is one.
#[inline(always)]
fn quoted_check<P: PacketMut + ?Sized>(packet: &mut P, r: &Rewrite, inner: &Inner, check: u32) -> bool {
    let Some(offset) = check_offset(inner.proto) else {
        return true;
    };
    let Some(before) = packet.read::<2>(inner.l4 + offset) else {
        return true;
    };
    if inner.proto.0 == Proto::UDP.0 && before == [0, 0] {
        return true;
    }
    let (old, new) = (r.old_port.raw().to_ne_bytes(), r.new_port.raw().to_ne_bytes());
    let ports = update(before, &old, &new);
    let after = update(ports, &inner.old.v6_bytes(), &r.new_addr.v6_bytes());
    covered(packet, check, inner.l4 + offset, &before, &after)
}
