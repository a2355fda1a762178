//! Frames, written down independently of the code under test.
use crate::shape::{Shape, header};
use crate::sum::{crc32c, fold, pseudo, sum};
use datapath_abi::Proto;
use std::net::{IpAddr, SocketAddr};

/// One frame: TCP, UDP, SCTP, ICMP, or bytes of another protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub proto: Proto,
    /// TCP flags (for SCTP too: what a SYN would be is an INIT), or the type of an ICMP message that is no error.
    pub flags: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    pub shape: Shape,
    /// Of an ICMP error.
    pub about: Option<Box<About>>,
}

/// What an ICMP error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub kind: u8,
    pub code: u8,
    /// The link's MTU, of those that tell it.
    pub mtu: u32,
    pub inner: Frame,
    /// Bytes of it that are quoted.
    pub quote: usize,
}

/// The Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Where it goes, and where it comes from.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

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
            shape: Shape::default(),
            about: None,
        }
    }

    /// An ICMP error about a packet, quoting so many bytes of it.
    pub fn error(kind: (u8, u8), from: IpAddr, to: IpAddr, inner: Self, quote: usize) -> Self {
        let proto = if from.is_ipv4() {
            Proto::ICMP
        } else {
            Proto::ICMPV6
        };
        Self {
            payload: Vec::new(),
            about: Some(Box::new(About {
                kind: kind.0,
                code: kind.1,
                mtu: 0,
                inner,
                quote,
            })),
            ..Self::new(proto, 0, SocketAddr::new(from, 0), SocketAddr::new(to, 0))
        }
    }

    /// Its bytes, with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let whole = self.transport();
        let part = match &self.shape.piece {
            Some(p) => whole[p.from.min(whole.len())..p.to.min(whole.len())].to_vec(),
            None => whole.clone(),
        };
        let more = self.shape.piece.is_some_and(|p| p.to < whole.len());
        let mut all = MACS.to_vec();
        self.shape.tag(&mut all, self.from.is_ipv4());
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ends = [from.octets(), to.octets()].concat();
                all.extend(header::v4(&self.shape, self.proto, &ends, part.len(), more));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ends = [from.octets(), to.octets()].concat();
                all.extend(header::v6(&self.shape, self.proto, &ends, part.len(), more));
            }
            _ => panic!("families do not mix in a frame"),
        }
        all.extend(part);
        all.extend(std::iter::repeat_n(0, self.shape.padding));
        all.truncate(self.shape.cut.unwrap_or(usize::MAX));
        all
    }

    /// Where the transport header starts.
    pub fn transport_at(&self) -> usize {
        ETHERNET + self.shape.header_length(self.from.is_ipv4())
    }

    fn transport(&self) -> Vec<u8> {
        match self.proto {
            Proto::TCP => self.tcp(),
            Proto::UDP => self.udp(),
            Proto::SCTP => self.sctp(),
            Proto::ICMP | Proto::ICMPV6 => self.icmp(),
            _ => self.payload.clone(),
        }
    }

    fn ports(&self) -> Vec<u8> {
        [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat()
    }

    /// The checksum over the pseudo header and these bytes.
    fn check(&self, l4: &[u8]) -> u16 {
        !fold(pseudo(self.from.ip(), self.to.ip(), self.proto, l4.len()) + sum(l4))
    }

    fn tcp(&self) -> Vec<u8> {
        let mut l4 = self.ports();
        let (seq, ack, window) = self.shape.numbers;
        l4.extend(seq.to_be_bytes());
        l4.extend(ack.to_be_bytes());
        l4.extend([0x50, self.flags]);
        l4.extend(window.to_be_bytes());
        l4.extend([0; 4]);
        l4.extend(&self.payload);
        let check = self.check(&l4);
        l4[16..18].copy_from_slice(&check.to_be_bytes());
        l4
    }

    fn udp(&self) -> Vec<u8> {
        let mut l4 = self.ports();
        l4.extend((8 + self.payload.len() as u16).to_be_bytes());
        l4.extend([0, 0]);
        l4.extend(&self.payload);
        let check = match self.check(&l4) {
            _ if self.shape.unchecked => 0,
            0 => u16::MAX,
            check => check,
        };
        l4[6..8].copy_from_slice(&check.to_be_bytes());
        l4
    }

    /// An INIT in place of a SYN, else DATA (RFC 9260, 3.3.1 and 3.3.2).
    fn sctp(&self) -> Vec<u8> {
        let opening = self.flags & super::flag::SYN != 0;
        let mut l4 = self.ports();
        let tag: u32 = if opening { 0 } else { 0x0102_0304 };
        l4.extend(tag.to_be_bytes());
        l4.extend([0; 4]);
        if opening {
            l4.extend([1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 5, 0, 5, 0, 0, 3, 0xe8]);
        } else {
            l4.extend([0, 3]);
            l4.extend((16 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 0, 0]);
            l4.extend(&self.payload);
            l4.resize(l4.len().next_multiple_of(4), 0);
        }
        let crc = crc32c(&l4);
        l4[8..12].copy_from_slice(&crc.to_le_bytes());
        l4
    }

    fn icmp(&self) -> Vec<u8> {
        let mut l4 = match &self.about {
            Some(about) => about.message(),
            None => [&[self.flags, 0, 0, 0, 0, 9, 0, 1], self.payload.as_slice()].concat(),
        };
        let check = if self.proto == Proto::ICMP {
            !fold(sum(&l4))
        } else {
            self.check(&l4)
        };
        l4[2..4].copy_from_slice(&check.to_be_bytes());
        l4
    }

    /// The reset that answers it (RFC 9293, 3.10.7.1), or the error that says that nobody listens (RFC 792, RFC 4443), as seen behind the
    /// Ethernet header.
    pub fn refusal(&self) -> Vec<u8> {
        let plain = Shape {
            id: 0,
            ..Shape::default()
        };
        let mut answer = if self.proto == Proto::TCP {
            let (seq, ack, _) = self.shape.numbers;
            let used = self.payload.len() as u32
                + u32::from(self.flags & super::flag::SYN != 0)
                + u32::from(self.flags & super::flag::FIN != 0);
            let (numbers, flags) = if self.flags & super::flag::ACK != 0 {
                ((ack, 0, 0), super::flag::RST)
            } else {
                ((0, seq + used, 0), super::flag::RST | super::flag::ACK)
            };
            let mut reset = Self::new(self.proto, flags, self.to, self.from);
            reset.payload.clear();
            reset.shape = Shape { numbers, ..plain };
            reset
        } else {
            let (kind, quote) = if self.from.is_ipv4() {
                ((3, 3), 28)
            } else {
                ((1, 4), 48)
            };
            let error = Self::error(kind, self.to.ip(), self.from.ip(), self.clone(), quote);
            Self {
                shape: plain,
                ..error
            }
        };
        answer.shape.padding = 0;
        answer.bytes().split_off(ETHERNET)
    }
}

