//! Rules for the metadata of every kind.

use super::super::access::{at, entries, has, int, list, same, text};
use super::super::id;
use super::{Causes, IMMUTABLE, NOT_NEGATIVE, invalid_each, labels};
use crate::catalog::Resource;
use crate::meta::Meta;
use crate::names;
use crate::status::Cause;
use serde_json::Value;

const ANNOTATIONS_MAX: usize = 256 * 1024;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What the names of a kind may look like.
fn name_rule(res: &Resource) -> fn(&str) -> Vec<String> {
    match id(res) {
        ("", "namespaces" | "services") => names::dns_label,
        ("rbac.authorization.k8s.io", _) => names::path_segment,
        ("networking.k8s.io", "ipaddresses") => names::path_segment,
        ("certificates.k8s.io", "clustertrustbundles") => names::path_segment,
        _ => names::dns_subdomain,
    }
}

pub(super) fn metadata(res: &Resource, object: &Value, out: &mut Causes) {
    let meta = Meta::of(object);
    let rule = name_rule(res);
    let prefix = meta.generate_name();
    if !prefix.is_empty() {
        invalid_each(
            out,
            "metadata.generateName",
            prefix,
            rule(&without_trailing_dash(prefix)),
        );
    }
    if meta.name().is_empty() {
        out.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        invalid_each(out, "metadata.name", meta.name(), rule(meta.name()));
    }
    namespace(res, meta, out);
    if meta.generation() < 0 {
        out.push(Cause::invalid(
            "metadata.generation",
            &meta.generation().into(),
            NOT_NEGATIVE,
        ));
    }
    free_parts(object, out);
    finalizers(meta, out);
}

/// A prefix may end in a dash: something follows.
fn without_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(stem) if !stem.is_empty() => format!("{}a", &prefix[..prefix.len() - 2]),
        _ => prefix.to_owned(),
    }
}

fn namespace(res: &Resource, meta: Meta<'_>, out: &mut Causes) {
    let namespace = meta.namespace();
    match (res.namespaced, namespace.is_empty()) {
        (true, true) => out.push(Cause::required("metadata.namespace", "")),
        (true, false) => invalid_each(out, "metadata.namespace", namespace, names::dns_label(namespace)),
        (false, false) => out.push(Cause::forbidden("metadata.namespace", "not allowed on this type")),
        (false, true) => {}
    }
}

/// What a client may set on every write: labels, annotations, owners.
fn free_parts(object: &Value, out: &mut Causes) {
    let metadata = at(object, "metadata");
    labels(at(metadata, "labels"), "metadata.labels", out);
    annotations(at(metadata, "annotations"), "metadata.annotations", out);
    owners(list(metadata, "ownerReferences"), out);
}

pub(super) fn annotations(map: &Value, path: &str, out: &mut Causes) {
    let mut size = 0;
    for (key, value) in entries(map, "") {
        invalid_each(out, path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > ANNOTATIONS_MAX {
        out.push(Cause::too_long(path, ANNOTATIONS_MAX));
    }
}

fn owners(owners: &[Value], out: &mut Causes) {
    let path = "metadata.ownerReferences";
    let mut controller = String::new();
    for owner in owners {
        let version = text(owner, "apiVersion").rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            out.push(Cause::invalid_str(
                format!("{path}.apiVersion"),
                text(owner, "apiVersion"),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                out.push(Cause::invalid_str(
                    format!("{path}.{field}"),
                    "",
                    "must not be empty",
                ));
            }
        }
        if text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Event" {
            out.push(Cause::invalid(
                path,
                owner,
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            if controller.is_empty() {
                controller = this;
            } else {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} \
                     and {this}"
                );
                out.push(Cause::invalid(path, &Value::Array(owners.to_vec()), &why));
            }
        }
    }
}

fn finalizers(meta: Meta<'_>, out: &mut Causes) {
    let all: Vec<&str> = meta.finalizers().collect();
    for finalizer in &all {
        invalid_each(
            out,
            "metadata.finalizers",
            finalizer,
            names::qualified_name(finalizer),
        );
    }
    if all.contains(&ORPHAN) && all.contains(&FOREGROUND) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        out.push(Cause::invalid("metadata.finalizers", &all.into(), &why));
    }
}

pub(super) fn metadata_update(new: &Value, old: &Value, out: &mut Causes) {
    let (meta, before) = (Meta::of(new), Meta::of(old));
    if before.is_terminating() {
        no_new_finalizers(meta, before, out);
    }
    if meta.generation() < before.generation() {
        out.push(Cause::invalid(
            "metadata.generation",
            &meta.generation().into(),
            "must not be decremented",
        ));
    }
    let fixed = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    for field in fixed {
        let path = format!("metadata.{field}");
        let lowered = field == "deletionGracePeriodSeconds"
            && int(new, &path)
                .zip(int(old, &path))
                .is_some_and(|(new, old)| new < old);
        if !same(at(new, &path), at(old, &path)) && !lowered {
            out.push(Cause::invalid(path.clone(), at(new, &path), IMMUTABLE));
        }
    }
    free_parts(new, out);
    finalizers(meta, out);
}

fn no_new_finalizers(meta: Meta<'_>, before: Meta<'_>, out: &mut Causes) {
    let known: Vec<&str> = before.finalizers().collect();
    let mut added: Vec<String> = meta
        .finalizers()
        .filter(|f| !known.contains(f))
        .map(crate::status::quote)
        .collect();
    added.sort();
    if !added.is_empty() {
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        out.push(Cause::forbidden("metadata.finalizers", &why));
    }
}

/// Whether a template carries metadata of its own that it may not.
pub(super) fn template_metadata(template: &Value, path: &str, out: &mut Causes) {
    labels(at(template, "metadata.labels"), &format!("{path}.labels"), out);
    if has(template, "metadata.annotations") {
        annotations(
            at(template, "metadata.annotations"),
            &format!("{path}.annotations"),
            out,
        );
    }
}
