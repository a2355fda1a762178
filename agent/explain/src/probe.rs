//! The first packet of a connection, as bytes: what the logic and the loaded programs are given.
use datapath_abi::Proto;
use datapath_logic::packet::tcp::{ACK, SYN};
use std::net::{IpAddr, SocketAddr};

/// A port from which clients usually ask.
pub const CLIENT_PORT: u16 = 40_000;
/// Hops that are left to the packet.
const HOPS: u8 = 64;

/// The first packet of a connection. Both addresses have to be of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub proto: Proto,
}

impl Probe {
    /// An Ethernet frame with a TCP SYN, an empty UDP datagram, an SCTP INIT chunk or an ICMP echo request. The transport checksum
    /// is left out: nothing on the way verifies it, and the frame leaves no machine.
    pub fn frame(&self) -> Vec<u8> {
        frame(self.src.ip(), self.dst.ip(), self.proto, &self.transport(SYN))
    }

    /// The endpoint's answer to it, as the endpoint sends it.
    pub fn answer(&self) -> Vec<u8> {
        let back = Self {
            src: self.dst,
            dst: self.src,
            proto: self.proto,
        };
        frame(
            back.src.ip(),
            back.dst.ip(),
            back.proto,
            &back.transport(SYN | ACK),
        )
    }

    fn transport(&self, flags: u8) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        if matches!(self.proto, Proto::ICMP | Proto::ICMPV6) {
            // RFC 792 and RFC 4443: echo request, identification 1, sequence number 1.
            let kind = if self.proto == Proto::ICMP { 8 } else { 128 };
            return vec![kind, 0, 0, 0, 0, 1, 0, 1];
        }
        bytes.extend(self.src.port().to_be_bytes());
        bytes.extend(self.dst.port().to_be_bytes());
        match self.proto {
            // RFC 9293: sequence and acknowledgement number 0, header of five words, the largest window.
            Proto::TCP => bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]),
            // RFC 9260: verification tag 0, checksum, INIT of 20 bytes.
            Proto::SCTP => {
                bytes.extend([0; 8]);
                bytes.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            }
            // RFC 768: length 8, no checksum.
            _ => bytes.extend([0, 8, 0, 0]),
        }
        bytes
    }
}

fn frame(src: IpAddr, dst: IpAddr, proto: Proto, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend([0x08, 0x00]);
            let mut header = [0_u8; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + transport.len() as u16).to_be_bytes());
            header[6] = 0x40;
            (header[8], header[9]) = (HOPS, proto.0);
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check);
            bytes.extend(header);
        }
        (src, dst) => {
            bytes.extend([0x86, 0xdd]);
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend((transport.len() as u16).to_be_bytes());
            bytes.extend([proto.0, HOPS]);
            bytes.extend(six(src));
            bytes.extend(six(dst));
        }
    }
    bytes.extend(transport);
    bytes
}

fn six(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn checksum(header: &[u8; 20]) -> [u8; 2] {
    let words = header
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_logic::packet::parse;

    #[test]
    fn a_frame_is_read_back_as_what_was_asked() {
        for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
            for (src, dst) in [
                ("203.0.113.7:4000", "192.0.2.1:80"),
                ("[2001:db8::7]:4000", "[fd00:10:96::1]:80"),
            ] {
                let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
                let probe = Probe { src, dst, proto };
                for (bytes, from, to) in [(probe.frame(), src, dst), (probe.answer(), dst, src)] {
                    let p = parse(&bytes[..]).unwrap();
                    assert_eq!(SocketAddr::new(p.src.to_ip(), p.sport.get()), from);
                    assert_eq!(SocketAddr::new(p.dst.to_ip(), p.dport.get()), to);
                    assert_eq!(p.proto, proto);
                }
            }
        }
    }

    #[test]
    fn a_question_about_icmp_is_an_echo_request() {
        for (src, dst, proto, kind) in [
            ("203.0.113.7:0", "192.0.2.1:0", Proto::ICMP, 8),
            ("[2001:db8::7]:0", "[fd00::1]:0", Proto::ICMPV6, 128),
        ] {
            let probe = Probe {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                proto,
            };
            let p = parse(&probe.frame()[..]).unwrap();
            assert_eq!((p.proto, p.icmp_type, p.is_error()), (proto, kind, false));
        }
    }
}
