//! Admissions of volumes and claims: protection from being deleted while in use, and the default class.

use api::meta::{Meta, metadata_mut};
use control_plane_store::Snapshot;
use serde_json::{Value, json};

use crate::error::Result;
use crate::object;

/// StorageObjectInUseProtection: the controller takes the finalizer off when the object is no longer used.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let meta = metadata_mut(object);
    let list = meta.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// DefaultStorageClass: a claim that names no class gets the default one; the youngest when there are several.
pub(super) fn default_class(snapshot: &Snapshot, claim: &mut Value) -> Result<()> {
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    if !claim["spec"]["storageClassName"].is_null() || !claim["spec"].is_object() {
        return Ok(());
    }
    let mut found: Option<(String, String)> = None;
    for (_, entry) in snapshot.range(b"/registry/storage.k8s.io/storageclasses/", b"") {
        let class = object::value(entry)?;
        let meta = Meta::of(&class);
        if meta.annotation(DEFAULT) == Some("true") {
            let made = meta
                .get("creationTimestamp")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let candidate = (made.to_owned(), meta.name().to_owned());
            // Of the same age, the first by name.
            if found.as_ref().is_none_or(|f| candidate.0 > f.0) {
                found = Some(candidate);
            }
        }
    }
    if let Some((_, name)) = found {
        claim["spec"]["storageClassName"] = name.into();
    }
    Ok(())
}
