//! Sockets below IP: the one place of this crate with what the compiler cannot check.
#![allow(unsafe_code)]
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::io;
use tokio::io::unix::AsyncFd;

/// A socket that gets and sends whole Ethernet frames of one type on one device (`packet(7)`).
///
/// # Errors
/// The kernel's refusal: without `CAP_NET_RAW`, or when the device is gone.
pub(crate) fn frames(device: u32, ethertype: u16) -> io::Result<AsyncFd<Socket>> {
    watched(socket(device, ethertype)?)
}

/// The same without a runtime; it does not block.
///
/// # Errors
/// As for `frames`.
pub fn socket(device: u32, ethertype: u16) -> io::Result<Socket> {
    // Protocol 0: nothing arrives before it is known from which device.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.bind(&link(device, ethertype)?)?;
    Ok(socket)
}

/// A socket that tells the runtime when something has arrived.
///
/// # Errors
/// When this is no place with a runtime, or the kernel has no room.
pub(crate) fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and always names the same one; it goes into the result, so the descriptor stays
    // open until it is taken out of the runtime's list.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

fn link(device: u32, ethertype: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is plain data of the layout that `packet(7)` gives for an address whose family is
    // `AF_PACKET`, no larger than the storage, and all of its bytes were zeroed above.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(|_| io::ErrorKind::InvalidInput)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the storage holds an address of that length, filled in just above.
    Ok(unsafe { SockAddr::new(storage, length) })
}
