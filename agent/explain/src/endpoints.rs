//! The endpoints of a service, one by one: used, or why not.
use crate::explain::{name, same_family};
use crate::snapshot::facts;
use crate::world::{Packet, World};
use agent_services::{EndpointFacts, Unused, parse_ip};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLine {
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether this packet can be sent there.
    pub used: bool,
    /// Why, or why not.
    pub reason: String,
    /// The address that it sees as the client's, where that is another than the client's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sees: Option<IpAddr>,
}

/// What the tables hold for the packet.
pub(crate) enum Usable {
    None,
    Some(BTreeSet<SocketAddr>),
    /// The client keeps this one of them.
    Kept(SocketAddr, BTreeSet<SocketAddr>),
}

/// From where the endpoints are looked at.
pub(crate) struct View<'a> {
    pub node: &'a str,
    /// Whether only endpoints of the node count for the packet.
    pub local: bool,
    pub usable: Usable,
    /// The name of the service's port, if the maps tell it.
    pub port: Option<&'a str>,
    /// What endpoints that were drawn see as the client's address.
    pub sees: &'a BTreeMap<SocketAddr, IpAddr>,
}

/// Every endpoint of the service for the packet's port.
pub(crate) fn lines(world: &World, service: &Service, packet: &Packet, view: &View<'_>) -> Vec<EndpointLine> {
    let named = view.port.and_then(|name| {
        let all = service.spec.as_ref()?.ports.as_ref()?;
        all.iter().find(|p| p.name.as_deref().unwrap_or_default() == name)
    });
    let Some(port) = named.or_else(|| world.port_of(service, packet)) else {
        return Vec::new();
    };
    let facts = facts(world, view.node, service);
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for slice in world.slices_of(service) {
        let numbers: Vec<_> = numbers(slice, port).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(ip) = endpoint.addresses.first().and_then(|a| parse_ip(a)) else {
                continue;
            };
            if numbers.is_empty() {
                let reason = format!(
                    "its slice has no port named {:?} for {}",
                    port.name.as_deref().unwrap_or_default(),
                    name(packet.proto)
                );
                all.push(line(world, endpoint, ip.to_string(), false, reason));
            }
            for number in &numbers {
                let address = SocketAddr::new(ip, *number);
                let (used, reason) = judge(endpoint, address, packet, view, facts.get(&address));
                if seen.insert(address) {
                    let mut line = line(world, endpoint, address.to_string(), used, reason);
                    line.sees = view.sees.get(&address).copied().filter(|ip| *ip != packet.src);
                    all.push(line);
                }
            }
        }
    }
    all.sort_by(|a, b| (!a.used, &a.address).cmp(&(!b.used, &b.address)));
    all
}

/// The numbers that a slice gives to the port: paired by name and protocol.
fn numbers<'a>(slice: &'a EndpointSlice, port: &'a ServicePort) -> impl Iterator<Item = u16> + 'a {
    let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
    slice
        .ports
        .iter()
        .flatten()
        .filter(move |p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && protocol(&p.protocol) == protocol(&port.protocol)
        })
        .filter_map(|p| u16::try_from(p.port?).ok())
}

fn line(world: &World, endpoint: &Endpoint, address: String, used: bool, reason: String) -> EndpointLine {
    let ip = endpoint.addresses.first().and_then(|a| parse_ip(a));
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|t| t.kind.as_deref() == Some("Pod"));
    let named = target.and_then(|t| {
        Some(format!(
            "{}/{}",
            t.namespace.as_deref().unwrap_or("default"),
            t.name.as_deref()?
        ))
    });
    EndpointLine {
        address,
        pod: named.or_else(|| world.pod_at(ip?)),
        node: endpoint.node_name.clone(),
        used,
        reason,
        sees: None,
    }
}

/// What the tables say decides; the planner's facts say why.
fn judge(
    e: &Endpoint,
    address: SocketAddr,
    packet: &Packet,
    view: &View<'_>,
    facts: Option<&EndpointFacts>,
) -> (bool, String) {
    let state = match ready(e) {
        true => "ready",
        false => "terminating, still serving, and no endpoint is ready",
    };
    match &view.usable {
        Usable::Kept(one, _) if *one == address => {
            return (true, format!("{state}; the client's own by sessionAffinity"));
        }
        Usable::Kept(_, all) if all.contains(&address) => {
            return (
                false,
                format!("{state}, but sessionAffinity keeps the client at another"),
            );
        }
        Usable::Some(all) if all.contains(&address) => return (true, state.to_owned()),
        _ => {}
    }
    if !same_family(address.ip().into(), packet.dst.into()) {
        return (false, "of the other address family".into());
    }
    (false, why_not(view, facts))
}

/// Unset means ready.
fn ready(e: &Endpoint) -> bool {
    e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn why_not(view: &View<'_>, facts: Option<&EndpointFacts>) -> String {
    let Some(facts) = facts else {
        return "another copy of it counts".into();
    };
    let on = facts.node.as_deref().unwrap_or("no node");
    match facts.unused {
        Some(Unused::NotReady) => "not ready".into(),
        Some(why) => why.words().into(),
        None if view.local && on != view.node => {
            format!("ready, but on {on}: policy Local wants one on {}", view.node)
        }
        None if matches!(view.usable, Usable::None) => "ready, but this packet is sent to no endpoint".into(),
        None => "ready, but not in the maps of this node yet".into(),
    }
}
