//! Admissions of volumes and claims: protection from being deleted while in use, and the default classes of claims and of ingresses.

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
    if !claim["spec"]["storageClassName"].is_null() || !claim["spec"].is_object() {
        return Ok(());
    }
    let marked = "storageclass.kubernetes.io/is-default-class";
    if let Some(name) = youngest(snapshot, b"/registry/storage.k8s.io/storageclasses/", marked)? {
        claim["spec"]["storageClassName"] = name.into();
    }
    Ok(())
}

/// DefaultIngressClass: the same for ingresses; one with the annotation of old names its class by that.
pub(super) fn default_ingress_class(snapshot: &Snapshot, ingress: &mut Value) -> Result<()> {
    let named = !ingress["spec"]["ingressClassName"].is_null();
    let annotated = Meta::of(ingress)
        .annotation("kubernetes.io/ingress.class")
        .is_some();
    if named || annotated || !ingress["spec"].is_object() {
        return Ok(());
    }
    let marked = "ingressclass.kubernetes.io/is-default-class";
    let classes = b"/registry/networking.k8s.io/ingressclasses/";
    if let Some(name) = youngest(snapshot, classes, marked)? {
        ingress["spec"]["ingressClassName"] = name.into();
    }
    Ok(())
}

/// The youngest class that is marked as the default; of the same age, the first by name.
fn youngest(snapshot: &Snapshot, classes: &[u8], marked: &str) -> Result<Option<String>> {
    let mut found: Option<(String, String)> = None;
    for (_, entry) in snapshot.range(classes, b"") {
        let class = object::value(entry)?;
        let meta = Meta::of(&class);
        if meta.annotation(marked) == Some("true") {
            let made = meta.get("creationTimestamp").and_then(Value::as_str);
            let candidate = (made.unwrap_or_default().to_owned(), meta.name().to_owned());
            if found.as_ref().is_none_or(|f| candidate.0 > f.0) {
                found = Some(candidate);
            }
        }
    }
    Ok(found.map(|(_, name)| name))
}
