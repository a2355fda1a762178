//! Tables that stand still: what a planner wants, or what was read from a node's maps.
use crate::world::{World, node_addresses};
use agent_services::{
    EndpointFacts, Existing, HostPortsView, Node, Planner, ServiceView, SliceView, node_port_addresses,
};
use datapath_logic::host::Host;
use k8s_openapi::api::core::v1::{Pod, Service};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// The tables of one node at one moment.
pub type Snapshot = Host<Existing>;

/// Where addresses of services come from when no ServiceCIDR object tells.
const DEFAULT_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// A network namespace of a node that is none.
const HOST_NETNS: u64 = 1;

/// What the maps of `node` hold once its agent has seen all the objects. `node_ports` are the ranges of the agent's
/// `--nodeport-addresses`; none for every address of the node.
pub fn planned(world: &World, node: &str, node_ports: &[String]) -> Snapshot {
    let node = describe(world, node, node_ports);
    let ranges: Vec<_> = world
        .ranges
        .iter()
        .filter_map(|r| r.spec.as_ref()?.cidrs.clone())
        .flatten()
        .collect();
    let ranges: Vec<(IpAddr, u8)> = if ranges.is_empty() {
        DEFAULT_RANGES.iter().filter_map(|r| range(r)).collect()
    } else {
        ranges.iter().filter_map(|r| range(r)).collect()
    };
    let settings = node.settings(&ranges, true, HOST_NETNS);
    let mut maps = Existing::default();
    maps.apply(&observed(world, node).plan());
    Host::new(settings, maps)
}

/// A planner that was told everything.
fn observed(world: &World, node: Node) -> Planner {
    let of_node = |pod: &&Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&*node.name);
    let pods = world.pods.iter().filter(of_node);
    let host_ports: Vec<_> = pods.filter_map(HostPortsView::of).collect();
    let mut planner = Planner::new(node, Existing::default());
    let services = world.services.iter().filter_map(ServiceView::of);
    services.for_each(|s| planner.service(s));
    let slices = world.slices.iter().filter_map(SliceView::of);
    slices.for_each(|s| planner.slice(s));
    planner.host_ports(&host_ports);
    planner
}

/// What the planner of `node` makes of each endpoint of a service.
pub(crate) fn facts(world: &World, node: &str, service: &Service) -> HashMap<SocketAddr, EndpointFacts> {
    let Some(view) = ServiceView::of(service) else {
        return HashMap::new();
    };
    let ports = observed(world, describe(world, node, &[])).endpoints(&view.name);
    let endpoints = ports.into_iter().flatten().flat_map(|p| p.endpoints);
    endpoints.map(|e| (SocketAddr::new(e.addr, e.port), e)).collect()
}

/// A node as its object describes it; one without an object has a name and nothing else.
fn describe(world: &World, name: &str, node_ports: &[String]) -> Node {
    let object = world.node(name).ok();
    let addresses = object.and_then(|n| node_addresses(n).ok()).unwrap_or_default();
    let labels = object.and_then(|n| n.metadata.labels.as_ref());
    let pods = world
        .nodes
        .iter()
        .filter_map(|n| n.spec.as_ref()?.pod_cidrs.as_ref())
        .flatten();
    Node {
        name: name.into(),
        zone: labels
            .and_then(|l| l.get("topology.kubernetes.io/zone"))
            .map(|z| z.as_str().into()),
        node_port_addresses: node_port_addresses(&addresses, node_ports),
        addresses,
        pod_ranges: pods.filter_map(|r| range(r)).collect(),
        ..Node::default()
    }
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, bits) = text.split_once('/')?;
    Some((addr.parse().ok()?, bits.parse().ok()?))
}
