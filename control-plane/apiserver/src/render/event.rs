//! Watch events on the wire: JSON lines, or length-delimited protobuf frames.

use api::status::Status;
use bytes::Bytes;
use control_plane_store::Revision;
use serde_json::{Value, json};

use super::shape::Shaper;
use crate::call::Call;
use crate::negotiate::{Encoding, Shape};
use crate::object;

/// Encodes the events of one watch.
pub(crate) struct EventEncoder {
    shaper: Shaper,
    protobuf: bool,
}

impl EventEncoder {
    pub(crate) fn new(call: &Call) -> Self {
        Self {
            shaper: Shaper::new(call),
            protobuf: call.output.encoding == Encoding::Protobuf,
        }
    }

    /// The `Content-Type` of the stream.
    pub(crate) fn content_type(&self) -> &'static str {
        if self.protobuf {
            Encoding::Protobuf.stream_type()
        } else {
            Encoding::Json.stream_type()
        }
    }

    /// An event about a stored object.
    pub(crate) fn event(&self, kind: &str, stored: &[u8], modified: Revision) -> Bytes {
        if !self.protobuf && self.shaper.is_plain() {
            let mut out = Vec::with_capacity(stored.len() + 80);
            open_line(&mut out, kind);
            object::splice(&mut out, stored, modified);
            out.extend_from_slice(b"}\n");
            return out.into();
        }
        match object::decode(stored, modified) {
            Ok(value) => self.value(kind, &value),
            Err(failure) => self.error(&failure.status),
        }
    }

    /// An event about a value in the storage version.
    pub(crate) fn value(&self, kind: &str, value: &Value) -> Bytes {
        match self.shaper.object(value.clone()) {
            Ok(shaped) if kind == "BOOKMARK" && self.shaper.output.shape == Shape::Table => {
                // A bookmark has no cells.
                let mut table = shaped;
                table["rows"] = json!([]);
                self.encode(kind, &table)
            }
            Ok(shaped) => self.encode(kind, &shaped),
            Err(failure) => self.error(&failure.status),
        }
    }

    /// The event that ends a watch with a reason.
    pub(crate) fn error(&self, status: &Status) -> Bytes {
        self.encode("ERROR", &status.to_json())
    }

    fn encode(&self, kind: &str, value: &Value) -> Bytes {
        if self.protobuf
            && let Ok(Some(object)) = super::protobuf(value)
        {
            return frame(kind, &object);
        }
        let mut out = Vec::with_capacity(512);
        open_line(&mut out, kind);
        out.extend_from_slice(value.to_string().as_bytes());
        out.extend_from_slice(b"}\n");
        out.into()
    }
}

fn open_line(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
}

/// A `WatchEvent` message (`type` = 1, `object` = 2, a `RawExtension` whose `raw` is 1) behind its length, four
/// bytes big-endian.
fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut raw = Vec::with_capacity(object.len() + 8);
    field(&mut raw, 1, object);
    let mut event = Vec::with_capacity(raw.len() + 24);
    field(&mut event, 1, kind.as_bytes());
    field(&mut event, 2, &raw);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.append(&mut event);
    out.into()
}

/// A length-delimited protobuf field.
fn field(out: &mut Vec<u8>, number: u8, content: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = content.len();
    while length >= 0x80 {
        // The low seven bits, which always fit, with the mark that more follow.
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_a_length_and_a_watch_event() {
        let bytes = frame("ADDED", &[7; 200]);
        assert_eq!(&bytes[..4], &(bytes.len() as u32 - 4).to_be_bytes());
        assert_eq!(&bytes[4..11], b"\x0a\x05ADDED");
        // field 2, 203 bytes: field 1, 200 bytes.
        assert_eq!(&bytes[11..17], &[0x12, 0xcb, 0x01, 0x0a, 0xc8, 0x01]);
    }
}
