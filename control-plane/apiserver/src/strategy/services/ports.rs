//! `nodePort` of each port and `healthCheckNodePort`.

use api::status::Cause;
use serde_json::Value;

use super::{Claim, Item, Services};

/// Whether the service needs a port on each node.
fn needs_node_ports(service: &Value) -> bool {
    match service["spec"]["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn may_have_node_ports(service: &Value) -> bool {
    matches!(
        service["spec"]["type"].as_str(),
        Some("NodePort" | "LoadBalancer")
    )
}

fn needs_health_check(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Fills in ports, taking what is new.
pub(super) fn assign(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
) {
    let had = old.map(|old| services.held(old)).unwrap_or_default();
    node_ports(services, service, old, &had, claim, causes);
    health_check(services, service, old, &had, claim, causes);
}

fn node_ports(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    had: &[Item],
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
) {
    let (needed, allowed) = (needs_node_ports(service), may_have_node_ports(service));
    let was_allowed = old.is_some_and(may_have_node_ports);
    let Some(ports) = service["spec"]["ports"].as_array_mut() else {
        return;
    };
    let mut ours: Vec<(u64, String)> = Vec::new();
    for (i, port) in ports.iter_mut().enumerate() {
        if !allowed {
            // A service that stops being reachable on nodes gives its ports back.
            if let (Some(port), true) = (port.as_object_mut(), was_allowed) {
                port.shift_remove("nodePort");
            }
            continue;
        }
        if number(&port["nodePort"]) == 0
            && let Some(same) = old.and_then(|old| same_port(old, port))
        {
            port["nodePort"] = same.into();
        }
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let wanted = number(&port["nodePort"]);
        // TCP and UDP may share a port inside one service.
        let shared = ours.iter().any(|(n, p)| *n == wanted && *p != protocol);
        let Some(number) = one(
            services,
            wanted,
            needed,
            shared,
            had,
            claim,
            causes,
            &format!("spec.ports[{i}].nodePort"),
        ) else {
            continue;
        };
        port["nodePort"] = number.into();
        ours.push((u64::from(number), protocol));
    }
}

/// The node port the same port (number and protocol) had before.
fn same_port(old: &Value, port: &Value) -> Option<u64> {
    let ports = old["spec"]["ports"].as_array()?;
    let same = ports
        .iter()
        .find(|was| was["port"] == port["port"] && was["protocol"] == port["protocol"])?;
    Some(number(&same["nodePort"])).filter(|n| *n != 0)
}

/// Takes the wanted port, or any when none is wanted but one is needed.
#[allow(clippy::too_many_arguments)]
fn one(
    services: &Services,
    wanted: u64,
    needed: bool,
    shared: bool,
    had: &[Item],
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
    field: &str,
) -> Option<u16> {
    if wanted == 0 {
        let drawn = needed.then(|| services.draw_port())?;
        match drawn {
            Some(port) => claim.note(Item::Port(port)),
            None => causes.push(Cause::invalid(
                field,
                &0.into(),
                "failed to allocate a nodePort: range is full",
            )),
        }
        return drawn;
    }
    let port = u16::try_from(wanted).unwrap_or(0);
    if had.contains(&Item::Port(port)) || shared {
        return Some(port);
    }
    if !services.node_ports.contains(&port) {
        let (from, to) = (services.node_ports.start(), services.node_ports.end());
        let detail =
            format!("provided port is not in the valid range. The range of valid ports is {from}-{to}");
        causes.push(Cause::invalid(field, &wanted.into(), &detail));
    } else if !claim.take(Item::Port(port)) {
        causes.push(Cause::invalid(
            field,
            &wanted.into(),
            "provided port is already allocated",
        ));
    }
    Some(port)
}

fn health_check(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    had: &[Item],
    claim: &mut Claim,
    causes: &mut Vec<Cause>,
) {
    if !needs_health_check(service) {
        if let (Some(spec), Some(_)) = (
            service["spec"].as_object_mut(),
            old.filter(|o| needs_health_check(o)),
        ) {
            spec.shift_remove("healthCheckNodePort");
        }
        return;
    }
    let mut wanted = number(&service["spec"]["healthCheckNodePort"]);
    if wanted == 0 {
        wanted = old.map_or(0, |old| number(&old["spec"]["healthCheckNodePort"]));
    }
    if let Some(port) = one(
        services,
        wanted,
        true,
        false,
        had,
        claim,
        causes,
        "spec.healthCheckNodePort",
    ) {
        service["spec"]["healthCheckNodePort"] = port.into();
    }
}
