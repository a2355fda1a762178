//! Rules for Services.

use super::super::access::{at, has, int, list, text};
use super::{Causes, PROTOCOLS, child, invalid_each, labels, one_of, port_number, port_or_name, required};
use crate::names;
use crate::status::Cause;
use serde_json::{Value, json};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];

/// A Service; `old` is there on an update.
pub(super) fn service(service: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(service, "spec");
    let kind = text(spec, "type");
    let headless =
        list(spec, "clusterIPs").first().is_some_and(|ip| ip == "None") || text(spec, "clusterIP") == "None";
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        out.push(Cause::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            out.push(Cause::invalid_str("spec.clusterIPs[0]", "None", &why));
        }
        "ExternalName" => external_name(spec, out),
        _ => {}
    }
    ports(spec, kind, out);
    labels(at(spec, "selector"), "spec.selector", out);
    session(spec, out);
    addresses(spec, kind, headless, out);
    one_of(spec, "type", "spec", TYPES, true, out);
    traffic(spec, kind, out);
    if let Some(old) = old {
        update(spec, at(old, "spec"), out);
    }
}

fn external_name(spec: &Value, out: &mut Causes) {
    for field in ["clusterIPs", "ipFamilies"] {
        if !list(spec, field).is_empty() {
            out.push(Cause::forbidden(
                child("spec", field),
                "may not be set for ExternalName services",
            ));
        }
    }
    super::forbid(
        spec,
        "ipFamilyPolicy",
        "spec",
        "may not be set for ExternalName services",
        out,
    );
    if required(spec, "externalName", "spec", out).is_some() {
        let name = text(spec, "externalName");
        invalid_each(
            out,
            "spec.externalName",
            name,
            names::dns_subdomain(name.trim_end_matches('.')),
        );
    }
}

fn ports(spec: &Value, kind: &str, out: &mut Causes) {
    let ports = list(spec, "ports");
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() && ports.len() > 1 {
            out.push(Cause::required(child(&path, "name"), ""));
        } else if !name.is_empty() {
            invalid_each(out, &child(&path, "name"), name, names::dns_label(name));
            if seen.contains(&name) {
                out.push(Cause::duplicate(child(&path, "name"), &name.into()));
            }
            seen.push(name);
        }
        port_number(at(port, "port"), &child(&path, "port"), out);
        one_of(port, "protocol", &path, PROTOCOLS, true, out);
        port_or_name(port, "targetPort", &path, out);
        if let Some(protocol) = at(port, "appProtocol").as_str() {
            invalid_each(
                out,
                &child(&path, "appProtocol"),
                protocol,
                names::qualified_name(protocol),
            );
        }
        if kind == "ClusterIP" && int(port, "nodePort").unwrap_or(0) != 0 {
            let why = "may not be used when `type` is 'ClusterIP'";
            out.push(Cause::forbidden(child(&path, "nodePort"), why));
        }
    }
    duplicates(ports, out);
}

fn duplicates(ports: &[Value], out: &mut Causes) {
    for (index, port) in ports.iter().enumerate() {
        let same = |field: &str| {
            let number = int(port, field).unwrap_or(0);
            let before = ports[..index]
                .iter()
                .filter(|p| text(p, "protocol") == text(port, "protocol"));
            number != 0 && before.into_iter().any(|p| int(p, field) == Some(number))
        };
        if same("nodePort") {
            out.push(Cause::duplicate(
                format!("spec.ports[{index}].nodePort"),
                at(port, "nodePort"),
            ));
        }
        if same("port") {
            let key = json!({"protocol": at(port, "protocol"), "port": at(port, "port")});
            out.push(Cause::duplicate(format!("spec.ports[{index}]"), &key));
        }
    }
}

fn session(spec: &Value, out: &mut Causes) {
    one_of(spec, "sessionAffinity", "spec", &["ClientIP", "None"], true, out);
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match (
        text(spec, "sessionAffinity"),
        int(spec, "sessionAffinityConfig.clientIP.timeoutSeconds"),
    ) {
        ("ClientIP", None) => out.push(Cause::required(path, "when session affinity type is ClientIP")),
        ("ClientIP", Some(seconds)) if !(1..=86400).contains(&seconds) => {
            out.push(Cause::invalid(
                path,
                &seconds.into(),
                "must be greater than 0 and less than 86400",
            ));
        }
        ("None", _) if has(spec, "sessionAffinityConfig") => {
            let why = "must not be set when session affinity is None";
            out.push(Cause::forbidden("spec.sessionAffinityConfig", why));
        }
        _ => {}
    }
}

