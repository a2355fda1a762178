//! Tables that stand still: what a planner wants, or what was read from a node's maps.
use crate::world::{World, node_addresses};
use agent_services::{EndpointFacts, Existing, Node, Planner, ServiceView, SliceView, node_port_addresses};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, FrontendKey, FrontendValue, MaglevKey, Member, MemberKey,
    Settings, SourceRangeKey,
};
use datapath_logic::Tables;
use k8s_openapi::api::core::v1::Service;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// The tables of one node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub settings: Settings,
    pub maps: Existing,
    pub affinity: HashMap<AffinityKey, Affinity>,
    /// Nanoseconds since boot.
    pub now: u64,
}

/// Where addresses of services come from when no ServiceCIDR object tells.
const DEFAULT_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

impl Snapshot {
    /// What the maps of `node` hold once its agent has seen all the objects.
    pub fn planned(world: &World, node: &str) -> Self {
        let node = describe(world, node);
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
        let settings = node.settings(&ranges, true, 0);
        let mut planner = Planner::new(node, Existing::default());
        world
            .services
            .iter()
            .filter_map(ServiceView::of)
            .for_each(|s| planner.service(s));
        world
            .slices
            .iter()
            .filter_map(SliceView::of)
            .for_each(|s| planner.slice(s));
        let mut maps = Existing::default();
        maps.apply(&planner.plan());
        Self {
            settings,
            maps,
            ..Self::default()
        }
    }
}

/// A planner that was told everything.
fn observed(world: &World, node: Node) -> Planner {
    let mut planner = Planner::new(node, Existing::default());
    let services = world.services.iter().filter_map(ServiceView::of);
    services.for_each(|s| planner.service(s));
    let slices = world.slices.iter().filter_map(SliceView::of);
    slices.for_each(|s| planner.slice(s));
    planner
}

/// What the planner of `node` makes of each endpoint of a service.
pub(crate) fn facts(world: &World, node: &str, service: &Service) -> HashMap<SocketAddr, EndpointFacts> {
    let Some(view) = ServiceView::of(service) else {
        return HashMap::new();
    };
    let ports = observed(world, describe(world, node)).endpoints(&view.name);
    let endpoints = ports.into_iter().flatten().flat_map(|p| p.endpoints);
    endpoints.map(|e| (SocketAddr::new(e.addr, e.port), e)).collect()
}

/// A node as its object describes it; one without an object has a name and nothing else.
fn describe(world: &World, name: &str) -> Node {
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
        node_port_addresses: node_port_addresses(&addresses, &[]),
        addresses,
        pod_ranges: pods.filter_map(|r| range(r)).collect(),
        ..Node::default()
    }
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, bits) = text.split_once('/')?;
    Some((addr.parse().ok()?, bits.parse().ok()?))
}

impl Tables for Snapshot {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.maps.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.maps.backends.get(key).copied()
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        let holds = |range: &SourceRangeKey| {
            let family = datapath_abi::Range {
                addr: range.addr,
                bits: range.bits.saturating_sub(32),
            };
            range.set == client.set && family.contains(client.addr)
        };
        self.maps.ranges.iter().any(holds)
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.maps.members.get(key).copied()
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        self.maps.maglev.get(key)?.0.get(usize::from(place)).copied()
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.get(key).copied()
    }
    fn keep_affinity(&self, _: &AffinityKey, _: &Affinity) {}
    fn now(&self) -> u64 {
        self.now
    }
    /// A fixed number: explanations say "one of", and never which one chance would draw.
    fn random(&self) -> u32 {
        0
    }
}
