//! Objects as they are stored: JSON bytes in one storage version, without `resourceVersion`, which is the revision of
//! the last write and is spliced in on the way out.
//!
//! Stored bytes always begin with `{"kind":…,"apiVersion":…,"metadata":{`, so the place of the splice is found
//! without parsing, and one slice serves objects, list items (which carry no type) and watch events alike.

use api::catalog::Resource;
use bytes::{Bytes, BytesMut};
use control_plane_store::{Entry, Revision};
use serde_json::{Map, Value};

use crate::error::{Result, fail};
use api::status::Status;

/// What stands before the fields of the metadata.
const MARK: &[u8] = b"\"metadata\":{";

/// Where objects of a resource are kept: `pods`, `apps/deployments`.
#[must_use]
pub fn storage(res: &Resource) -> &str {
    res.storage.0.trim_start_matches('/')
}

/// The key of an object, or with an empty name the prefix of all objects (of a namespace).
#[must_use]
pub fn key(res: &Resource, namespace: Option<&str>, name: &str) -> Vec<u8> {
    let mut key = prefix(res, namespace);
    key.extend_from_slice(name.as_bytes());
    key
}

/// The prefix of all objects of a resource, or of those in one namespace.
#[must_use]
pub fn prefix(res: &Resource, namespace: Option<&str>) -> Vec<u8> {
    let mut key = format!("/registry/{}/", storage(res));
    if let Some(namespace) = namespace.filter(|n| res.namespaced && !n.is_empty()) {
        key.push_str(namespace);
        key.push('/');
    }
    key.into_bytes()
}

/// Encodes an object for the store: type and metadata first, no resource version.
///
/// # Errors
/// An internal error when the value is no object (cannot come from a checked request).
pub fn encode(object: &Value) -> Result<Bytes> {
    let Value::Object(fields) = object else {
        return fail(Status::internal("an object to store is not a JSON object"));
    };
    let mut out = BytesMut::with_capacity(512);
    let mut head = Map::new();
    for name in ["kind", "apiVersion"] {
        head.insert(
            name.into(),
            fields.get(name).cloned().unwrap_or_else(|| Value::from("")),
        );
    }
    let mut metadata = fields
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    metadata.shift_remove("resourceVersion");
    head.insert("metadata".into(), Value::Object(metadata));
    let rest = fields
        .iter()
        .filter(|(name, _)| !head.contains_key(name.as_str()));
    let rest: Vec<_> = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
    head.extend(rest);
    let bytes = serde_json::to_vec(&head).map_err(|e| crate::error::Failure::from(Status::internal(e)))?;
    out.extend_from_slice(&bytes);
    Ok(out.freeze())
}

/// Where the metadata object of stored bytes begins (at its quote) and where its fields do.
fn place(stored: &[u8]) -> (usize, usize) {
    // The two strings before it are a kind and a version, which cannot hold the mark.
    let found = stored.windows(MARK.len()).take(512).position(|w| w == MARK);
    found.map_or((stored.len(), stored.len()), |at| (at, at + MARK.len()))
}

/// Appends the object with its resource version.
pub fn splice(out: &mut Vec<u8>, stored: &[u8], modified: Revision) {
    let (_, fields) = place(stored);
    out.extend_from_slice(&stored[..fields]);
    push_version(out, modified, &stored[fields..]);
}

/// Appends the object as an item of a list: with its resource version, without kind and version.
pub fn splice_item(out: &mut Vec<u8>, stored: &[u8], modified: Revision) {
    let (start, fields) = place(stored);
    out.push(b'{');
    out.extend_from_slice(&stored[start..fields]);
    push_version(out, modified, &stored[fields..]);
}

fn push_version(out: &mut Vec<u8>, modified: Revision, rest: &[u8]) {
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(modified.to_string().as_bytes());
    out.push(b'"');
    if rest.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(rest);
}

/// Parses a stored entry, with its resource version.
///
/// # Errors
/// An internal error when the store holds something that is not JSON.
pub fn value(entry: &Entry) -> Result<Value> {
    decode(&entry.value, entry.modified)
}

/// Parses stored bytes, with this resource version.
///
/// # Errors
/// An internal error when the store holds something that is not JSON.
pub fn decode(stored: &[u8], modified: Revision) -> Result<Value> {
    let mut value: Value = serde_json::from_slice(stored).map_err(|e| {
        crate::error::Failure::from(Status::internal(format!("stored object is damaged: {e}")))
    })?;
    set_version(&mut value, modified);
    Ok(value)
}

/// Sets `metadata.resourceVersion`.
pub fn set_version(object: &mut Value, modified: Revision) {
    api::meta::metadata_mut(object).insert("resourceVersion".into(), modified.to_string().into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_spliced_without_parsing() {
        let object = json!({"metadata": {"name": "a", "resourceVersion": "3"}, "data": {"x": "\"metadata\":{"},
            "apiVersion": "v1", "kind": "ConfigMap"});
        let stored = encode(&object).unwrap();
        let (mut whole, mut item) = (Vec::new(), Vec::new());
        splice(&mut whole, &stored, Revision::new(7));
        splice_item(&mut item, &stored, Revision::new(7));
        let wanted = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "name": "a"},
            "data": {"x": "\"metadata\":{"}});
        assert_eq!(String::from_utf8(whole).unwrap(), wanted.to_string());
        let item: Value = serde_json::from_slice(&item).unwrap();
        assert_eq!(item["metadata"], wanted["metadata"]);
        assert_eq!(item.get("kind"), None);
        assert_eq!(decode(&stored, Revision::new(7)).unwrap(), wanted);
    }

    #[test]
    fn empty_metadata_stays_valid_json() {
        let stored = encode(&json!({"kind": "A", "apiVersion": "v1"})).unwrap();
        let mut whole = Vec::new();
        splice(&mut whole, &stored, Revision::new(1));
        let parsed: Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(parsed["metadata"]["resourceVersion"], "1");
    }
}
