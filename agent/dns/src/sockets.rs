//! The server's sockets. They may be given to the process that is started, by the convention of systemd
//! (sd_listen_fds(3)): then whatever arrives while there is no agent waits in them.

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// The name that marks our sockets among those given to the process (`FileDescriptorName=` of the socket unit).
pub const NAME: &str = "dns";
/// The first descriptor that is given.
const FIRST: i32 = 3;
/// Room for questions that arrive while nobody reads: some five thousand, as the kernel accounts them.
const WAITING_BYTES: usize = 4 << 20;
/// Connections that wait to be accepted.
const WAITING_CONNECTIONS: i32 = 1024;

/// Why there are no sockets to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// None could be opened.
    #[error("the DNS sockets at {address} cannot be opened: is another DNS server there?")]
    Open {
        /// Where.
        address: SocketAddr,
        /// The kernel's error.
        source: rustix::io::Errno,
    },
    /// One cannot be used.
    #[error("a DNS socket cannot be used")]
    Use(#[source] std::io::Error),
}

/// What the server reads from.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// Opens the two sockets of an address, which need not be the node's yet: a datagram socket and a listening one.
///
/// # Errors
/// [`SocketsError::Open`].
pub fn open(address: SocketAddr) -> Result<[OwnedFd; 2], SocketsError> {
    try_open(address).map_err(|source| SocketsError::Open { address, source })
}

fn try_open(address: SocketAddr) -> rustix::io::Result<[OwnedFd; 2]> {
    let udp = bound(address, SocketType::DGRAM)?;
    if sockopt::set_socket_recv_buffer_size_force(&udp, WAITING_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&udp, WAITING_BYTES)?;
    }
    let tcp = bound(address, SocketType::STREAM)?;
    listen(&tcp, WAITING_CONNECTIONS)?;
    Ok([udp, tcp])
}

fn bound(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of the one before may still be closing.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

/// The sockets of this name that were given to this process, if any were. Ask once: each call makes copies.
#[must_use]
pub fn given(name: &str) -> Vec<OwnedFd> {
    let variable = |key| std::env::var(key).ok();
    let own = getpid();
    let meant = variable("LISTEN_PID").is_none_or(|pid| pid == own.as_raw_pid().to_string());
    let count = variable("LISTEN_FDS").and_then(|n| n.parse::<i32>().ok());
    let (true, Some(count)) = (meant, count) else {
        return Vec::new();
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let ours = (FIRST..FIRST.saturating_add(count)).zip(names.split(':'));
    // Copies of our own descriptors by their numbers: the one way to them that cannot end in a number's misuse.
    let Ok(own) = pidfd_open(own, PidfdFlags::empty()) else {
        return Vec::new();
    };
    let copy = |fd| pidfd_getfd(&own, fd, PidfdGetfdFlags::empty());
    ours.filter(|(_, n)| *n == name)
        .filter_map(|(fd, _)| copy(fd).ok())
        .collect()
}

/// Sockets for these addresses: those among `given` that are bound to them, new ones for the others.
///
/// # Errors
/// [`SocketsError`].
pub fn take(addresses: &[SocketAddr], given: Vec<OwnedFd>) -> Result<Sockets, SocketsError> {
    let mut sockets = Sockets::default();
    for socket in given {
        sockets.sort(socket, addresses)?;
    }
    for &address in addresses {
        if sockets.reads(address) {
            continue;
        }
        for socket in open(address)? {
            sockets.sort(socket, addresses)?;
        }
    }
    Ok(sockets)
}

impl Sockets {
    fn sort(&mut self, socket: OwnedFd, addresses: &[SocketAddr]) -> Result<(), SocketsError> {
        let kind = sockopt::socket_type(&socket).map_err(|e| SocketsError::Use(e.into()))?;
        let udp = UdpSocket::from(socket);
        udp.set_nonblocking(true).map_err(SocketsError::Use)?;
        if !udp.local_addr().is_ok_and(|at| addresses.contains(&at)) {
            return Ok(());
        }
        if kind == SocketType::DGRAM {
            self.udp.push(udp);
        } else {
            self.tcp.push(TcpListener::from(OwnedFd::from(udp)));
        }
        Ok(())
    }

    fn reads(&self, address: SocketAddr) -> bool {
        self.udp
            .iter()
            .any(|s| s.local_addr().is_ok_and(|a| a == address))
    }
}
