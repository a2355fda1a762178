//! Rules for containers: names, images, ports, environment, mounts, resources, probes, hooks.

use super::super::access::{at, entries, has, int, list, text};
use super::volume::{self, Volumes};
use super::{
    Causes, PROTOCOLS, child, invalid_each, not_negative, one_of, port_number, port_or_name, required,
};
use crate::names;
use crate::quantity::Quantity;
use crate::status::Cause;
use serde_json::Value;

const PULL: &[&str] = &["Always", "IfNotPresent", "Never"];
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const STANDARD: &[&str] = &["cpu", "ephemeral-storage", "memory"];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const NOT_IN_INIT: &str = "may not be set for init containers without restartPolicy=Always";

/// All containers of a pod spec.
pub(super) fn all(spec: &Value, path: &str, volumes: &Volumes<'_>, out: &mut Causes) {
    let main = list(spec, "containers");
    if main.is_empty() {
        out.push(Cause::required(child(path, "containers"), ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, container) in main.iter().enumerate() {
        let path = format!("{path}.containers[{index}]");
        common(container, &path, volumes, out);
        unique_name(container, &path, &mut seen, out);
        hooks_and_probes(container, &path, out);
    }
    host_ports(main, &child(path, "containers"), out);
    for (index, container) in list(spec, "initContainers").iter().enumerate() {
        let path = format!("{path}.initContainers[{index}]");
        common(container, &path, volumes, out);
        unique_name(container, &path, &mut seen, out);
        init_only(container, &path, out);
    }
    for (index, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = format!("{path}.ephemeralContainers[{index}]");
        common(container, &path, volumes, out);
        unique_name(container, &path, &mut seen, out);
        for field in [
            "ports",
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            super::forbid(
                container,
                field,
                &path,
                "cannot be set for an Ephemeral Container",
                out,
            );
        }
    }
}

fn unique_name<'a>(container: &'a Value, path: &str, seen: &mut Vec<&'a str>, out: &mut Causes) {
    let name = text(container, "name");
    if !name.is_empty() && seen.contains(&name) {
        out.push(Cause::duplicate(child(path, "name"), &name.into()));
    }
    seen.push(name);
}

fn common(container: &Value, path: &str, volumes: &Volumes<'_>, out: &mut Causes) {
    if let Some(name) = required(container, "name", path, out) {
        invalid_each(out, &child(path, "name"), name, names::dns_label(name));
    }
    if let Some(image) = required(container, "image", path, out).filter(|image| image.trim() != *image) {
        let why = "must not have leading or trailing whitespace";
        out.push(Cause::invalid_str(child(path, "image"), image, why));
    }
    one_of(
        container,
        "terminationMessagePolicy",
        path,
        &["File", "FallbackToLogsOnError"],
        true,
        out,
    );
    ports(list(container, "ports"), &child(path, "ports"), out);
    env(list(container, "env"), &child(path, "env"), out);
    env_from(list(container, "envFrom"), &child(path, "envFrom"), out);
    volume::mounts(container, path, volumes, out);
    one_of(container, "imagePullPolicy", path, PULL, true, out);
    resources(at(container, "resources"), &child(path, "resources"), out);
    security(
        at(container, "securityContext"),
        &child(path, "securityContext"),
        out,
    );
}

fn security(context: &Value, path: &str, out: &mut Causes) {
    for field in ["runAsUser", "runAsGroup"] {
        super::pod::identity(context, field, path, "user", out);
    }
    if context["allowPrivilegeEscalation"] == false && context["privileged"] == true {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        out.push(Cause::invalid(path, context, why));
    }
}

fn ports(ports: &[Value], path: &str, out: &mut Causes) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = names::port_name(name);
            if problems.is_empty() && seen.contains(&name) {
                out.push(Cause::duplicate(child(&path, "name"), &name.into()));
            }
            invalid_each(out, &child(&path, "name"), name, problems);
            seen.push(name);
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => out.push(Cause::required(child(&path, "containerPort"), "")),
            number => port_number(&number.into(), &child(&path, "containerPort"), out),
        }
        if let Some(number) = int(port, "hostPort").filter(|number| *number != 0) {
            port_number(&number.into(), &child(&path, "hostPort"), out);
        }
        one_of(port, "protocol", &path, PROTOCOLS, true, out);
    }
}

