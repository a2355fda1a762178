//! Rules for configuration, cluster and authorization objects.

use super::super::access::{at, entries, flag, has, int, list, same, text};
use super::{Causes, IMMUTABLE, child, invalid_each, one_of, required};
use crate::catalog::Resource;
use crate::names;
use crate::quantity::Quantity;
use crate::status::Cause;
use base64::Engine as _;
use serde_json::Value;

/// Most bytes that a Secret or ConfigMap may hold.
const MAX_DATA: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn keys(object: &Value, field: &str, out: &mut Causes) {
    for (key, _) in entries(object, field) {
        invalid_each(out, &format!("{field}[{key}]"), key, names::config_map_key(key));
    }
}

fn size(object: &Value, field: &str, base64: bool) -> usize {
    let lengths = entries(object, field).map(|(_, value)| value.as_str().unwrap_or_default());
    lengths
        .map(|text| if base64 { text.len() / 4 * 3 } else { text.len() })
        .sum()
}

fn frozen(new: &Value, old: Option<&Value>, fields: &[&str], out: &mut Causes) {
    let Some(old) = old.filter(|old| flag(old, "immutable")) else {
        return;
    };
    if !flag(new, "immutable") {
        out.push(Cause::forbidden("immutable", FROZEN));
    }
    for field in fields {
        if !same(at(new, field), at(old, field)) {
            out.push(Cause::forbidden(*field, FROZEN));
        }
    }
}

pub(super) fn config_map(object: &Value, old: Option<&Value>, out: &mut Causes) {
    frozen(object, old, &["data", "binaryData"], out);
    keys(object, "data", out);
    keys(object, "binaryData", out);
    for (key, _) in entries(object, "data").filter(|(key, _)| at(object, "binaryData").get(key).is_some()) {
        out.push(Cause::invalid_str(
            format!("data[{key}]"),
            key,
            "duplicate of key present in binaryData",
        ));
    }
    if size(object, "data", false) + size(object, "binaryData", true) > MAX_DATA {
        out.push(Cause::too_long("", MAX_DATA));
    }
}

pub(super) fn secret(object: &Value, old: Option<&Value>, out: &mut Causes) {
    if let Some(old) = old {
        super::immutable(object, old, "type", out);
    }
    frozen(object, old, &["data"], out);
    keys(object, "data", out);
    if size(object, "data", true) > MAX_DATA {
        out.push(Cause::too_long("data", MAX_DATA));
    }
    let data = at(object, "data");
    let mut need = |keys: &[&str]| {
        for key in keys.iter().filter(|key| data.get(**key).is_none()) {
            out.push(Cause::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "type") {
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            need(&["username", "password"]);
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", out),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", out),
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let name = at(object, "metadata.annotations")
                .get(key)
                .and_then(Value::as_str);
            if name.unwrap_or_default().is_empty() {
                out.push(Cause::required(format!("metadata.annotations[{key}]"), ""));
            }
        }
        _ => {}
    }
}

fn docker_config(data: &Value, key: &str, out: &mut Causes) {
    let path = format!("data[{key}]");
    let Some(value) = data.get(key).and_then(Value::as_str) else {
        out.push(Cause::required(path, ""));
        return;
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(value)
        .unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        out.push(Cause::invalid_str(
            path,
            "<secret contents redacted>",
            &error.to_string(),
        ));
    }
}

