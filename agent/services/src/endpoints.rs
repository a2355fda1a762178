//! Which endpoints serve a port: readiness, the fall-back to terminating ones, hints, and policy Local.
use crate::node::Node;
use crate::packed::{EndpointRef, PackedSlice, TextList};
use crate::view::PortView;
use datapath_abi::{Address, Backend, Be16, CountNumber};

/// What is to be known of a port's endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// The Cluster set.
    pub cluster: bool,
    /// The Local set.
    pub local: bool,
}

/// The endpoints of one service port in one family, in slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    /// The Cluster set, local ones first, then the Local set where that is no prefix of it.
    pub slots: Vec<Backend>,
    /// How many of them are the Cluster set.
    pub count: u16,
    pub local_first: u16,
    pub local: u16,
    /// None here that policy Local could use, but there are some on other nodes.
    pub elsewhere: bool,
    /// Everything that still serves, whether or not it gets new connections: flows to these go on. In order of address and port.
    pub serving: Vec<(Address, Be16)>,
}

/// One endpoint with the port that its slice gives it.
pub(crate) struct Candidate<'a> {
    pub endpoint: EndpointRef<'a>,
    pub backend: Backend,
    /// On this node, by the endpoint's own word: only such ones count under policy Local.
    pub local: bool,
}

impl Candidate<'_> {
    /// Terminating, but still answering: used when nothing is ready.
    pub fn falls_back(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// Finds the endpoints of `port` among the slices of its service.
pub(crate) fn usable(slices: &[PackedSlice], port: &PortView, v4: bool, needs: Needs, node: &Node) -> Usable {
    let all = candidates(slices, port, v4, node);
    let mut found = Usable {
        serving: all
            .iter()
            .filter(|c| c.endpoint.serving)
            .map(|c| (c.backend.addr, c.backend.port))
            .collect(),
        ..Usable::default()
    };
    let local = if needs.local {
        slots(&local(&all))
    } else {
        Vec::new()
    };
    found.elsewhere =
        needs.local && local.is_empty() && all.iter().any(|c| c.endpoint.ready || c.falls_back());
    found.local = local.len() as u16;
    if !needs.cluster {
        found.count = found.local;
        found.slots = local;
        return found;
    }
    let cluster = cluster(&all, node);
    found.slots = slots(&cluster);
    found.count = found.slots.len() as u16;
    if !needs.local {
        found.local = cluster.iter().filter(|c| c.local).count() as u16;
    } else if !found.slots.starts_with(&local) {
        found.local_first = found.count;
        found.slots.extend(local);
    }
    found
}

/// In the order of slots. There are no more slots of a set than a frontend can name.
fn slots(chosen: &[&Candidate<'_>]) -> Vec<Backend> {
    let mut sorted: Vec<_> = chosen.iter().map(|c| (!c.local, c.backend)).collect();
    sorted.sort_unstable();
    sorted.truncate(usize::from(u16::MAX / 2));
    sorted.into_iter().map(|(_, b)| b).collect()
}

/// Pairs slices and port by name and protocol. The same address and port in several slices counts once; a copy that is not
/// terminating wins.
pub(crate) fn candidates<'a>(
    slices: &'a [PackedSlice],
    port: &PortView,
    v4: bool,
    node: &Node,
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::new();
    for slice in slices {
        let ports = slice
            .ports()
            .filter(|p| p.proto == port.proto && *p.name == *port.name);
        for p in ports {
            let of_family = slice.endpoints().filter(|e| e.addr.is_ipv4() == v4);
            found.extend(of_family.map(|e| candidate(e, p.port, node)));
        }
    }
    found.sort_by_key(|c| (c.backend.addr, c.backend.port, c.endpoint.terminating));
    found.dedup_by_key(|c| (c.backend.addr, c.backend.port));
    found
}

fn candidate<'a>(endpoint: EndpointRef<'a>, port: u16, node: &Node) -> Candidate<'a> {
    let local = endpoint.node == Some(&*node.name);
    // Answers of the node's own sockets come back through it even if the endpoint names no node.
    let here = local || node.addresses.contains(&endpoint.addr);
    Candidate {
        endpoint,
        backend: Backend {
            addr: Address::from(endpoint.addr),
            port: Be16::new(port),
            flags: if here { Backend::LOCAL } else { 0 },
            number: CountNumber::NONE,
        },
        local,
    }
}

/// The set under policy Local: hints do not count.
pub(crate) fn local<'a, 'b>(all: &'b [Candidate<'a>]) -> Vec<&'b Candidate<'a>> {
    ready_or_terminating(all.iter().filter(|c| c.local))
}

/// The set under policy Cluster: ready ones as the hints say, else terminating ones regardless of hints.
pub(crate) fn cluster<'a, 'b>(all: &'b [Candidate<'a>], node: &Node) -> Vec<&'b Candidate<'a>> {
    let ready: Vec<_> = all.iter().filter(|c| c.endpoint.ready).collect();
    if ready.is_empty() {
        return all.iter().filter(|c| c.falls_back()).collect();
    }
    let by_node = hinted(&ready, |e| e.node_hints, Some(&node.name));
    by_node
        .or_else(|| hinted(&ready, |e| e.zone_hints, node.zone.as_deref()))
        .unwrap_or(ready)
}

/// All or nothing: hints count only if every ready endpoint has one and at least one is for us.
fn hinted<'a, 'b>(
    ready: &[&'b Candidate<'a>],
    hints: impl Fn(&EndpointRef<'a>) -> TextList<'a>,
    us: Option<&str>,
) -> Option<Vec<&'b Candidate<'a>>> {
    let us = us?;
    if ready.iter().any(|c| hints(&c.endpoint).is_empty()) {
        return None;
    }
    let ours: Vec<_> = ready
        .iter()
        .copied()
        .filter(|c| hints(&c.endpoint).contains(us))
        .collect();
    (!ours.is_empty()).then_some(ours)
}

fn ready_or_terminating<'a, 'b>(
    all: impl Iterator<Item = &'b Candidate<'a>> + Clone,
) -> Vec<&'b Candidate<'a>>
where
    'a: 'b,
{
    let ready: Vec<_> = all.clone().filter(|c| c.endpoint.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    all.filter(|c| c.falls_back()).collect()
}