fn host_ports(containers: &[Value], path: &str, out: &mut Causes) {
    let mut seen: Vec<String> = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (place, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|number| *number != 0) else {
                continue;
            };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                let at_port = format!("{path}[{index}].ports[{place}].hostPort");
                out.push(Cause::duplicate(at_port, &key.as_str().into()));
            }
            seen.push(key);
        }
    }
}

fn env(vars: &[Value], path: &str, out: &mut Causes) {
    for (index, var) in vars.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(name) = required(var, "name", &path, out) {
            invalid_each(out, &child(&path, "name"), name, names::env_var_name(name));
        }
        if has(var, "valueFrom") {
            value_from(var, &child(&path, "valueFrom"), out);
        }
    }
}

fn value_from(var: &Value, path: &str, out: &mut Causes) {
    let source = at(var, "valueFrom");
    let mut sources = 0;
    for (kind, value) in entries(source, "").filter(|(_, value)| !value.is_null()) {
        sources += 1;
        let path = child(path, kind);
        match kind {
            "fieldRef" => field_ref(value, &path, out),
            "resourceFieldRef" if text(value, "resource").is_empty() => {
                out.push(Cause::required(child(&path, "resource"), ""));
            }
            "configMapKeyRef" | "secretKeyRef" => key_ref(value, &path, out),
            _ => {}
        }
    }
    let problem = if sources == 0 {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
    } else if !text(var, "value").is_empty() {
        "may not be specified when `value` is not empty"
    } else if sources > 1 {
        "may not have more than one field specified at a time"
    } else {
        return;
    };
    out.push(Cause::invalid_str(path, "", problem));
}

fn field_ref(reference: &Value, path: &str, out: &mut Causes) {
    let field = text(reference, "fieldPath");
    if text(reference, "apiVersion").is_empty() {
        out.push(Cause::required(child(path, "apiVersion"), ""));
    }
    let subscripted = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|p| field.starts_with(p));
    if field.is_empty() {
        out.push(Cause::required(child(path, "fieldPath"), ""));
    } else if subscripted && field.ends_with("']") {
        let key = field.split('\'').nth(1).unwrap_or_default();
        invalid_each(out, path, key, names::qualified_name(&key.to_lowercase()));
    } else if !FIELDS.contains(&field) {
        out.push(Cause::not_supported(
            child(path, "fieldPath"),
            &field.into(),
            FIELDS,
        ));
    }
}

fn key_ref(reference: &Value, path: &str, out: &mut Causes) {
    required(reference, "name", path, out);
    if let Some(key) = required(reference, "key", path, out) {
        invalid_each(out, &child(path, "key"), key, names::config_map_key(key));
    }
}

