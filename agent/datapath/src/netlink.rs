//! Netlink messages and their attributes (`netlink(7)`), as far as they are needed here.
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{SendFlags, sendto};
use std::io;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of messages that every family has.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
/// Flags of requests.
pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
/// Room for one reply of the kernel; it fills at most 32 KiB at a time.
pub(crate) const BUFFER: usize = 1 << 16;
/// The bits of an attribute's kind that tell how to read it.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// One message, filled up to where the next may begin.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let header = Header {
        length: (size_of::<Header>() + body.len()) as u32,
        kind,
        flags,
        sequence: 1,
        port: 0,
    };
    filled([header.as_bytes(), body].concat())
}

/// One attribute.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    filled([&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat())
}

/// An attribute of attributes.
pub(crate) fn nest(kind: u16, of: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &of.concat())
}

fn filled(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in a message's body behind its fixed part, or in another attribute: kind and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = u16::read_from_prefix(bytes).ok()?;
        let (kind, _) = u16::read_from_prefix(rest).ok()?;
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// The value of the attribute of this kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// Sends one request.
pub(crate) fn send(socket: BorrowedFd<'_>, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    sendto(
        socket,
        &message(kind, flags, body),
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    Ok(())
}

/// The messages in what was received: kind and body.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = Header::read_from_prefix(bytes).ok()?;
        let length = header.length as usize;
        let body = bytes.get(size_of::<Header>()..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header.kind, body))
    })
}

/// The result in the body of an error message; zero is success.
pub(crate) fn error(body: &[u8]) -> io::Result<()> {
    match i32::read_from_prefix(body) {
        Ok((0, _)) => Ok(()),
        Ok((code, _)) => Err(io::Error::from_raw_os_error(-code)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_cut_or_nonsensical_message_ends_the_reading() {
        assert_eq!(messages(&[0; 40]).count(), 0);
        let mut header = [0; 16];
        header[0] = 200;
        assert_eq!(messages(&header).count(), 0);
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = [attribute(1, &[7]), attribute(2, &[1, 2, 3, 4, 5])];
        let bytes = [nest(9, &inner), attribute(3, b"x")].concat();
        assert_eq!(bytes.len() % 4, 0);
        let nested = find(&bytes, 9).unwrap();
        assert_eq!(find(nested, 2), Some(&[1, 2, 3, 4, 5][..]));
        assert_eq!(find(&bytes, 3), Some(&b"x"[..]));
        assert_eq!(find(&bytes, 4), None);
        assert_eq!(attributes(&[9, 0, 1]).count(), 0);
    }
}