fn addresses(spec: &Value, kind: &str, headless: bool, out: &mut Causes) {
    for (index, ip) in list(spec, "externalIPs").iter().enumerate() {
        super::endpoint_ip(
            ip.as_str().unwrap_or_default(),
            &format!("spec.externalIPs[{index}]"),
            out,
        );
    }
    if kind == "ExternalName" {
        return;
    }
    let ips = list(spec, "clusterIPs");
    let first = text(spec, "clusterIP");
    match (first.is_empty(), ips.first()) {
        (false, Some(ip)) if ip != first => {
            out.push(Cause::invalid(
                "spec.clusterIPs",
                at(spec, "clusterIPs"),
                "first value must match `clusterIP`",
            ));
        }
        (true, Some(_)) => {
            let why = "must be empty when `clusterIP` is not specified";
            out.push(Cause::invalid("spec.clusterIPs", at(spec, "clusterIPs"), why));
        }
        _ => {}
    }
    let bad = |ip: &&Value| super::ip(ip.as_str().unwrap_or_default()).is_none();
    for (index, ip) in ips
        .iter()
        .enumerate()
        .filter(|(_, ip)| !(headless && *ip == "None") && bad(ip))
    {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        out.push(Cause::invalid(format!("spec.clusterIPs[{index}]"), ip, why));
    }
    if ips.is_empty() && !headless && !first.is_empty() && super::ip(first).is_none() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        out.push(Cause::invalid_str("spec.clusterIPs[0]", first, why));
    }
    if ips.len() > 2 {
        out.push(Cause::invalid(
            "spec.clusterIPs",
            at(spec, "clusterIPs"),
            "may only hold up to 2 values",
        ));
    }
    families(spec, out);
}

fn families(spec: &Value, out: &mut Causes) {
    let families = list(spec, "ipFamilies");
    for (index, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        if !FAMILIES.contains(&family.as_str().unwrap_or_default()) {
            out.push(Cause::not_supported(path.clone(), family, FAMILIES));
        }
        if families[..index].contains(family) {
            out.push(Cause::duplicate(path, family));
        }
    }
    one_of(spec, "ipFamilyPolicy", "spec", FAMILY_POLICIES, false, out);
}

fn traffic(spec: &Value, kind: &str, out: &mut Causes) {
    let outside = matches!(kind, "NodePort" | "LoadBalancer");
    let external = outside || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    let policy = text(spec, "externalTrafficPolicy");
    if !external && !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        out.push(Cause::invalid_str("spec.externalTrafficPolicy", policy, why));
    } else if external {
        one_of(
            spec,
            "externalTrafficPolicy",
            "spec",
            &["Cluster", "Local"],
            true,
            out,
        );
    }
    one_of(
        spec,
        "internalTrafficPolicy",
        "spec",
        &["Cluster", "Local"],
        false,
        out,
    );
    let distributions = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    one_of(spec, "trafficDistribution", "spec", distributions, false, out);
    let health = int(spec, "healthCheckNodePort").unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        out.push(Cause::invalid("spec.healthCheckNodePort", &health.into(), why));
    }
    if kind != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        super::forbid(spec, "allocateLoadBalancerNodePorts", "spec", why, out);
        super::forbid(spec, "loadBalancerClass", "spec", why, out);
        if !list(spec, "loadBalancerSourceRanges").is_empty() {
            out.push(Cause::forbidden("spec.LoadBalancerSourceRanges", why));
        }
    }
}

/// Addresses stay while the Service has any: only a change from or to `ExternalName` may move them.
fn update(spec: &Value, old: &Value, out: &mut Causes) {
    if [spec, old]
        .iter()
        .any(|spec| text(spec, "type") == "ExternalName")
    {
        return;
    }
    let (new_ips, old_ips) = (list(spec, "clusterIPs"), list(old, "clusterIPs"));
    let shown = at(spec, "clusterIPs");
    match (new_ips.first(), old_ips.first()) {
        (None, Some(_)) => {
            out.push(Cause::invalid(
                "spec.clusterIPs[0]",
                shown,
                "primary clusterIP can not be unset",
            ));
        }
        (Some(new), Some(old)) if new != old => {
            out.push(Cause::invalid(
                "spec.clusterIPs[0]",
                shown,
                "may not change once set",
            ));
        }
        _ => {}
    }
    if let (Some(new), Some(old)) = (new_ips.get(1), old_ips.get(1))
        && new != old
    {
        out.push(Cause::invalid(
            "spec.clusterIPs[1]",
            shown,
            "may not change once set",
        ));
    }
    if let (Some(new), Some(old)) = (list(spec, "ipFamilies").first(), list(old, "ipFamilies").first())
        && new != old
    {
        out.push(Cause::invalid(
            "spec.ipFamilies[0]",
            at(spec, "ipFamilies"),
            "may not change once set",
        ));
    }
}