fn env_from(sources: &[Value], path: &str, out: &mut Causes) {
    for (index, source) in sources.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid_each(out, &child(&path, "prefix"), prefix, names::env_var_name(prefix));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|kind| has(source, kind))
            .collect();
        for kind in &given {
            required(at(source, kind), "name", &child(&path, kind), out);
        }
        match given.len() {
            0 => out.push(Cause::invalid_str(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => out.push(Cause::invalid_str(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

/// Requests and limits.
pub(super) fn resources(resources: &Value, path: &str, out: &mut Causes) {
    for side in ["limits", "requests"] {
        for (name, value) in entries(resources, side) {
            let path = format!("{path}.{side}[{name}]");
            resource_name(name, &path, out);
            quantity(name, value, &path, out);
        }
    }
    for (name, request) in entries(resources, "requests") {
        let limit = at(resources, "limits").get(name);
        let overcommit = !name.contains('/') && !name.starts_with("hugepages-");
        match (parsed(request), limit.and_then(parsed)) {
            (Some(request), Some(limit)) if request != limit && !overcommit => {
                let why = format!("must be equal to {name} limit of {limit}");
                out.push(Cause::invalid_str(
                    child(path, "requests"),
                    &request.to_string(),
                    &why,
                ));
            }
            (Some(request), Some(limit)) if request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                out.push(Cause::invalid_str(
                    child(path, "requests"),
                    &request.to_string(),
                    &why,
                ));
            }
            (Some(_), None) if !overcommit => {
                out.push(Cause::required(
                    child(path, "limits"),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
}

fn parsed(value: &Value) -> Option<Quantity> {
    Quantity::from_json(value).ok()
}

fn resource_name(name: &str, path: &str, out: &mut Causes) {
    let problems = names::qualified_name(name);
    if !problems.is_empty() {
        invalid_each(out, path, name, problems);
    } else if !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        let why = "must be a standard resource type or fully qualified";
        out.push(Cause::invalid_str(path, name, why));
        out.push(Cause::invalid_str(
            path,
            name,
            "must be a standard resource for containers",
        ));
    } else if name.starts_with("requests.") {
        out.push(Cause::invalid_str(
            path,
            name,
            "doesn't follow extended resource name standard",
        ));
    }
}

/// An amount: not negative, and whole for resources that come in pieces.
pub(super) fn quantity(name: &str, value: &Value, path: &str, out: &mut Causes) {
    let Some(quantity) = parsed(value) else {
        let why = crate::quantity::QuantityError::Malformed.to_string();
        out.push(Cause::invalid(path, value, &why));
        return;
    };
    if quantity.sign() < 0 {
        out.push(Cause::invalid_str(
            path,
            &quantity.to_string(),
            super::NOT_NEGATIVE,
        ));
    }
    let whole = name.contains('/') || matches!(name, "pods" | "services");
    if whole && quantity.milli_value() % 1000 != 0 {
        out.push(Cause::invalid(path, value, "must be an integer"));
    }
}

fn hooks_and_probes(container: &Value, path: &str, out: &mut Causes) {
    for hook in ["postStart", "preStop"] {
        let handler = at(at(container, "lifecycle"), hook);
        if !handler.is_null() {
            self::handler(handler, &format!("{path}.lifecycle.{hook}"), out);
        }
    }
    for name in PROBES.into_iter().filter(|name| has(container, name)) {
        probe(
            at(container, name),
            &child(path, name),
            name != "readinessProbe",
            out,
        );
    }
}

fn init_only(container: &Value, path: &str, out: &mut Causes) {
    if text(container, "restartPolicy") == "Always" {
        hooks_and_probes(container, path, out);
        return;
    }
    for field in ["lifecycle"].into_iter().chain(PROBES) {
        super::forbid(container, field, path, NOT_IN_INIT, out);
    }
}

fn probe(probe: &Value, path: &str, one_success: bool, out: &mut Causes) {
    handler(probe, path, out);
    let times = [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ];
    not_negative(probe, &times, path, out);
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds") {
        if !one_success {
            let why = "must not be set for readinessProbes";
            let at_field = child(path, "terminationGracePeriodSeconds");
            out.push(Cause::invalid(at_field, &seconds.into(), why));
        } else if seconds <= 0 {
            let at_field = child(path, "terminationGracePeriodSeconds");
            out.push(Cause::invalid(
                at_field,
                &seconds.into(),
                "must be greater than 0",
            ));
        }
    }
    let successes = int(probe, "successThreshold").unwrap_or(1);
    if one_success && successes != 1 {
        out.push(Cause::invalid(
            child(path, "successThreshold"),
            &successes.into(),
            "must be 1",
        ));
    }
}

fn handler(handler: &Value, path: &str, out: &mut Causes) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let given: Vec<&str> = kinds.into_iter().filter(|kind| has(handler, kind)).collect();
    let Some((first, others)) = given.split_first() else {
        out.push(Cause::required(path, "must specify a handler type"));
        return;
    };
    one_handler(at(handler, first), first, &child(path, first), out);
    for other in others {
        out.push(Cause::forbidden(
            child(path, other),
            "may not specify more than 1 handler type",
        ));
    }
}

fn one_handler(handler: &Value, kind: &str, path: &str, out: &mut Causes) {
    match kind {
        "exec" if list(handler, "command").is_empty() => {
            out.push(Cause::required(child(path, "command"), ""))
        }
        "httpGet" => {
            required(handler, "path", path, out);
            port_or_name(handler, "port", path, out);
            one_of(handler, "scheme", path, &["HTTP", "HTTPS"], false, out);
        }
        "tcpSocket" | "grpc" => port_or_name(handler, "port", path, out),
        _ => {}
    }
}
