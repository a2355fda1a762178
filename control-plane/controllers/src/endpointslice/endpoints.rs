//! Which endpoints a service has: one for each pod, address family and set of ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Observed;
use crate::pod::{addresses, is_ready, is_terminal, is_terminating, node_name};

/// Address families of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// `addressType` of slices.
    #[must_use]
    pub fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn has(self, address: &str) -> bool {
        address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_ipv4() == (self == Self::V4))
    }
}

/// Endpoints that share their ports. The key orders groups and tells equal ports from others.
pub(crate) type Groups = BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)>;

pub(crate) fn families(service: &Service) -> Vec<Family> {
    let listed = service
        .spec
        .iter()
        .flat_map(|spec| spec.ip_families.iter().flatten());
    let mut families: Vec<Family> = listed
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let address = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.as_deref())
            .unwrap_or_default();
        families.push(if Family::V6.has(address) {
            Family::V6
        } else {
            Family::V4
        });
    }
    families
}

/// The key of a list of ports.
pub(crate) fn port_key(ports: &[EndpointPort]) -> String {
    let mut keys: Vec<String> = ports
        .iter()
        .map(|port| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            format!(
                "{}/{}/{protocol}/{}",
                text(&port.name),
                port.port.unwrap_or(0),
                text(&port.app_protocol)
            )
        })
        .collect();
    keys.sort();
    keys.join(",")
}

/// All endpoints of a service in one family, grouped by ports.
pub(crate) fn wanted(observed: &Observed, family: Family) -> Groups {
    let service = observed.service.as_ref();
    let mut groups = Groups::new();
    for pod in observed.pods.iter().filter(|pod| !is_terminal(pod)) {
        let node = node_name(pod);
        let zone = observed.zones.get(node);
        // A pod of a node that is gone is about to be collected; traffic to it would be lost.
        if !node.is_empty() && zone.is_none() && !publishes_unready(service) {
            continue;
        }
        let Some(address) = addresses(pod).into_iter().find(|address| family.has(address)) else {
            continue;
        };
        let ports = ports(service, pod);
        let endpoint = endpoint(service, pod, address, zone.map_or("", String::as_str));
        let group = groups
            .entry(port_key(&ports))
            .or_insert_with(|| (ports, Vec::new()));
        group.1.push(endpoint);
    }
    groups
}

fn publishes_unready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true)
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: &str) -> Endpoint {
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    let ready = publishes_unready(service) || (serving && !terminating);
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: some(node_name(pod)),
        zone: some(zone),
        hostname: hostname(service, pod),
        hints: hints(service, ready, zone, node_name(pod)),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        deprecated_topology: None,
    }
}

/// The name under which cluster DNS serves a pod of a headless service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then_some(hostname)
}

/// Whom an endpoint should serve, if the service wants its traffic kept near.
fn hints(service: &Service, ready: bool, zone: &str, node: &str) -> Option<EndpointHints> {
    let near = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    if !ready {
        return None;
    }
    let zones = (!zone.is_empty()).then(|| {
        vec![ForZone {
            name: zone.to_owned(),
        }]
    });
    match near {
        "PreferClose" | "PreferSameZone" => zones.map(|zones| EndpointHints {
            for_zones: Some(zones),
            for_nodes: None,
        }),
        "PreferSameNode" if !node.is_empty() => Some(EndpointHints {
            for_zones: zones,
            for_nodes: Some(vec![ForNode {
                name: node.to_owned(),
            }]),
        }),
        _ => None,
    }
}

/// The service's ports as `pod` serves them; a named one that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let resolved = all.filter_map(|port| target(port, pod).map(|number| (port, number)));
    let ports = resolved.map(|(port, number)| EndpointPort {
        // A port without a name has the empty name in slices.
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut declared = containers.flat_map(|container| container.ports.iter().flatten());
    let found = declared.find(|declared| {
        declared.name.as_ref() == Some(name) && declared.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|declared| declared.container_port)
}
