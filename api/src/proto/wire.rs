//! The protobuf wire format: tags, varints, lengths.

use super::ProtoError;

pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// The payload of one field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl Payload<'_> {
    pub fn wire_type(self) -> u8 {
        match self {
            Payload::Varint(_) => VARINT,
            Payload::Fixed64(_) => FIXED64,
            Payload::Bytes(_) => BYTES,
            Payload::Fixed32 => FIXED32,
        }
    }
}

/// The fields of a message in the order in which they stand. Ends after the first error.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), ProtoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Payload<'a>), ProtoError> {
        let tag = varint(&mut self.0)?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Damaged)?;
        let payload = match (tag & 7) as u8 {
            VARINT => Payload::Varint(varint(&mut self.0)?),
            FIXED64 => Payload::Fixed64(u64::from_le_bytes(self.array()?)),
            BYTES => {
                let length = usize::try_from(varint(&mut self.0)?).map_err(|_| ProtoError::Damaged)?;
                Payload::Bytes(take(&mut self.0, length)?)
            }
            FIXED32 => {
                self.array::<4>()?;
                Payload::Fixed32
            }
            _ => return Err(ProtoError::Damaged),
        };
        Ok((number, payload))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        take(&mut self.0, N)?.try_into().map_err(|_| ProtoError::Damaged)
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], ProtoError> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(ProtoError::Damaged)?;
    *bytes = rest;
    Ok(taken)
}

/// Reads a varint of at most ten bytes.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, ProtoError> {
    let mut value = 0u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(ProtoError::Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).wrapping_shl(7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtoError::Damaged)
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    put_tag(out, number, VARINT);
    put_varint(out, value.cast_unsigned());
}

/// Writes a message whose length is known only afterwards.
pub(crate) fn put_message<E>(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_tag(out, number, BYTES);
    let start = out.len();
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        put_varint(&mut prefix, length as u64);
        out.splice(start..=start, prefix);
    }
    Ok(())
}
