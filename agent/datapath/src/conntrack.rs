//! The kernel's connection tracking (ctnetlink), where another proxy's connections live on.
//!
//! What kube-proxy has translated once is translated by the kernel from then on, with or without kube-proxy's rules. So a node
//! that is taken over leaves these connections where they are, and gives none of their ports to others; and a node that is left
//! tells the kernel which ports are still in use by ours.
use crate::netlink::{
    ACK, BUFFER, CREATE, DONE, DUMP, ERROR, REQUEST, attribute, error, find, messages, nest, send,
};
use datapath_abi::{Address, Be16, Proto};
use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

/// Kinds of messages (`linux/netfilter/nfnetlink.h`, `nfnetlink_conntrack.h`).
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `struct nfgenmsg`: family, version, resource.
const FIXED: usize = 4;
/// `CTA_*`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
/// `CTA_TUPLE_*`.
const ADDRESSES: u16 = 1;
const PORTS: u16 = 2;
/// `CTA_PROTOINFO_TCP`, and `CTA_PROTOINFO_TCP_STATE` in it.
const TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `IPS_DST_NAT`.
const DESTINATION_CHANGED: u32 = 1 << 5;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`.
const LASTING: u32 = 1 << 1 | 1 << 2 | 1 << 3;
/// `TCP_CONNTRACK_ESTABLISHED`, and `TCP_CONNTRACK_LAST_ACK`, behind which nothing is said any more.
const ESTABLISHED: u8 = 3;
const LAST_ACK: u8 = 6;
/// How long a port that was kept stays so when nobody gives it back, in seconds.
const KEPT: u32 = 3600;

type End = (Address, Be16);

/// A TCP connection that somebody else translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// Who asks, and what it believes to talk to.
    pub client: End,
    pub front: End,
    /// Who answers, and whom.
    pub endpoint: End,
    pub answered: End,
}

/// The TCP connections of the calling thread's network namespace whose destination is translated.
///
/// # Errors
/// When the kernel has no connection tracking.
pub(crate) fn translated() -> io::Result<Vec<Translated>> {
    let socket = open()?;
    send(socket.as_fd(), GET, REQUEST | DUMP, &[0; FIXED])?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (n, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..n]) {
            match kind {
                DONE => return Ok(found),
                ERROR => return error(body).map(|()| found),
                _ => found.extend(body.get(FIXED..).and_then(read)),
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::NETLINK, SocketType::RAW, Some(NETFILTER))?)
}

/// The connection of one entry, if it is translated and goes on.
fn read(entry: &[u8]) -> Option<Translated> {
    let status = u32::from_be_bytes(find(entry, STATUS)?.try_into().ok()?);
    let state = find(find(find(entry, PROTOCOL_INFO)?, TCP)?, TCP_STATE)?.first()?;
    if status & DESTINATION_CHANGED == 0 || *state > LAST_ACK {
        return None;
    }
    let (client, front) = tuple(find(entry, ORIGINAL)?)?;
    let (endpoint, answered) = tuple(find(entry, REPLY)?)?;
    Some(Translated {
        client,
        front,
        endpoint,
        answered,
    })
}

/// Source and destination.
fn tuple(of: &[u8]) -> Option<(End, End)> {
    let (addresses, ports) = (find(of, ADDRESSES)?, find(of, PORTS)?);
    let port = |kind| {
        find(ports, kind)?
            .try_into()
            .ok()
            .map(|p| Be16::new(u16::from_be_bytes(p)))
    };
    let at = |v4, v6| address(find(addresses, v4).or_else(|| find(addresses, v6))?);
    Some(((at(1, 3)?, port(2)?), (at(2, 4)?, port(3)?)))
}

fn address(bytes: &[u8]) -> Option<Address> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(ip.into())
}

/// Keeps a port of this node from being given to somebody else's connections to the same endpoint; false where it is already in use
/// there.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn keep_port(own: End, endpoint: End) -> io::Result<bool> {
    let state = nest(
        PROTOCOL_INFO,
        &[nest(TCP, &[attribute(TCP_STATE, &[ESTABLISHED])])],
    );
    let parts = [
        write_tuple(ORIGINAL, own, endpoint),
        write_tuple(REPLY, endpoint, own),
        attribute(STATUS, &LASTING.to_be_bytes()),
        attribute(TIMEOUT, &KEPT.to_be_bytes()),
        state,
    ];
    // NLM_F_EXCL.
    match ask(NEW, CREATE | 0x200, own, &parts) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    }
}

/// Gives back what [`keep_port`] kept; one that is gone already is no error.
pub(crate) fn give_back(own: End, endpoint: End) -> io::Result<()> {
    match ask(DELETE, 0, own, &[write_tuple(ORIGINAL, own, endpoint)]) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn ask(kind: u16, flags: u16, of: End, parts: &[Vec<u8>]) -> io::Result<()> {
    let family = if of.0.is_v4() { 2 } else { 10 };
    let body = [&[family, 0, 0, 0][..], &parts.concat()].concat();
    request(kind, flags, &body)
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket = open()?;
    send(socket.as_fd(), kind, REQUEST | ACK | flags, body)?;
    answer(&socket)
}

/// The result of a request, or of a batch whose last message alone wants one.
pub(crate) fn answer(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let (n, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    let mut results = messages(&buffer[..n]).filter(|(kind, _)| *kind == ERROR);
    results.try_for_each(|(_, body)| error(body))
}

fn write_tuple(kind: u16, (src, sport): End, (dst, dport): End) -> Vec<u8> {
    let ports = [
        attribute(1, &[Proto::TCP.0]),
        attribute(2, &sport.get().to_be_bytes()),
        attribute(3, &dport.get().to_be_bytes()),
    ];
    let addresses = match (src.to_ip(), dst.to_ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4(src, dst),
        (src, dst) => v6(six(src), six(dst)),
    };
    nest(kind, &[nest(ADDRESSES, &addresses), nest(PORTS, &ports)])
}

fn v4(src: Ipv4Addr, dst: Ipv4Addr) -> [Vec<u8>; 2] {
    [attribute(1, &src.octets()), attribute(2, &dst.octets())]
}

fn v6(src: Ipv6Addr, dst: Ipv6Addr) -> [Vec<u8>; 2] {
    [attribute(3, &src.octets()), attribute(4, &dst.octets())]
}

fn six(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(ip: &str, port: u16) -> End {
        (ip.parse::<IpAddr>().unwrap().into(), Be16::new(port))
    }

    fn entry(status: u32, state: u8) -> Vec<u8> {
        let (client, front) = (end("192.0.2.9", 5555), end("192.0.2.1", 30080));
        let (endpoint, own) = (end("10.0.9.1", 8080), end("192.0.2.1", 2000));
        [
            write_tuple(ORIGINAL, client, front),
            write_tuple(REPLY, endpoint, own),
            attribute(STATUS, &status.to_be_bytes()),
            nest(PROTOCOL_INFO, &[nest(TCP, &[attribute(TCP_STATE, &[state])])]),
        ]
        .concat()
    }

    #[test]
    fn a_connection_that_is_translated_is_read_with_all_its_ends() {
        let read = read(&entry(DESTINATION_CHANGED | LASTING, ESTABLISHED)).unwrap();
        assert_eq!(read.client, end("192.0.2.9", 5555));
        assert_eq!(read.front, end("192.0.2.1", 30080));
        assert_eq!(read.endpoint, end("10.0.9.1", 8080));
        assert_eq!(read.answered, end("192.0.2.1", 2000));
    }

    #[test]
    fn connections_that_are_over_or_are_nobodys_do_not_count() {
        assert_eq!(read(&entry(LASTING, ESTABLISHED)), None);
        assert_eq!(read(&entry(DESTINATION_CHANGED, LAST_ACK + 1)), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn addresses_of_both_families_are_written_as_they_are_read() {
        for (src, dst) in [("192.0.2.9", "10.0.9.1"), ("2001:db8::9", "fd00::1")] {
            let bytes = write_tuple(ORIGINAL, end(src, 1), end(dst, 2));
            let read = tuple(find(&bytes, ORIGINAL).unwrap());
            assert_eq!(read, Some((end(src, 1), end(dst, 2))));
        }
    }
}
