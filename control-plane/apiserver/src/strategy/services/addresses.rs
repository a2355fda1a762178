//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, as the dual-stack documentation has them:
//! <https://kubernetes.io/docs/concepts/services-networking/dual-stack/>.

use std::net::IpAddr;

use api::status::Cause;
use serde_json::{Value, json};

use super::{Claim, Item, Services};

const NONE: &str = "None";

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn texts(service: &Value, field: &str) -> Vec<String> {
    let list = service["spec"][field].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(Into::into).collect()
}

/// Whether services of this type have addresses.
fn has_addresses(service: &Value) -> bool {
    text(service, "type") != "ExternalName"
}

/// Fills in families and addresses, taking what is new.
pub(super) fn assign(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
) {
    if !service["spec"].is_object() {
        return;
    }
    let old = old.filter(|old| has_addresses(old));
    if !has_addresses(service) {
        return clear(service, old);
    }
    if let Some(old) = old {
        carry_over(service, old);
    }
    normalise(service);
    check_unchanged(service, old, causes);
    let wanted = families(services, service, old, causes);
    if causes.is_empty() {
        allocate(services, service, old, &wanted, claim, causes);
    }
}

/// An ExternalName service has no addresses; those it had before are given back.
fn clear(service: &mut Value, old: Option<&Value>) {
    if let (Some(spec), Some(_)) = (service["spec"].as_object_mut(), old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.shift_remove(field);
        }
    }
}

/// A client that sends a service without its addresses does not mean to give them up.
fn carry_over(service: &mut Value, old: &Value) {
    let unset = text(service, "clusterIP").is_empty() && texts(service, "clusterIPs").is_empty();
    if unset {
        service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if service["spec"].get(field).is_none_or(Value::is_null) && !old["spec"][field].is_null() {
            service["spec"][field] = old["spec"][field].clone();
        }
    }
    // Clients that know only `clusterIP` leave the list as it was, or out.
    if texts(service, "clusterIPs").is_empty() && text(service, "clusterIP") == text(old, "clusterIP") {
        service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
}

/// The single address and the list say the same.
fn normalise(service: &mut Value) {
    let (ip, ips) = (
        text(service, "clusterIP").to_owned(),
        texts(service, "clusterIPs"),
    );
    if ips.is_empty() && !ip.is_empty() {
        service["spec"]["clusterIPs"] = json!([ip]);
    } else if ip.is_empty() && !ips.is_empty() {
        service["spec"]["clusterIP"] = ips[0].clone().into();
    }
}

fn check_unchanged(service: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let ips = texts(service, "clusterIPs");
    if let Some(first) = ips.first()
        && first != text(service, "clusterIP")
    {
        causes.push(Cause::invalid(
            "spec.clusterIPs",
            &json!(ips),
            "first value must match `clusterIP`",
        ));
    }
    let Some(old) = old else { return };
    for (i, (is, was)) in ips.iter().zip(texts(old, "clusterIPs")).enumerate() {
        if *is != was {
            let value = json!(ips);
            causes.push(Cause::invalid(
                format!("spec.clusterIPs[{i}]"),
                &value,
                "may not change once set",
            ));
        }
    }
}

fn family_of(ip: &str) -> Option<&'static str> {
    ip.parse::<IpAddr>()
        .ok()
        .map(|ip| if ip.is_ipv6() { "IPv6" } else { "IPv4" })
}

