//! Changing one end of a packet: address and port, with the checksums that cover them.
use crate::checksum::update;
use crate::packet::{ETHERNET, Parsed};
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
        }
    }

    /// Offset of the address that changes.
    #[inline(always)]
    pub fn addr_at(&self) -> u32 {
        match (self.old_addr.is_v4(), self.source) {
            (true, true) => ETHERNET + 12,
            (true, false) => ETHERNET + 16,
            (false, true) => ETHERNET + 8,
            (false, false) => ETHERNET + 24,
        }
    }

    /// Offset of the port that changes.
    #[inline(always)]
    pub fn port_at(&self) -> u32 {
        if self.source { self.l4 } else { self.l4 + 2 }
    }

    /// Offset of the transport checksum.
    #[inline(always)]
    pub fn check_at(&self) -> u32 {
        if self.proto == Proto::TCP {
            self.l4 + 16
        } else {
            self.l4 + 6
        }
    }
}

/// Applies a rewrite to bytes. Returns false, and changes nothing, if the packet is too short for it or the families differ.
#[must_use]
pub fn apply(bytes: &mut [u8], r: &Rewrite) -> bool {
    if r.old_addr.is_v4() != r.new_addr.is_v4() || bytes.len() < r.check_at() as usize + 2 {
        return false;
    }
    let check = get(bytes, r.check_at());
    let (old_port, new_port) = (r.old_port.get().to_be_bytes(), r.new_port.get().to_be_bytes());
    let ports = update(check, &old_port, &new_port);
    let new_check = if r.old_addr.is_v4() {
        let (old, new) = (
            r.old_addr.v4_word().to_ne_bytes(),
            r.new_addr.v4_word().to_ne_bytes(),
        );
        let header = update(get(bytes, IPV4_CHECK), &old, &new);
        put(bytes, IPV4_CHECK, &header);
        put(bytes, r.addr_at(), &new);
        update(ports, &old, &new)
    } else {
        put(bytes, r.addr_at(), &r.new_addr.v6_bytes());
        update(ports, &r.old_addr.v6_bytes(), &r.new_addr.v6_bytes())
    };
    put(bytes, r.port_at(), &new_port);
    put_check(bytes, r, check, new_check);
    true
}

/// A UDP checksum of zero says that there is none; one that comes out as zero is sent as all ones (RFC 768).
fn put_check(bytes: &mut [u8], r: &Rewrite, old: [u8; 2], new: [u8; 2]) {
    let udp = r.proto == Proto::UDP;
    if udp && old == [0, 0] {
        return;
    }
    let new = if udp && new == [0, 0] { [0xff, 0xff] } else { new };
    put(bytes, r.check_at(), &new);
}

fn get(bytes: &[u8], at: u32) -> [u8; 2] {
    let at = at as usize;
    [bytes[at], bytes[at + 1]]
}

fn put(bytes: &mut [u8], at: u32, what: &[u8]) {
    bytes[at as usize..at as usize + what.len()].copy_from_slice(what);
}
