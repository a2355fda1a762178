use datapath_abi::Proto;
use std::net::{IpAddr, SocketAddr};

/// One frame of TCP or UDP, written down independently of the code under test.
#[derive(Clone, Debug)]
pub struct Frame {
    pub proto: Proto,
    pub flags: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame with a few bytes of payload, but for a SYN, which has none.
    pub fn new(proto: Proto, flags: u8, from: SocketAddr, to: SocketAddr) -> Self {
        let payload = if flags & super::flag::SYN != 0 {
            Vec::new()
        } else {
            b"seven b".to_vec()
        };
        Self {
            proto,
            flags,
            from,
            to,
            payload,
        }
    }

    /// Its bytes, with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let l4 = self.transport();
        let mut all = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                all.extend([8, 0]);
                let mut ip = vec![0x45, 0];
                ip.extend((20 + l4.len() as u16).to_be_bytes());
                ip.extend([0, 7, 0x40, 0, 64, self.proto.0, 0, 0]);
                ip.extend(from.octets());
                ip.extend(to.octets());
                let check = !fold(sum(&ip));
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                all.extend(ip);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                all.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                all.extend((l4.len() as u16).to_be_bytes());
                all.extend([self.proto.0, 64]);
                all.extend(from.octets());
                all.extend(to.octets());
            }
            _ => panic!("families do not mix in a frame"),
        }
        all.extend(l4);
        all
    }

    fn transport(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.from.port().to_be_bytes());
        l4.extend(self.to.port().to_be_bytes());
        let check = if self.proto == Proto::TCP {
            l4.extend(1000_u32.to_be_bytes());
            l4.extend(2000_u32.to_be_bytes());
            l4.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            l4.extend((8 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        };
        l4.extend(&self.payload);
        let total = pseudo(self.from.ip(), self.to.ip(), self.proto, l4.len()) + sum(&l4);
        l4[check..check + 2].copy_from_slice(&(!fold(total)).to_be_bytes());
        l4
    }
}

/// Whether the checksums of a frame without options and extension headers are right.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let v4 = frame[12..14] == [8, 0];
    let (l4, proto) = if v4 { (34, frame[23]) } else { (54, frame[20]) };
    let ip = |at: usize| -> IpAddr {
        if v4 {
            <[u8; 4]>::try_from(&frame[at..at + 4])
                .expect("four bytes")
                .into()
        } else {
            <[u8; 16]>::try_from(&frame[at..at + 16])
                .expect("sixteen bytes")
                .into()
        }
    };
    let (from, to) = if v4 { (ip(26), ip(30)) } else { (ip(22), ip(38)) };
    let header = !v4 || fold(sum(&frame[14..34])) == 0xffff;
    let cover = if proto == Proto::ICMP.0 {
        0
    } else {
        pseudo(from, to, Proto(proto), frame.len() - l4)
    };
    header && fold(cover + sum(&frame[l4..])) == 0xffff
}

fn pseudo(from: IpAddr, to: IpAddr, proto: Proto, len: usize) -> u32 {
    let of = |ip| match ip {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    of(from) + of(to) + u32::from(proto.0) + len as u32
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