impl About {
    /// The ICMP message without its checksum.
    fn message(&self) -> Vec<u8> {
        let mut l4 = vec![self.kind, self.code, 0, 0];
        l4.extend(self.mtu.to_be_bytes());
        let inner = self.inner.bytes();
        let quoted = &inner[ETHERNET..];
        l4.extend(&quoted[..self.quote.min(quoted.len())]);
        l4
    }
}

/// Whether the checksums of a frame without options and extension headers are right.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let v4 = frame[12..14] == [8, 0];
    let (l4, proto) = if v4 { (34, frame[23]) } else { (54, frame[20]) };
    let (from, to) = ips(frame);
    let header = !v4 || fold(sum(&frame[14..34])) == 0xffff;
    let cover = if proto == Proto::ICMP.0 {
        0
    } else {
        pseudo(from, to, Proto(proto), frame.len() - l4)
    };
    header && fold(cover + sum(&frame[l4..])) == 0xffff
}

/// The addresses of an untagged frame of at least a whole IP header.
pub fn ips(frame: &[u8]) -> (IpAddr, IpAddr) {
    let four = |at: usize| -> IpAddr {
        <[u8; 4]>::try_from(&frame[at..at + 4])
            .expect("four bytes")
            .into()
    };
    let sixteen = |at: usize| -> IpAddr {
        <[u8; 16]>::try_from(&frame[at..at + 16])
            .expect("sixteen bytes")
            .into()
    };
    if frame[12..14] == [8, 0] {
        (four(26), four(30))
    } else {
        (sixteen(22), sixteen(38))
    }
}
