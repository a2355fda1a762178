//! Lists on the wire.

use std::io::Write as _;

use api::catalog::Gvk;
use bytes::Bytes;
use control_plane_store::Entry;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Response;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};
use serde_json::{Map, Value, json};

use super::shape::{self, Shaper};
use crate::body::{self, Body};
use crate::call::Call;
use crate::engine::list::Listing;
use crate::error::Result;
use crate::negotiate::{Encoding, Shape};
use crate::object;

/// How much of a list is encoded at a time.
const CHUNK: usize = 64 << 10;
/// Bodies from this size on are compressed when the client can read it, as upstream: 128 KiB.
const COMPRESS_FROM: usize = 128 << 10;

/// Encodes a list.
pub(super) fn respond(call: &Call, listing: Listing) -> Result<Response<Body>> {
    let shaper = Shaper::new(call);
    let json = call.output.encoding == Encoding::Json;
    if json && call.output.shape != Shape::Table && !call.pretty() {
        return Ok(streamed(call, Chunks::new(shaper, listing)));
    }
    let value = whole(&shaper, &listing)?;
    if call.output.encoding == Encoding::Protobuf {
        let text = |name: &str| value[name].as_str().unwrap_or_default();
        let gvk = Gvk::from_api_version(text("apiVersion"), text("kind"));
        if let Some(message) = shape::message_of(&gvk) {
            let bytes = shape::wrapped(&gvk, &message, &value)?;
            return Ok(compressed_if_large(call, Encoding::Protobuf, bytes));
        }
    }
    let (encoding, bytes) = super::bytes(&value, call.output.encoding, call.pretty())?;
    Ok(compressed_if_large(call, encoding, bytes))
}

fn metadata(listing: &Listing) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), listing.revision.to_string().into());
    if !listing.continue_token.is_empty() {
        metadata.insert("continue".into(), listing.continue_token.clone().into());
    }
    if let Some(remaining) = listing.remaining {
        metadata.insert("remainingItemCount".into(), remaining.into());
    }
    Value::Object(metadata)
}

fn list_type(shaper: &Shaper) -> (String, String) {
    match shaper.output.shape {
        Shape::Partial => ("PartialObjectMetadataList".into(), shaper.meta_version()),
        _ => (shaper.res.list_kind(), shaper.res.api_version()),
    }
}

/// The list as one value, for shapes and encodings that cannot be spliced.
fn whole(shaper: &Shaper, listing: &Listing) -> Result<Value> {
    let mut items = Vec::new();
    for entry in listing.entries() {
        let mut value = object::value(entry)?;
        shaper.to_served(&mut value);
        items.push(match shaper.output.shape {
            Shape::Table => shaper.row(&value),
            Shape::Partial => shaper.partial(&value, false),
            Shape::Object => untyped(value),
        });
    }
    if shaper.output.shape == Shape::Table {
        return Ok(shaper.table(metadata(listing), items));
    }
    let (kind, api_version) = list_type(shaper);
    Ok(json!({"kind": kind, "apiVersion": api_version, "metadata": metadata(listing), "items": items}))
}

/// Items of a typed list do not repeat the type.
fn untyped(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    value
}

/// A JSON list on its way out.
struct Chunks {
    shaper: Shaper,
    listing: Listing,
    /// Index into the page, or the key to go on from.
    next: usize,
    from: Vec<u8>,
    state: State,
    any: bool,
}

#[derive(PartialEq)]
enum State {
    Head,
    Items,
    Done,
}

impl Chunks {
    fn new(shaper: Shaper, listing: Listing) -> Self {
        let from = listing.prefix.clone();
        Self {
            shaper,
            listing,
            next: 0,
            from,
            state: State::Head,
            any: false,
        }
    }

    fn chunk(&mut self) -> Option<Bytes> {
        if self.state == State::Done {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK + CHUNK / 4);
        if self.state == State::Head {
            self.head(&mut out);
            self.state = State::Items;
        }
        if self.items(&mut out) {
            out.extend_from_slice(b"]}\n");
            self.state = State::Done;
        }
        Some(out.into())
    }

