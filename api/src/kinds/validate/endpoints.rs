//! Rules for Endpoints and EndpointSlices.

use super::super::access::{at, has, int, list, text};
use super::{Causes, PROTOCOLS, child, endpoint_ip, invalid_each, one_of, port_number, required};
use crate::names;
use crate::status::Cause;
use serde_json::Value;

const FAMILIES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;

pub(super) fn endpoints(object: &Value, out: &mut Causes) {
    for (index, subset) in list(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            out.push(Cause::required(
                path.clone(),
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for group in ["addresses", "notReadyAddresses"] {
            for (place, address) in list(subset, group).iter().enumerate() {
                endpoint_ip(text(address, "ip"), &format!("{path}.{group}[{place}].ip"), out);
            }
        }
        let ports = list(subset, "ports");
        for (place, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{place}]");
            if ports.len() > 1 {
                required(port, "name", &path, out);
            }
            port_number(at(port, "port"), &child(&path, "port"), out);
            one_of(port, "protocol", &path, PROTOCOLS, true, out);
        }
    }
}

pub(super) fn slice(slice: &Value, old: Option<&Value>, out: &mut Causes) {
    one_of(slice, "addressType", "", FAMILIES, true, out);
    if let Some(old) = old {
        super::immutable(slice, old, "addressType", out);
    }
    let all = list(slice, "endpoints");
    if all.len() > MAX_ENDPOINTS {
        out.push(Cause::too_many("endpoints", all.len(), MAX_ENDPOINTS));
        return;
    }
    for (index, endpoint) in all.iter().enumerate() {
        one_endpoint(
            endpoint,
            text(slice, "addressType"),
            &format!("endpoints[{index}]"),
            out,
        );
    }
    slice_ports(list(slice, "ports"), out);
}

fn one_endpoint(endpoint: &Value, family: &str, path: &str, out: &mut Causes) {
    let addresses = list(endpoint, "addresses");
    if addresses.is_empty() {
        out.push(Cause::required(
            child(path, "addresses"),
            "must contain at least 1 address",
        ));
    } else if addresses.len() > MAX_ADDRESSES {
        out.push(Cause::too_many(
            child(path, "addresses"),
            addresses.len(),
            MAX_ADDRESSES,
        ));
    }
    for (index, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let path = format!("{path}.addresses[{index}]");
        match family {
            "FQDN" => invalid_each(out, &path, address, names::dns_subdomain(address)),
            "IPv4" if super::ip(address).is_some_and(|ip| ip.is_ipv6()) => {
                out.push(Cause::invalid_str(path, address, "must be an IPv4 address"));
            }
            "IPv6" if super::ip(address).is_some_and(|ip| ip.is_ipv4()) => {
                out.push(Cause::invalid_str(path, address, "must be an IPv6 address"));
            }
            _ => endpoint_ip(address, &path, out),
        }
    }
    for (field, rule) in [
        ("nodeName", names::dns_subdomain as fn(&str) -> Vec<String>),
        ("hostname", names::dns_label),
    ] {
        if has(endpoint, field) {
            let value = text(endpoint, field);
            invalid_each(out, &child(path, field), value, rule(value));
        }
    }
}

fn slice_ports(ports: &[Value], out: &mut Causes) {
    if ports.len() > MAX_PORTS {
        out.push(Cause::too_many("ports", ports.len(), MAX_PORTS));
        return;
    }
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_each(out, &child(&path, "name"), name, names::dns_label(name));
        }
        if ports[..index].iter().any(|before| text(before, "name") == name) {
            out.push(Cause::duplicate(child(&path, "name"), &name.into()));
        }
        if int(port, "port").is_some() {
            port_number(at(port, "port"), &child(&path, "port"), out);
        }
        one_of(port, "protocol", &path, PROTOCOLS, true, out);
    }
}
