//! Packets as nobody should send them: frames of the fixtures, bent.
use crate::frame::{About, ETHERNET, Frame};
use crate::shape::Piece;
use fastrand::Rng;

/// Values at which lengths, offsets and types are cut off or wrap.
const EDGES: [u8; 16] = [0, 1, 2, 4, 5, 6, 15, 17, 40, 44, 51, 60, 0x45, 0x7f, 0x80, 0xff];
/// The longest frame that is made; a test run takes a page.
const LONGEST: usize = 1500;

/// Bytes like those of this frame, and not quite. Always a whole IP header: without one the kernel runs no test.
pub fn bent(rng: &mut Rng, frame: &Frame, others: &[Frame]) -> Vec<u8> {
    let mut frame = frame.clone();
    if rng.u8(..3) == 0 {
        reshape(rng, &mut frame);
    }
    if rng.u8(..4) == 0 {
        frame = quoted(rng, frame);
    }
    let mut bytes = frame.bytes();
    for _ in 0..rng.usize(..4) {
        bend(rng, &mut bytes, others);
    }
    let least = if bytes.get(12..14) == Some(&[0x86, 0xdd]) {
        40
    } else {
        20
    };
    bytes.resize(bytes.len().clamp(ETHERNET + least, LONGEST), 0);
    bytes
}

/// What may be unusual about a valid packet.
fn reshape(rng: &mut Rng, frame: &mut Frame) {
    let shape = &mut frame.shape;
    match rng.u8(..8) {
        0 => shape.options = rng.usize(..11) * 4,
        1 => shape.headers = (0..rng.usize(1..9)).map(|_| header(rng)).collect(),
        2 => {
            let from = rng.usize(..4) * 8;
            shape.piece = Some(Piece {
                from,
                to: from + rng.usize(..5) * 8,
            });
            shape.id = rng.u16(..3);
        }
        3 => shape.unchecked = true,
        4 => shape.hops = rng.u8(..3),
        5 => shape.vlan = Some(rng.u16(..)),
        6 => shape.padding = rng.usize(..64),
        _ => frame.payload = noise(rng, 200),
    }
}

/// Fewer than so many bytes of anything.
fn noise(rng: &mut Rng, most: usize) -> Vec<u8> {
    let length = rng.usize(..most);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

fn header(rng: &mut Rng) -> u8 {
    *rng.choice(&[0, 43, 44, 51, 60, 50, 135, 6, 17, 59])
        .expect("the list is not empty")
}

/// An error about the packet, from where it goes to where it comes from.
fn quoted(rng: &mut Rng, inner: Frame) -> Frame {
    let kinds: &[(u8, u8)] = if inner.from.is_ipv4() {
        &[(3, 1), (3, 4), (4, 0), (11, 0), (12, 0), (5, 0)]
    } else {
        &[(1, 4), (2, 0), (3, 0), (4, 0), (127, 0), (0, 0)]
    };
    let kind = *rng.choice(kinds).expect("the list is not empty");
    // About the packet itself or an answer to it.
    let (from, to) = (inner.from, inner.to);
    let (inner, quote) = (
        Frame {
            from: if rng.bool() { to } else { from },
            to: if rng.bool() { from } else { to },
            ..inner
        },
        if rng.bool() { usize::MAX } else { rng.usize(..70) },
    );
    let ends = if rng.bool() {
        (to, from)
    } else {
        (inner.to, inner.from)
    };
    let mut error = Frame::error(kind, ends.0.ip(), ends.1.ip(), inner, quote);
    if let Some(about) = &mut error.about {
        let about: &mut About = about;
        about.mtu = rng.u32(..);
    }
    error
}

/// One change to bytes.
fn bend(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[Frame]) {
    if bytes.len() < ETHERNET + 20 {
        return;
    }
    // Headers are where it hurts.
    let end = 12 + rng.usize(1..120);
    let at = rng.usize(12..bytes.len().min(end));
    match rng.u8(..8) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 | 3 => bytes[at] = *rng.choice(&EDGES).expect("the list is not empty"),
        4 => bytes.truncate(rng.usize(ETHERNET + 20..=bytes.len())),
        5 => bytes.extend(noise(rng, 80)),
        6 => {
            let other = rng.choice(others).map(Frame::bytes).unwrap_or_default();
            bytes.truncate(at);
            bytes.extend(other.get(at..).unwrap_or_default());
        }
        _ => {
            // Something is missing in between, or there twice.
            let length = rng.usize(1..9).min(bytes.len() - at);
            if rng.bool() {
                bytes.drain(at..at + length);
            } else {
                let twice = bytes[at..at + length].to_vec();
                bytes.splice(at..at, twice);
            }
        }
    }
}