pub(super) fn namespace(object: &Value, out: &mut Causes) {
    for finalizer in list(object, "spec.finalizers") {
        let finalizer = finalizer.as_str().unwrap_or_default();
        invalid_each(
            out,
            "spec.finalizers",
            finalizer,
            names::qualified_name(finalizer),
        );
        let standard = ["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer);
        if !finalizer.contains('/') && !standard {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            out.push(Cause::invalid_str("spec.finalizers", finalizer, why));
        }
    }
}

pub(super) fn node(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, taint) in list(object, "spec.taints").iter().enumerate() {
        // The path is upstream's, although the field stands in the spec.
        let path = format!("metadata.taints[{index}]");
        let (key, value) = (text(taint, "key"), text(taint, "value"));
        invalid_each(out, &child(&path, "key"), key, names::qualified_name(key));
        let problems = names::label_value(value);
        if !problems.is_empty() {
            out.push(Cause::invalid_str(
                child(&path, "value"),
                value,
                &problems.join(";"),
            ));
        }
        one_of(taint, "effect", &path, EFFECTS, true, out);
        let identity = (key, text(taint, "effect"));
        if seen.contains(&identity) {
            let mut cause = Cause::duplicate(path, taint);
            cause
                .message
                .push_str(": taints must be unique by key and effect pair");
            out.push(cause);
        }
        seen.push(identity);
    }
    for side in ["capacity", "allocatable"] {
        for (name, value) in entries(object, &format!("status.{side}")) {
            super::container::quantity(name, value, &format!("status.{side}.{name}"), out);
        }
    }
    if let Some(old) = old {
        node_update(object, old, out);
    }
}

fn node_update(new: &Value, old: &Value, out: &mut Causes) {
    for (field, name) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let path = format!("spec.{field}");
        let (now, before) = (at(new, &path), at(old, &path));
        let was_empty = before.as_str().is_none_or(str::is_empty) && list(old, &path).is_empty();
        if !was_empty && now != before {
            let why = format!("node updates may not change {name} except from \"\" to valid");
            out.push(Cause::forbidden(path, &why));
        }
    }
}

pub(super) fn event(object: &Value, out: &mut Causes) {
    let newer = has(object, "regarding");
    let involved = if newer { "regarding" } else { "involvedObject" };
    let path = "involvedObject.namespace";
    let about = text(at(object, involved), "namespace");
    let namespace = text(object, "metadata.namespace");
    let timed = has(object, "eventTime");
    let fits = match (timed, about.is_empty()) {
        (false, true) => matches!(namespace, "" | "default"),
        (false, false) => about == namespace,
        (true, true) => matches!(namespace, "default" | "kube-system"),
        (true, false) => true,
    };
    if !fits {
        out.push(Cause::invalid_str(path, about, "does not match event.namespace"));
    }
    if timed {
        let controller = if newer || has(object, "reportingController") {
            "reportingController"
        } else {
            "reportingComponent"
        };
        if let Some(name) = required(object, controller, "", out) {
            invalid_each(out, controller, name, names::qualified_name(name));
        }
        for field in ["reportingInstance", "action", "reason"] {
            if required(object, field, "", out).is_some_and(|value| value.len() > 128) {
                out.push(Cause::invalid_str(field, "", "can have at most 128 characters"));
            }
        }
        let message = if newer {
            text(object, "note")
        } else {
            text(object, "message")
        };
        if message.len() > 1024 {
            out.push(Cause::invalid_str(
                "message",
                "",
                "can have at most 1024 characters",
            ));
        }
    }
}

pub(super) fn lease(object: &Value, out: &mut Causes) {
    let duration = "spec.leaseDurationSeconds";
    if let Some(seconds) = int(object, duration).filter(|seconds| *seconds <= 0) {
        out.push(Cause::invalid(
            duration,
            &seconds.into(),
            "must be greater than 0",
        ));
    }
    super::not_negative(at(object, "spec"), &["leaseTransitions"], "spec", out);
}

fn amounts(map: &Value, path: &str, out: &mut Causes) {
    for (name, value) in entries(map, "") {
        super::container::quantity(name, value, &format!("{path}[{name}]"), out);
    }
}

pub(super) fn quota(object: &Value, out: &mut Causes) {
    amounts(at(object, "spec.hard"), "spec.hard", out);
}

pub(super) fn limit_range(object: &Value, out: &mut Causes) {
    for (index, item) in list(object, "spec.limits").iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        for side in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            amounts(at(item, side), &child(&path, side), out);
        }
        for (name, min) in entries(item, "min") {
            let max = at(item, "max").get(name);
            let parse = |value: &Value| Quantity::from_json(value).ok();
            if let (Some(min), Some(max)) = (parse(min), max.and_then(parse))
                && min > max
            {
                let why = format!("min value {min} is greater than max value {max}");
                out.push(Cause::invalid_str(
                    format!("{path}.min[{name}]"),
                    &min.to_string(),
                    &why,
                ));
            }
        }
    }
}

