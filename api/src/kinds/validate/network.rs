//! Rules for Ingress, IngressClass and NetworkPolicy.

use super::super::access::{at, has, int, list, text};
use super::{Causes, PROTOCOLS, child, invalid_each, label_selector, one_of, port_or_name, required};
use crate::names;
use crate::status::Cause;
use serde_json::Value;

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];

pub(super) fn ingress(object: &Value, out: &mut Causes) {
    let spec = at(object, "spec");
    if list(spec, "rules").is_empty() && !has(spec, "defaultBackend") {
        out.push(Cause::invalid(
            "spec",
            &Value::Array(vec![]),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if has(spec, "defaultBackend") {
        backend(at(spec, "defaultBackend"), "spec.defaultBackend", out);
    }
    for (index, rule) in list(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        host(text(rule, "host"), &child(&path, "host"), out);
        if !has(rule, "http") {
            continue;
        }
        if list(rule, "http.paths").is_empty() {
            out.push(Cause::required(format!("{path}.http.paths"), ""));
        }
        for (place, entry) in list(rule, "http.paths").iter().enumerate() {
            http_path(entry, &format!("{path}.http.paths[{place}]"), out);
        }
    }
}

fn host(host: &str, path: &str, out: &mut Causes) {
    if host.is_empty() {
        return;
    }
    if super::ip(host).is_some() {
        out.push(Cause::invalid_str(
            path,
            host,
            "must be a DNS name, not an IP address",
        ));
        return;
    }
    invalid_each(
        out,
        path,
        host,
        names::dns_subdomain(host.strip_prefix("*.").unwrap_or(host)),
    );
}

fn http_path(entry: &Value, path: &str, out: &mut Causes) {
    let target = text(entry, "path");
    match text(entry, "pathType") {
        "" => out.push(Cause::required(
            child(path, "pathType"),
            "pathType must be specified",
        )),
        kind if !PATH_TYPES.contains(&kind) => {
            out.push(Cause::not_supported(
                child(path, "pathType"),
                &kind.into(),
                PATH_TYPES,
            ));
        }
        kind => {
            let needed = kind != "ImplementationSpecific" || !target.is_empty();
            if needed && !target.starts_with('/') {
                out.push(Cause::invalid_str(
                    child(path, "path"),
                    target,
                    "must be an absolute path",
                ));
            }
            let bad = ["//", "/./", "/../", "%2f", "%2F"]
                .into_iter()
                .find(|bad| target.contains(bad));
            if let Some(bad) = bad.filter(|_| kind != "ImplementationSpecific") {
                out.push(Cause::invalid_str(
                    child(path, "path"),
                    target,
                    &format!("must not contain '{bad}'"),
                ));
            }
        }
    }
    backend(at(entry, "backend"), &child(path, "backend"), out);
}

fn backend(backend: &Value, path: &str, out: &mut Causes) {
    let (service, resource) = (at(backend, "service"), at(backend, "resource"));
    match (service.is_null(), resource.is_null()) {
        (true, true) => out.push(Cause::invalid_str(
            path,
            "",
            "resource or service backend is required",
        )),
        (false, false) => {
            out.push(Cause::invalid_str(
                path,
                "",
                "cannot set both resource and service backends",
            ));
        }
        (true, false) => {}
        (false, true) => {
            required(service, "name", &child(path, "service"), out);
            let (name, number) = (
                text(service, "port.name"),
                int(service, "port.number").unwrap_or(0),
            );
            match (name.is_empty(), number == 0) {
                (true, true) => out.push(Cause::required(path, "port name or number is required")),
                (false, false) => {
                    out.push(Cause::invalid_str(
                        path,
                        "",
                        "cannot set both port name & port number",
                    ));
                }
                (false, true) => {
                    invalid_each(
                        out,
                        &format!("{path}.service.port.name"),
                        name,
                        names::port_name(name),
                    );
                }
                (true, false) => {
                    super::port_number(&number.into(), &format!("{path}.service.port.number"), out);
                }
            }
        }
    }
}

pub(super) fn ingress_class(object: &Value, old: Option<&Value>, out: &mut Causes) {
    required(at(object, "spec"), "controller", "spec", out);
    if let Some(old) = old {
        super::immutable(object, old, "spec.controller", out);
    }
}

pub(super) fn policy(object: &Value, out: &mut Causes) {
    let spec = at(object, "spec");
    label_selector(at(spec, "podSelector"), "spec.podSelector", out);
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(spec, side).iter().enumerate() {
            let path = format!("spec.{side}[{index}]");
            for (place, port) in list(rule, "ports").iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{place}]"), out);
            }
            for (place, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{place}]"), out);
            }
        }
    }
    let kinds = list(spec, "policyTypes");
    if kinds.len() > 2 {
        let why = "may not specify more than two policyTypes";
        out.push(Cause::invalid("spec.policyTypes", at(spec, "policyTypes"), why));
    }
    for (index, kind) in kinds
        .iter()
        .enumerate()
        .filter(|(_, kind)| *kind != "Ingress" && *kind != "Egress")
    {
        out.push(Cause::not_supported(
            format!("spec.policyTypes[{index}]"),
            kind,
            &["Egress", "Ingress"],
        ));
    }
}

fn policy_port(port: &Value, path: &str, out: &mut Causes) {
    one_of(port, "protocol", path, PROTOCOLS, false, out);
    if has(port, "port") {
        port_or_name(port, "port", path, out);
    }
    if let Some(end) = int(port, "endPort") {
        match int(port, "port") {
            Some(start) if end < start => {
                let why = "must be greater than or equal to `port`";
                out.push(Cause::invalid(child(path, "endPort"), &end.into(), why));
            }
            None => {
                let why = "may not be specified when `port` is not specified";
                out.push(Cause::invalid(child(path, "endPort"), &end.into(), why));
            }
            Some(_) => {}
        }
    }
}

fn policy_peer(peer: &Value, path: &str, out: &mut Causes) {
    label_selector(at(peer, "podSelector"), &child(path, "podSelector"), out);
    label_selector(
        at(peer, "namespaceSelector"),
        &child(path, "namespaceSelector"),
        out,
    );
    let selectors = has(peer, "podSelector") || has(peer, "namespaceSelector");
    match (selectors, has(peer, "ipBlock")) {
        (false, false) => out.push(Cause::required(path, "must specify a peer")),
        (true, true) => {
            out.push(Cause::forbidden(
                path,
                "may not specify both ipBlock and another peer",
            ));
        }
        (false, true) => {
            let cidr = text(peer, "ipBlock.cidr");
            if !is_cidr(cidr) {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                out.push(Cause::invalid_str(format!("{path}.ipBlock.cidr"), cidr, why));
            }
        }
        (true, false) => {}
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let bits = super::ip(address).map(|ip| if ip.is_ipv4() { 32 } else { 128 });
    length
        .parse::<u8>()
        .is_ok_and(|length| bits.is_some_and(|bits| length <= bits))
}
