//! Ending connected UDP sockets whose endpoint is gone.
//!
//! Such a socket was connected by a hook, so its peer is the endpoint for good: without help its program would wait for answers
//! that cannot come. The hooks leave each socket's cookie in the table of replies; the kernel lists the sockets of a network
//! namespace with their cookies (`sock_diag(7)`) and ends the ones that are named (SOCK_DESTROY). The program sees
//! ECONNABORTED, and sockets that were connected to the pod itself are left alone. (The sockets' own records would name them
//! more directly, but the kernel tells those of TCP sockets only.)
use crate::netlink::{ACK, BUFFER, DONE, DUMP, ERROR, REQUEST, error, messages, send};
use datapath_abi::{Address, Be16, Proto};
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const ANY_STATE: u32 = u32::MAX;

/// `struct inet_diag_sockid`; ports and addresses in network order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SocketId {
    sport: u16,
    dport: u16,
    src: [u32; 4],
    dst: [u32; 4],
    device: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    zero: u8,
    states: u32,
    id: SocketId,
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Answer {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

/// Sockets by their cookies, and the endpoints that they are connected to.
pub(crate) type Sockets = HashSet<(u64, Address, Be16)>;

/// Ends these sockets among those of all processes below `cgroup`. Returns how many were still there.
pub(crate) fn end(cgroup: &Path, stale: &Sockets) -> io::Result<usize> {
    let mut count = 0;
    for namespace in namespaces(cgroup)? {
        // A namespace may end between the listing and this.
        match end_within(&namespace, stale) {
            Ok(n) => count += n,
            Err(error) => tracing::debug!(%error, ?namespace, "sockets of a network namespace not looked at"),
        }
    }
    Ok(count)
}

/// One process for each network namespace that processes below a cgroup are in.
fn namespaces(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![cgroup.to_owned()];
    while let Some(folder) = folders.pop() {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let path = Path::new("/proc").join(pid).join("ns/net");
            if let Ok(meta) = fs::metadata(&path) {
                found.entry(meta.st_ino()).or_insert(path);
            }
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.map(|e| e.path()).filter(|p| p.is_dir()));
    }
    Ok(found.into_values().collect())
}

fn end_within(namespace: &Path, stale: &Sockets) -> io::Result<usize> {
    let socket = open_within(File::open(namespace)?)?;
    let mut count = 0;
    for family in [AF_INET, AF_INET6] {
        for id in list(socket.as_fd(), family, stale)? {
            count += usize::from(destroy(socket.as_fd(), family, id)?);
        }
    }
    Ok(count)
}

/// A netlink socket belongs to the namespace in which it is opened: a thread goes there, opens one, and ends.
fn open_within(namespace: File) -> io::Result<OwnedFd> {
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(socket(AddressFamily::NETLINK, SocketType::RAW, Some(SOCK_DIAG))?)
    });
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// The sockets of one family that are stale.
fn list(socket: BorrowedFd<'_>, family: u8, stale: &Sockets) -> io::Result<Vec<SocketId>> {
    let body = request(family, ANY_STATE, SocketId::new_zeroed());
    send(socket, SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, body.as_bytes())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (n, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..n]) {
            match kind {
                DONE => return Ok(found),
                ERROR => return error(body).map(|()| found),
                _ => found.extend(matching(body, stale)),
            }
        }
    }
}

/// The socket of one answer, if it is stale. Its peer has to be the endpoint still: an unconnected socket has none, and its
/// next datagram is decided anew; another may have connected elsewhere since.
fn matching(body: &[u8], stale: &Sockets) -> Option<SocketId> {
    let (answer, _) = Answer::read_from_prefix(body).ok()?;
    let [low, high] = answer.id.cookie;
    let peer = match answer.family {
        AF_INET => Address::from_v4_word(answer.id.dst[0]),
        _ => Address::from_words(answer.id.dst),
    };
    let key = (
        u64::from(high) << 32 | u64::from(low),
        peer,
        Be16::from_raw(answer.id.dport),
    );
    stale.contains(&key).then_some(answer.id)
}

/// Ends one socket; false if it is gone already.
fn destroy(socket: BorrowedFd<'_>, family: u8, id: SocketId) -> io::Result<bool> {
    let body = request(family, ANY_STATE, id);
    send(socket, SOCK_DESTROY, REQUEST | ACK, body.as_bytes())?;
    let mut buffer = vec![0; BUFFER];
    let (n, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    for (kind, body) in messages(&buffer[..n]) {
        if kind == ERROR {
            return match error(body) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(e) => Err(e),
            };
        }
    }
    Ok(false)
}

fn request(family: u8, states: u32, id: SocketId) -> Request {
    Request {
        family,
        protocol: Proto::UDP.0,
        extensions: 0,
        zero: 0,
        states,
        id,
    }
}