/// The families the service is to have, in order; also writes policy and families into it.
fn families(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) -> Vec<String> {
    let ours = services.families();
    let mut ips = texts(service, "clusterIPs");
    let headless = text(service, "clusterIP") == NONE;
    let mut wanted = texts(service, "ipFamilies");
    let policy = policy(service, &wanted, &ips, headless);
    check_policy(&policy, &ours, &wanted, causes);
    if policy == "SingleStack" && old.is_some() {
        // From two families back to one: the second address goes.
        wanted.truncate(1);
        ips.truncate(1);
    }
    for family in ips.iter().filter_map(|ip| family_of(ip)) {
        if !wanted.iter().any(|f| f == family) {
            wanted.push(family.into());
        }
    }
    let selectorless = headless
        && service["spec"]["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty);
    let count = match policy.as_str() {
        "SingleStack" => 1,
        // Without a selector the endpoints, which are made by hand, can be of either family.
        "RequireDualStack" if selectorless => 2,
        _ => ours.len().min(2),
    };
    for family in ours
        .iter()
        .copied()
        .chain(["IPv4", "IPv6"])
        .take(count.max(ours.len()))
    {
        if wanted.len() < count && !wanted.iter().any(|f| f == family) {
            wanted.push(family.into());
        }
    }
    service["spec"]["ipFamilies"] = json!(wanted);
    service["spec"]["ipFamilyPolicy"] = policy.into();
    if !headless {
        service["spec"]["clusterIPs"] = json!(ips);
    }
    for (i, family) in wanted.iter().enumerate().filter(|_| !selectorless) {
        if !ours.contains(&family.as_str()) {
            let detail = "not configured on this cluster";
            causes.push(Cause::invalid(
                format!("spec.ipFamilies[{i}]"),
                &json!(family),
                detail,
            ));
        }
    }
    wanted
}

fn policy(service: &Value, families: &[String], ips: &[String], headless: bool) -> String {
    let given = text(service, "ipFamilyPolicy");
    if !given.is_empty() {
        return given.into();
    }
    let selectorless = service["spec"]["selector"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    if families.len() > 1 || ips.len() > 1 || (headless && selectorless && families.is_empty()) {
        return "RequireDualStack".into();
    }
    "SingleStack".into()
}

fn check_policy(policy: &str, ours: &[&str], families: &[String], causes: &mut Vec<Cause>) {
    if policy == "RequireDualStack" && ours.len() < 2 && families.len() > 1 {
        let detail = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &policy.into(), detail));
    }
}

fn allocate(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    wanted: &[String],
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
) {
    if text(service, "clusterIP") == NONE {
        service["spec"]["clusterIPs"] = json!([NONE]);
        return;
    }
    let mut ips = texts(service, "clusterIPs");
    let had = old.map(|old| texts(old, "clusterIPs")).unwrap_or_default();
    for (i, ip) in ips.iter().enumerate().filter(|(_, ip)| !had.contains(ip)) {
        take(services, i, ip, claim, causes);
    }
    for family in wanted.iter().skip(ips.len()) {
        match services.draw_address(family) {
            Some(ip) => {
                claim.note(Item::Address(ip));
                ips.push(ip.to_string());
            }
            None => causes.push(Cause::invalid(
                "spec.clusterIPs",
                &json!(ips),
                "failed to allocate IP: range is full",
            )),
        }
    }
    if let Some(first) = ips.first() {
        service["spec"]["clusterIP"] = first.clone().into();
    }
    service["spec"]["clusterIPs"] = json!(ips);
}

/// Takes an address that was asked for.
fn take(services: &Services, i: usize, ip: &str, claim: &mut Claim, causes: &mut Vec<Cause>) {
    let field = format!("spec.clusterIPs[{i}]");
    let mut refuse = |detail: String| causes.push(Cause::invalid_str(field.clone(), ip, &detail));
    let Ok(address) = ip.parse::<IpAddr>() else {
        return refuse("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into());
    };
    if services.place(address).is_none() {
        let ranges: Vec<String> = services.cidrs.iter().map(ToString::to_string).collect();
        let ranges = ranges.join(",");
        return refuse(format!(
            "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The \
                               range of valid IPs is {ranges}"
        ));
    }
    if !claim.take(Item::Address(address)) {
        refuse(format!(
            "failed to allocate IP {ip}: provided IP is already allocated"
        ));
    }
}
