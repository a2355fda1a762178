//! The first packet of a connection, as bytes: what the logic and the loaded programs are given.
use datapath_abi::Proto;
use std::net::IpAddr;

/// A port from which clients usually ask.
pub const CLIENT_PORT: u16 = 40_000;
/// Hops that are left to the packet.
const HOPS: u8 = 64;

/// An Ethernet frame with a TCP SYN, an empty UDP datagram or an SCTP INIT chunk, from [`CLIENT_PORT`]. The transport checksum
/// is left out: nothing on the way verifies it, and the frame leaves no machine. Both addresses have to be of one family.
pub fn frame(src: IpAddr, dst: IpAddr, port: u16, proto: Proto) -> Vec<u8> {
    let transport = transport(port, proto);
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

fn transport(port: u16, proto: Proto) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(CLIENT_PORT.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    match proto {
        // RFC 9293: sequence number 0, header of five words, SYN, the largest window.
        Proto::TCP => bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
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
            for (src, dst) in [("203.0.113.7", "192.0.2.1"), ("2001:db8::7", "fd00:10:96::1")] {
                let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
                let p = parse(&frame(src, dst, 80, proto)[..]).unwrap();
                assert_eq!((p.src.to_ip(), p.dst.to_ip(), p.proto), (src, dst, proto));
                assert_eq!((p.sport.get(), p.dport.get()), (CLIENT_PORT, 80));
            }
        }
    }
}