pub(super) fn role(res: &Resource, object: &Value, out: &mut Causes) {
    for (index, rule) in list(object, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        if list(rule, "verbs").is_empty() {
            out.push(Cause::required(
                child(&path, "verbs"),
                "verbs must contain at least one value",
            ));
        }
        let urls = !list(rule, "nonResourceURLs").is_empty();
        if urls {
            if res.namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                out.push(Cause::invalid(
                    child(&path, "nonResourceURLs"),
                    at(rule, "nonResourceURLs"),
                    why,
                ));
            }
            let resources = ["apiGroups", "resources", "resourceNames"];
            if resources.iter().any(|field| !list(rule, field).is_empty()) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                out.push(Cause::invalid(
                    child(&path, "nonResourceURLs"),
                    at(rule, "nonResourceURLs"),
                    why,
                ));
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            let why = "resource rules must supply at least one api group";
            out.push(Cause::required(child(&path, "apiGroups"), why));
        }
        if list(rule, "resources").is_empty() {
            let why = "resource rules must supply at least one resource";
            out.push(Cause::required(child(&path, "resources"), why));
        }
    }
}

pub(super) fn role_binding(res: &Resource, object: &Value, old: Option<&Value>, out: &mut Causes) {
    let role = at(object, "roleRef");
    let group = text(role, "apiGroup");
    if group != "rbac.authorization.k8s.io" {
        let path = "roleRef.apiGroup";
        out.push(Cause::not_supported(
            path,
            &group.into(),
            &["rbac.authorization.k8s.io"],
        ));
    }
    let kinds: &[&str] = if res.namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(role, "kind")) {
        out.push(Cause::not_supported(
            "roleRef.kind",
            &text(role, "kind").into(),
            kinds,
        ));
    }
    required(role, "name", "roleRef", out);
    if old.is_some_and(|old| !same(role, at(old, "roleRef"))) {
        out.push(Cause::invalid("roleRef", role, "cannot change roleRef"));
    }
    for (index, subject) in list(object, "subjects").iter().enumerate() {
        let path = format!("subjects[{index}]");
        required(subject, "name", &path, out);
        match text(subject, "kind") {
            "ServiceAccount" => {
                if text(subject, "namespace").is_empty() && !res.namespaced {
                    out.push(Cause::required(child(&path, "namespace"), ""));
                }
            }
            "User" | "Group" => {}
            other => {
                let kinds = &["ServiceAccount", "User", "Group"];
                out.push(Cause::not_supported(child(&path, "kind"), &other.into(), kinds));
            }
        }
    }
}

pub(super) fn priority_class(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let name = text(object, "metadata.name");
    if old.is_none() && name.starts_with("system-") {
        let system = matches!(name, "system-node-critical" | "system-cluster-critical");
        if !system {
            let why = "priority class names with 'system-' prefix are reserved for system use only. error: name is not \
                       one of the system priority classes";
            out.push(Cause::forbidden("metadata.name", why));
        }
    } else if int(object, "value").is_some_and(|value| value > 1_000_000_000) && !name.starts_with("system-")
    {
        let why = "maximum allowed value of a user defined priority is 1000000000";
        out.push(Cause::forbidden("value", why));
    }
    one_of(
        object,
        "preemptionPolicy",
        "",
        &["PreemptLowerPriority", "Never"],
        false,
        out,
    );
    if let Some(old) = old {
        if at(object, "value") != at(old, "value") {
            out.push(Cause::invalid("value", at(object, "value"), IMMUTABLE));
        }
        super::immutable(object, old, "preemptionPolicy", out);
    }
}

pub(super) fn signing_request(object: &Value, out: &mut Causes) {
    for field in ["request", "signerName"] {
        required(at(object, "spec"), field, "spec", out);
    }
    if list(object, "spec.usages").is_empty() {
        out.push(Cause::required(
            "spec.usages",
            "usages must contain at least one value",
        ));
    }
    if let Some(seconds) = int(object, "spec.expirationSeconds").filter(|seconds| *seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        out.push(Cause::invalid("spec.expirationSeconds", &seconds.into(), why));
    }
}
