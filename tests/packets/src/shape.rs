//! What may be unusual about a frame.

/// How a frame differs from the plainest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// TTL, or hop limit.
    pub hops: u8,
    /// Identification of an IPv4 packet, and of fragments.
    pub id: u16,
    /// Bytes of IPv4 options, a multiple of four.
    pub options: usize,
    /// IPv6 extension headers, by protocol number, before a fragment header.
    pub headers: Vec<u8>,
    /// The part of the datagram that this fragment is; `None` for a whole one.
    pub piece: Option<Piece>,
    /// UDP without a checksum.
    pub unchecked: bool,
    /// Sequence and acknowledgement number and window, of TCP.
    pub numbers: (u32, u32, u16),
    /// A VLAN tag of this number.
    pub vlan: Option<u16>,
    /// In place of the right one.
    pub ethertype: Option<u16>,
    /// Only so many bytes of it.
    pub cut: Option<usize>,
    /// Bytes behind the packet, as on an Ethernet that wants sixty at least.
    pub padding: usize,
}

/// From which byte to which behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub from: usize,
    pub to: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hops: 64,
            id: 7,
            options: 0,
            headers: Vec::new(),
            piece: None,
            unchecked: false,
            numbers: (1000, 2000, 0xffff),
            vlan: None,
            ethertype: None,
            cut: None,
            padding: 0,
        }
    }
}

impl Shape {
    /// Adds what follows the Ethernet addresses.
    pub(crate) fn tag(&self, all: &mut Vec<u8>, v4: bool) {
        if let Some(vlan) = self.vlan {
            all.extend([0x81, 0]);
            all.extend(vlan.to_be_bytes());
        }
        let usual = if v4 { 0x0800_u16 } else { 0x86dd };
        all.extend(self.ethertype.unwrap_or(usual).to_be_bytes());
    }

    /// Bytes of the IP header with what belongs to it.
    pub(crate) fn header_length(&self, v4: bool) -> usize {
        if v4 {
            return 20 + self.options;
        }
        let chain: usize = self.headers.iter().map(|h| header::extension(*h, 0).len()).sum();
        40 + chain + if self.piece.is_some() { 8 } else { 0 }
    }
}

/// The bytes of IP headers.
pub(crate) mod header {
    use super::Shape;
    use crate::sum::{fold, sum};
    use datapath_abi::Proto;

    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;

    /// IPv4 (RFC 791); `more` fragments follow.
    pub fn v4(shape: &Shape, proto: Proto, ends: &[u8], payload: usize, more: bool) -> Vec<u8> {
        let length = 20 + shape.options;
        let mut ip = vec![0x40 | (length / 4) as u8, 0];
        ip.extend(((length + payload) as u16).to_be_bytes());
        ip.extend(shape.id.to_be_bytes());
        let place = match shape.piece {
            Some(p) => (p.from / 8) as u16 | u16::from(more) << 13,
            None => 0x4000,
        };
        ip.extend(place.to_be_bytes());
        ip.extend([shape.hops, proto.0, 0, 0]);
        ip.extend(ends);
        // No operation, again and again.
        ip.extend(std::iter::repeat_n(1, shape.options));
        let check = !fold(sum(&ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip
    }

    /// IPv6 with its extension headers (RFC 8200).
    pub fn v6(shape: &Shape, proto: Proto, ends: &[u8], payload: usize, more: bool) -> Vec<u8> {
        let mut kinds = shape.headers.clone();
        if shape.piece.is_some() {
            kinds.push(FRAGMENT);
        }
        let mut chain = Vec::new();
        for (i, kind) in kinds.iter().enumerate() {
            let next = kinds.get(i + 1).copied().unwrap_or(proto.0);
            let mut one = extension(*kind, next);
            if let (FRAGMENT, Some(p)) = (*kind, shape.piece) {
                one[2..4].copy_from_slice(&(p.from as u16 & !7 | u16::from(more)).to_be_bytes());
                one[6..8].copy_from_slice(&shape.id.to_be_bytes());
            }
            chain.extend(one);
        }
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(((chain.len() + payload) as u16).to_be_bytes());
        ip.extend([kinds.first().copied().unwrap_or(proto.0), shape.hops]);
        ip.extend(ends);
        ip.extend(chain);
        ip
    }

    /// One extension header. Options are padding, routing has no segment left, authentication (RFC 4302) has twelve bytes of value.
    pub fn extension(kind: u8, next: u8) -> Vec<u8> {
        match kind {
            AUTHENTICATION => {
                let mut all = vec![next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
                all.extend([0xaa; 12]);
                all
            }
            FRAGMENT => vec![next, 0, 0, 0, 0, 0, 0, 7],
            43 => vec![next, 0, 4, 0, 0, 0, 0, 0],
            // Destination options are longer than one unit, to see that lengths count.
            60 => vec![next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        }
    }
}
