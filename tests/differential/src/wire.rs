//! Frames below IP: sent and read by hand, at the far ends of the node's devices.
use crate::probe::Proto;
use anyhow::{Context, Result};
use socket2::Socket;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};

/// The node's own Ethernet address, on each of its devices, and everybody else's.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// The far end of one device.
pub struct Wire {
    v4: Socket,
    v6: Socket,
}

impl Wire {
    /// Of the device of this number, in the calling thread's network namespace.
    pub fn open(index: u32) -> Result<Self> {
        let open = |ethertype| -> Result<Socket> {
            let socket = agent_network::packet::socket(index, ethertype)?;
            // What nobody reads at once may pile up a little.
            socket.set_recv_buffer_size(1 << 22)?;
            Ok(socket)
        };
        Ok(Self {
            v4: open(IPV4)?,
            v6: open(IPV6)?,
        })
    }

    pub fn sockets(&self) -> [&Socket; 2] {
        [&self.v4, &self.v6]
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let socket = if frame[12..14] == IPV4.to_be_bytes() {
            &self.v4
        } else {
            &self.v6
        };
        socket.send(frame).context("a frame cannot be sent")?;
        Ok(())
    }

    /// The next packet that came here, if there is one that can be read.
    pub fn next(&self) -> Result<Option<Packet>> {
        let mut buf = [0; 2048];
        for mut socket in self.sockets() {
            loop {
                match socket.read(&mut buf) {
                    Ok(n) => {
                        if let Some(packet) = Packet::read(&buf[..n]) {
                            return Ok(Some(packet));
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e).context("frames cannot be read"),
                }
            }
        }
        Ok(None)
    }
}

/// A packet, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub proto: Proto,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// TCP's; 0 for UDP.
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// UDP's first four bytes.
    pub word: u32,
    /// It is quoted by an ICMP error that was sent to its sender.
    pub is_refused: bool,
}

impl Packet {
    fn read(frame: &[u8]) -> Option<Self> {
        let (header, ethertype) = (frame.get(14..)?, frame.get(12..14)?);
        match u16::from_be_bytes([ethertype[0], ethertype[1]]) {
            IPV4 => Self::of_v4(header, false),
            IPV6 => Self::of_v6(header, false),
            _ => None,
        }
    }

    fn of_v4(ip: &[u8], quoted: bool) -> Option<Self> {
        let l4 = ip.get(usize::from(ip.first()? & 15) * 4..)?;
        let address = |at: usize| -> Option<IpAddr> {
            let four: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
            Some(four.into())
        };
        let (from, to) = (address(12)?, address(16)?);
        match *ip.get(9)? {
            1 if l4.first() == Some(&3) && !quoted => Self::of_v4(l4.get(8..)?, true),
            proto => Self::of_l4(proto, from, to, l4, quoted),
        }
    }

    fn of_v6(ip: &[u8], quoted: bool) -> Option<Self> {
        let l4 = ip.get(40..)?;
        let address = |at: usize| -> Option<IpAddr> {
            let sixteen: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
            Some(sixteen.into())
        };
        let (from, to) = (address(8)?, address(24)?);
        match *ip.get(6)? {
            58 if l4.first() == Some(&1) && !quoted => Self::of_v6(l4.get(8..)?, true),
            proto => Self::of_l4(proto, from, to, l4, quoted),
        }
    }

    fn of_l4(proto: u8, from: IpAddr, to: IpAddr, l4: &[u8], is_refused: bool) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(l4.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(l4.get(at..at + 4)?.try_into().ok()?));
        let proto = match proto {
            6 => Proto::Tcp,
            17 => Proto::Udp,
            _ => return None,
        };
        let (from, to) = (SocketAddr::new(from, short(0)?), SocketAddr::new(to, short(2)?));
        let tcp = proto == Proto::Tcp;
        Some(Self {
            proto,
            from,
            to,
            // Errors quote eight bytes at least.
            flags: if tcp { l4.get(13).copied().unwrap_or(0) } else { 0 },
            seq: if tcp { long(4)? } else { 0 },
            ack: if tcp { long(8).unwrap_or(0) } else { 0 },
            word: if tcp { 0 } else { long(8).unwrap_or(0) },
            is_refused,
        })
    }
}

/// The bytes of a TCP segment without data, or of a datagram of four bytes.
pub fn frame(p: &Packet) -> Vec<u8> {
    let proto = match p.proto {
        Proto::Tcp => datapath_abi::Proto::TCP,
        Proto::Udp => datapath_abi::Proto::UDP,
    };
    let mut frame = tests_packets::Frame::new(proto, p.flags, p.from, p.to);
    frame.payload = match p.proto {
        Proto::Tcp => Vec::new(),
        Proto::Udp => p.word.to_be_bytes().to_vec(),
    };
    frame.shape.numbers = (p.seq, p.ack, 0xffff);
    let mut bytes = frame.bytes();
    bytes[..6].copy_from_slice(&NODE_MAC);
    bytes[6..12].copy_from_slice(&FAR_MAC);
    bytes
}
