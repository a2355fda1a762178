//! The endpoint rules of kube-proxy once more, plainly: no incremental anything, no flags, nothing of the planner. Tests hold the planner's maps
//! against it.
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A Service, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// With whether the balancer passes packets on unchanged.
    pub balancer_ips: Vec<(IpAddr, bool)>,
    pub source_ranges: Vec<(IpAddr, u8)>,
    pub ports: Vec<Port>,
    pub internal_local: bool,
    pub external_local: bool,
    pub affinity: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub proto: &'static str,
    pub number: u16,
    pub node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub name: String,
    pub service: String,
    pub v4: bool,
    /// Name, protocol, number.
    pub ports: Vec<(String, &'static str, u16)>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub node: Option<String>,
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

/// The node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub zone: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub node_port_addresses: Vec<IpAddr>,
}

/// All that is in the API.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub node: Node,
    pub services: BTreeMap<String, Service>,
    pub slices: BTreeMap<String, Slice>,
}

/// An address, protocol and port at which a service is reached.
pub type Front = (IpAddr, &'static str, u16);

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    OneOf(BTreeSet<(IpAddr, u16)>),
    Rejected,
    Dropped,
}

/// What is done at a front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub service: String,
    /// For pods and the node.
    pub inside: Fate,
    /// For everybody else.
    pub outside: Fate,
    /// Seconds; 0 for none.
    pub affinity: u32,
    /// Who may come; everybody if `None`.
    pub sources: Option<BTreeSet<(IpAddr, u8)>>,
}

/// The rules of a node for all of it.
pub fn rules(cluster: &Cluster) -> BTreeMap<Front, Rule> {
    let mut found = BTreeMap::new();
    for service in cluster.services.values() {
        for v4 in [true, false] {
            let has_family = service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4);
            for port in service.ports.iter().filter(|_| has_family) {
                of_port(cluster, service, port, v4, &mut found);
            }
        }
    }
    found
}

fn of_port(cluster: &Cluster, service: &Service, port: &Port, v4: bool, found: &mut BTreeMap<Front, Rule>) {
    let endpoints = endpoints(cluster, service, port, v4);
    let everywhere = fate(everywhere(&endpoints, &cluster.node), &endpoints);
    let here = fate(here(&endpoints, &cluster.node), &endpoints);
    let rule = |inside: &Fate, outside: &Fate, sources| Rule {
        service: format!("{}:{}", service.name, port.name),
        inside: inside.clone(),
        outside: outside.clone(),
        affinity: service.affinity.unwrap_or(0),
        sources,
    };
    let internal = if service.internal_local {
        &here
    } else {
        &everywhere
    };
    for ip in of_family(&service.cluster_ips, v4) {
        found.insert((ip, port.proto, port.number), rule(internal, internal, None));
    }
    let external = if service.external_local {
        &here
    } else {
        &everywhere
    };
    let outer = |sources| rule(&everywhere, external, sources);
    for ip in of_family(&service.external_ips, v4) {
        found.insert((ip, port.proto, port.number), outer(None));
    }
    let balancers: Vec<IpAddr> = service
        .balancer_ips
        .iter()
        .filter(|(ip, unchanged)| *unchanged && ip.is_ipv4() == v4)
        .map(|(ip, _)| *ip)
        .collect();
    for ip in &balancers {
        found.insert(
            (*ip, port.proto, port.number),
            outer(sources(cluster, service, v4, &balancers)),
        );
    }
    if let Some(number) = port.node_port {
        for ip in of_family(&cluster.node.node_port_addresses, v4) {
            found.insert((ip, port.proto, number), outer(None));
        }
    }
}

fn of_family(ips: &[IpAddr], v4: bool) -> impl Iterator<Item = IpAddr> {
    ips.iter().copied().filter(move |ip| ip.is_ipv4() == v4)
}

/// Who may use the balancer's addresses.
fn sources(
    cluster: &Cluster,
    service: &Service,
    v4: bool,
    balancers: &[IpAddr],
) -> Option<BTreeSet<(IpAddr, u8)>> {
    let mut ranges: BTreeSet<_> = service
        .source_ranges
        .iter()
        .copied()
        .filter(|(ip, _)| ip.is_ipv4() == v4)
        .collect();
    if ranges.is_empty() || ranges.iter().any(|(_, bits)| *bits == 0) {
        return None;
    }
    let primary = cluster.node.addresses.iter().find(|ip| ip.is_ipv4() == v4);
    if primary.is_some_and(|p| ranges.iter().any(|r| contains(r, p))) {
        let whole = if v4 { 32 } else { 128 };
        ranges.extend(balancers.iter().map(|ip| (*ip, whole)));
    }
    Some(ranges)
}

fn contains((range, bits): &(IpAddr, u8), ip: &IpAddr) -> bool {
    let bit = |ip: &IpAddr, n: u8| match ip {
        IpAddr::V4(ip) => u32::from(*ip) >> (31 - n) & 1 == 1,
        IpAddr::V6(ip) => u128::from(*ip) >> (127 - n) & 1 == 1,
    };
    range.is_ipv4() == ip.is_ipv4() && (0..*bits).all(|n| bit(range, n) == bit(ip, n))
}

