//! Rules for claims, volumes and storage classes.

use super::super::access::{at, has, list, same, text};
use super::{Causes, IMMUTABLE, child, invalid_each, label_selector, one_of, required};
use crate::names;
use crate::quantity::Quantity;
use crate::status::Cause;
use serde_json::Value;

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

fn access_modes(spec: &Value, out: &mut Causes) {
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        out.push(Cause::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for mode in modes
        .iter()
        .filter(|mode| !MODES.contains(&mode.as_str().unwrap_or_default()))
    {
        out.push(Cause::not_supported("spec.accessModes", mode, MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        out.push(Cause::forbidden("spec.accessModes", why));
    }
}

fn positive(value: &Value, path: &str, out: &mut Causes) {
    if Quantity::from_json(value).is_ok_and(|quantity| quantity.sign() <= 0) {
        out.push(Cause::invalid(path, value, "must be greater than zero"));
    }
}

pub(super) fn claim(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    label_selector(at(spec, "selector"), "spec.selector", out);
    access_modes(spec, out);
    match at(spec, "resources.requests").get("storage") {
        None => out.push(Cause::required("spec.resources[storage]", "")),
        Some(size) => positive(size, "spec.resources[storage]", out),
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        invalid_each(out, "spec.storageClassName", class, names::dns_subdomain(class));
    }
    one_of(spec, "volumeMode", "spec", VOLUME_MODES, false, out);
    if let Some(old) = old {
        claim_update(object, old, out);
    }
}

fn claim_update(new: &Value, old: &Value, out: &mut Causes) {
    let bound = text(old, "status.phase") == "Bound";
    let rest = |object: &Value| {
        let mut spec = at(object, "spec").clone();
        if let Some(map) = spec.as_object_mut() {
            map.shift_remove("volumeAttributesClassName");
            if bound {
                map.shift_remove("resources");
            }
            if text(old, "spec.volumeName").is_empty() {
                map.shift_remove("volumeName");
            }
            if !has(old, "spec.storageClassName") {
                map.shift_remove("storageClassName");
            }
        }
        spec
    };
    if !same(&rest(new), &rest(old)) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                   claims";
        out.push(Cause::forbidden("spec", why));
    }
    let size = |object: &Value| {
        at(object, "spec.resources.requests")
            .get("storage")
            .and_then(|size| Quantity::from_json(size).ok())
    };
    if let (Some(new), Some(old)) = (size(new), size(old))
        && new < old
    {
        let why = "field can not be less than status.capacity";
        out.push(Cause::forbidden("spec.resources.requests.storage", why));
    }
}

pub(super) fn volume(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    access_modes(spec, out);
    match at(spec, "capacity").get("storage") {
        None => out.push(Cause::required("spec.capacity", "")),
        Some(size) => positive(size, "spec.capacity[storage]", out),
    }
    let plain = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let sources = |object: &Value| {
        let mut spec = at(object, "spec").clone();
        if let Some(map) = spec.as_object_mut() {
            map.retain(|key, value| !plain.contains(&key.as_str()) && !value.is_null());
        }
        spec
    };
    let source = sources(object);
    match source.as_object().map_or(0, serde_json::Map::len) {
        0 => out.push(Cause::required("spec", "must specify a volume type")),
        1 => {}
        _ => out.push(Cause::forbidden(
            "spec",
            "may not specify more than 1 volume type",
        )),
    }
    let policies = &["Delete", "Recycle", "Retain"];
    one_of(
        spec,
        "persistentVolumeReclaimPolicy",
        "spec",
        policies,
        false,
        out,
    );
    one_of(spec, "volumeMode", "spec", VOLUME_MODES, false, out);
    let affinity = at(spec, "nodeAffinity.required");
    if !affinity.is_null() {
        super::pod::node_selector(affinity, "spec.nodeAffinity.required", out);
    }
    if has(spec, "local") {
        required(at(spec, "local"), "path", "spec.local", out);
        if affinity.is_null() {
            out.push(Cause::required(
                "spec.nodeAffinity",
                "Local volume requires node affinity",
            ));
        }
    }
    if let Some(old) = old {
        if !same(&source, &sources(old)) {
            let why = "spec.persistentvolumesource is immutable after creation";
            out.push(Cause::forbidden("spec.persistentvolumesource", why));
        }
        super::immutable(object, old, "spec.volumeMode", out);
    }
}

pub(super) fn class(object: &Value, old: Option<&Value>, out: &mut Causes) {
    required(object, "provisioner", "", out);
    one_of(object, "reclaimPolicy", "", &["Delete", "Retain"], false, out);
    one_of(
        object,
        "volumeBindingMode",
        "",
        &["Immediate", "WaitForFirstConsumer"],
        true,
        out,
    );
    if let Some(old) = old {
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same(at(object, field), at(old, field)) {
                out.push(Cause::forbidden(
                    field,
                    &format!("updates to {field} are forbidden."),
                ));
            }
        }
        if at(object, "volumeBindingMode") != at(old, "volumeBindingMode") {
            let value = at(object, "volumeBindingMode");
            out.push(Cause::invalid(child("", "volumeBindingMode"), value, IMMUTABLE));
        }
    }
}
