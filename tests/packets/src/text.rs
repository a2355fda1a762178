//! Packets as one writes them down: `syn client:4000 > vip:80 with hops=1`, `error/too-big router > node about syn node:given > remote:8080`.
use crate::flag;
use crate::frame::Frame;
use crate::names::Names;
use crate::shape::{Piece, Shape};
use datapath_abi::Proto;
use std::net::SocketAddr;

/// What texts are read against: the family, the protocol that is meant where none is named, and the port `given`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub names: Names,
    pub main: Proto,
    pub given: u16,
}

/// Two ends.
pub(crate) type Ends = (SocketAddr, SocketAddr);

impl Reading {
    /// `KIND FROM > TO [about KIND FROM > TO [having MOD…]] [with MOD…]`.
    pub fn packet(self, text: &str) -> Option<Frame> {
        let (what, mods) = cut(text, " with ");
        let (outer, inner) = cut(what, " about ");
        let (kind, ends) = outer.trim().split_once(' ')?;
        let (from, to) = self.ends(ends)?;
        let mut frame = match (kind.strip_prefix("error/"), inner) {
            (Some(error), Some(inner)) => {
                let (inner, having) = cut(inner, " having ");
                let mut inner = self.packet(inner)?;
                modify(&mut inner, having)?;
                Frame::error(
                    error_of(error, self.names.v4)?,
                    from.ip(),
                    to.ip(),
                    inner,
                    usize::MAX,
                )
            }
            _ => self.plain(kind, from, to)?,
        };
        modify(&mut frame, mods)?;
        Some(frame)
    }

    /// `FROM > TO`, with or without ports.
    pub fn ends(self, text: &str) -> Option<Ends> {
        let (from, to) = text.split_once(" > ")?;
        Some((self.end(from.trim()), self.end(to.trim())))
    }

    /// `NAME`, `NAME:PORT` or `NAME:given`.
    pub fn end(self, text: &str) -> SocketAddr {
        let given = format!(":{}", self.given);
        match text {
            t if t.contains(':') => self.names.at(&t.replace(":given", &given)),
            t => SocketAddr::new(self.names.ip(t), 0),
        }
    }

    fn plain(self, kind: &str, from: SocketAddr, to: SocketAddr) -> Option<Frame> {
        let v4 = self.names.v4;
        let icmp = if v4 { Proto::ICMP } else { Proto::ICMPV6 };
        let (proto, flags) = match kind {
            "echo" => (icmp, if v4 { 8 } else { 128 }),
            "echo-reply" => (icmp, if v4 { 0 } else { 129 }),
            "neighbour" => (icmp, 135),
            _ => match kind.split_once('/') {
                Some(("proto", number)) => (Proto(number.parse().ok()?), 0),
                Some((p, flags)) => (proto(p), tcp_flags(flags)),
                None => (self.main, tcp_flags(kind)),
            },
        };
        let counts = matches!(proto, Proto::TCP | Proto::SCTP | Proto::ICMP | Proto::ICMPV6);
        let frame = Frame::new(proto, if counts { flags } else { 0 }, from, to);
        Some(frame)
    }
}

fn cut<'a>(text: &'a str, at: &str) -> (&'a str, Option<&'a str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Type and code, in either family.
fn error_of(name: &str, v4: bool) -> Option<(u8, u8)> {
    let (four, six) = match name {
        "port" => ((3, 3), (1, 4)),
        "host" => ((3, 1), (1, 3)),
        "too-big" => ((3, 4), (2, 0)),
        "time" => ((11, 0), (3, 0)),
        "parameter" => ((12, 0), (4, 0)),
        _ => return None,
    };
    Some(if v4 { four } else { six })
}

fn modify(frame: &mut Frame, mods: Option<&str>) -> Option<()> {
    for word in mods.unwrap_or("").split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        one(frame, name, value)?;
    }
    Some(())
}

fn one(frame: &mut Frame, name: &str, value: &str) -> Option<()> {
    let shape: &mut Shape = &mut frame.shape;
    match name {
        "hops" => shape.hops = value.parse().ok()?,
        "id" => shape.id = value.parse().ok()?,
        "options" => shape.options = value.parse().ok()?,
        "headers" => shape.headers = value.split('+').map(extension).collect::<Option<_>>()?,
        "part" => {
            let (from, to) = value.split_once('-')?;
            shape.piece = Some(Piece {
                from: from.parse().ok()?,
                to: to.parse().unwrap_or(usize::MAX),
            });
        }
        "unchecked" => shape.unchecked = true,
        "vlan" => shape.vlan = Some(value.parse().ok()?),
        "ethertype" => shape.ethertype = Some(u16::from_str_radix(value, 16).ok()?),
        "cut" => shape.cut = Some(value.parse().ok()?),
        "padding" => shape.padding = value.parse().ok()?,
        "payload" => frame.payload = (0..value.parse::<usize>().ok()?).map(|i| i as u8).collect(),
        "quote" => frame.about.as_mut()?.quote = value.parse().ok()?,
        "mtu" => frame.about.as_mut()?.mtu = value.parse().ok()?,
        _ => return None,
    }
    Some(())
}

fn extension(name: &str) -> Option<u8> {
    Some(match name {
        "hop" => 0,
        "routing" => 43,
        "esp" => 50,
        "auth" => 51,
        "dst" => 60,
        "mobility" => 135,
        _ => return None,
    })
}

/// A protocol that services have.
pub(crate) fn proto(text: &str) -> Proto {
    match text {
        "TCP" => Proto::TCP,
        "UDP" => Proto::UDP,
        "SCTP" => Proto::SCTP,
        other => panic!("{other} is no protocol of the fixtures"),
    }
}

fn tcp_flags(text: &str) -> u8 {
    let one = |f: &str| match f {
        "syn" => flag::SYN,
        "ack" => flag::ACK,
        "fin" => flag::FIN,
        "rst" => flag::RST,
        other => panic!("{other} is no TCP flag"),
    };
    text.split('+').map(one).sum()
}