/// An endpoint of one port, its unset conditions filled in.
#[derive(Clone, Debug)]
struct Candidate {
    id: (IpAddr, u16),
    ready: bool,
    fallback: bool,
    terminating: bool,
    node: Option<String>,
    zones: Vec<String>,
    nodes: Vec<String>,
}

fn endpoints(cluster: &Cluster, service: &Service, port: &Port, v4: bool) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let slices = cluster
        .slices
        .values()
        .filter(|s| s.service == service.name && s.v4 == v4);
    for slice in slices {
        for (name, proto, number) in &slice.ports {
            if *name != port.name || *proto != port.proto {
                continue;
            }
            for e in &slice.endpoints {
                let terminating = e.terminating == Some(true);
                let new = Candidate {
                    id: (e.ip, *number),
                    ready: e.ready != Some(false),
                    fallback: e.serving != Some(false) && terminating,
                    terminating,
                    node: e.node.clone(),
                    zones: e.zones.clone(),
                    nodes: e.nodes.clone(),
                };
                match found.iter_mut().find(|c| c.id == new.id) {
                    None => found.push(new),
                    Some(old) if old.terminating && !new.terminating => *old = new,
                    Some(_) => {}
                }
            }
        }
    }
    found
}

type Ids = BTreeSet<(IpAddr, u16)>;

fn ids<'a>(of: impl Iterator<Item = &'a Candidate>) -> Ids {
    of.map(|c| c.id).collect()
}

/// Ready ones, as hints say; terminating ones where none is ready.
fn everywhere(all: &[Candidate], node: &Node) -> Ids {
    let ready: Vec<_> = all.iter().filter(|c| c.ready).collect();
    if ready.is_empty() {
        return ids(all.iter().filter(|c| c.fallback));
    }
    if ready.iter().all(|c| !c.nodes.is_empty()) {
        let ours = ids(ready.iter().copied().filter(|c| c.nodes.contains(&node.name)));
        if !ours.is_empty() {
            return ours;
        }
    }
    if let Some(zone) = &node.zone
        && ready.iter().all(|c| !c.zones.is_empty())
    {
        let ours = ids(ready.iter().copied().filter(|c| c.zones.contains(zone)));
        if !ours.is_empty() {
            return ours;
        }
    }
    ids(ready.into_iter())
}

/// The same of this node alone, without hints.
fn here(all: &[Candidate], node: &Node) -> Ids {
    let local: Vec<_> = all
        .iter()
        .filter(|c| c.node.as_ref() == Some(&node.name))
        .collect();
    let ready = ids(local.iter().copied().filter(|c| c.ready));
    if ready.is_empty() {
        ids(local.into_iter().filter(|c| c.fallback))
    } else {
        ready
    }
}

/// Without any: dropped if another node has some, rejected if nobody has.
fn fate(chosen: Ids, all: &[Candidate]) -> Fate {
    if !chosen.is_empty() {
        Fate::OneOf(chosen)
    } else if all.iter().any(|c| c.ready || c.fallback) {
        Fate::Dropped
    } else {
        Fate::Rejected
    }
}

/// The Service as the API has it, in the namespace `ns`.
pub fn service_object(s: &Service) -> Value {
    let ingress: Vec<_> = s
        .balancer_ips
        .iter()
        .map(|(ip, unchanged)| json!({"ip": ip, "ipMode": if *unchanged { "VIP" } else { "Proxy" }}))
        .collect();
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|p| json!({"name": p.name, "protocol": p.proto, "port": p.number, "nodePort": p.node_port.unwrap_or(0)}))
        .collect();
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": s.name},
        "spec": {
            "type": "LoadBalancer", "clusterIP": s.cluster_ips.first(), "clusterIPs": s.cluster_ips,
            "ipFamilies": s.cluster_ips.iter().map(family).collect::<Vec<_>>(), "externalIPs": s.external_ips, "ports": ports,
            "internalTrafficPolicy": policy(s.internal_local), "externalTrafficPolicy": policy(s.external_local),
            "loadBalancerSourceRanges": s.source_ranges.iter().map(|(ip, n)| format!("{ip}/{n}")).collect::<Vec<_>>(),
            "sessionAffinity": if s.affinity.is_some() { "ClientIP" } else { "None" },
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": s.affinity}},
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// The EndpointSlice as the API has it, in the namespace `ns`.
pub fn slice_object(s: &Slice) -> Value {
    let endpoints: Vec<_> = s
        .endpoints
        .iter()
        .map(|e| {
            let names = |of: &[String]| of.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            json!({
                "addresses": [e.ip], "nodeName": e.node,
                "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
                "hints": {"forZones": names(&e.zones), "forNodes": names(&e.nodes)},
            })
        })
        .collect();
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|(name, proto, n)| json!({"name": name, "protocol": proto, "port": n}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "ns", "name": s.name, "labels": {"kubernetes.io/service-name": s.service}},
        "addressType": if s.v4 { "IPv4" } else { "IPv6" }, "endpoints": endpoints, "ports": ports,
    })
}