    fn head(&self, out: &mut Vec<u8>) {
        let (kind, api_version) = list_type(&self.shaper);
        let metadata = metadata(&self.listing);
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":["
        );
        out.extend_from_slice(head.as_bytes());
    }

    /// Appends items until the chunk is full; whether all are out.
    fn items(&mut self, out: &mut Vec<u8>) -> bool {
        let mut any = self.any;
        let mut add = |out: &mut Vec<u8>, entry: &Entry| {
            if std::mem::replace(&mut any, true) {
                out.push(b',');
            }
            self.shaper.list_item(out, entry);
            out.len() >= CHUNK
        };
        let listing = &self.listing;
        let mut full = false;
        if let Some(page) = &listing.page {
            for entry in page.iter().skip(self.next) {
                self.next += 1;
                full = add(out, entry);
                if full {
                    break;
                }
            }
        } else {
            for (key, entry) in listing.snapshot.range(&listing.prefix, &self.from) {
                if listing.filter.matches(&entry.value) && add(out, entry) {
                    full = true;
                    self.from = [key, &b"\0"[..]].concat();
                    break;
                }
            }
        }
        self.any = any;
        !full
    }
}

impl Shaper {
    /// Appends one item of a JSON list.
    fn list_item(&self, out: &mut Vec<u8>, entry: &Entry) {
        if self.is_plain() {
            return object::splice_item(out, &entry.value, entry.modified);
        }
        // An entry that cannot be read is sent as null rather than breaking a list that is half sent.
        let mut value = object::value(entry).unwrap_or(Value::Null);
        self.to_served(&mut value);
        let value = match self.output.shape {
            Shape::Partial => self.partial(&value, false),
            _ => untyped(value),
        };
        out.extend_from_slice(value.to_string().as_bytes());
    }
}

fn streamed(call: &Call, mut chunks: Chunks) -> Response<Body> {
    let first = chunks.chunk().unwrap_or_default();
    if chunks.state == State::Done {
        return body::response(200, Encoding::Json.content_type(), body::full(first));
    }
    // The first chunk is full, so this list is large.
    let zip = accepts_gzip(call).then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let gzip = zip.is_some();
    let state = (Some(first), Some(chunks), zip);
    let stream = futures::stream::unfold(state, |(first, chunks, zip)| async move {
        let mut chunks = chunks?;
        let next = first.or_else(|| chunks.chunk());
        match (next, zip) {
            (Some(chunk), None) => Some((chunk, (None, Some(chunks), None))),
            (None, None) => None,
            (Some(chunk), Some(mut zip)) => {
                // Writing to a vector cannot fail.
                zip.write_all(&chunk).ok()?;
                let out = std::mem::take(zip.get_mut());
                Some((out.into(), (None, Some(chunks), Some(zip))))
            }
            (None, Some(zip)) => Some((zip.finish().ok()?.into(), (None, None, None))),
        }
    });
    let mut response = body::response(200, Encoding::Json.content_type(), body::stream(stream));
    if gzip {
        mark_gzip(&mut response);
    }
    response
}

fn compressed_if_large(call: &Call, encoding: Encoding, bytes: Vec<u8>) -> Response<Body> {
    if bytes.len() < COMPRESS_FROM || !accepts_gzip(call) {
        return body::response(200, encoding.content_type(), body::full(bytes));
    }
    let mut zip = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    let zipped = zip.write_all(&bytes).and_then(|()| zip.finish());
    match zipped {
        Ok(zipped) => {
            let mut response = body::response(200, encoding.content_type(), body::full(zipped));
            mark_gzip(&mut response);
            response
        }
        Err(_) => body::response(200, encoding.content_type(), body::full(bytes)),
    }
}

fn mark_gzip(response: &mut Response<Body>) {
    response
        .headers_mut()
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn accepts_gzip(call: &Call) -> bool {
    let header = call
        .headers
        .get(ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    header.split(',').any(|part| {
        let (name, rest) = part.split_once(';').unwrap_or((part, ""));
        name.trim() == "gzip" && rest.trim() != "q=0"
    })
}
