//! Which endpoints serve a port: readiness, the fall-back to terminating ones, hints, and policy Local.
use crate::planner::Node;
use crate::view::{EndpointView, PortView, SliceView};
use datapath_abi::{Address, Backend, Be16};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The endpoints of one service port in one family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    /// Those that get new connections, local ones first.
    pub backends: Vec<Backend>,
    /// How many of them are on this node.
    pub local: usize,
    /// Policy Local found none here, but there are some on other nodes.
    pub elsewhere: bool,
    /// Everything that still serves, whether or not it gets new connections: flows to these go on.
    pub serving: Vec<Backend>,
}

/// One endpoint with the port that its slice gives it.
struct Candidate<'a> {
    endpoint: &'a EndpointView,
    backend: Backend,
    local: bool,
}

impl Candidate<'_> {
    /// Terminating, but still answering: used when nothing is ready.
    fn falls_back(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// Finds the endpoints of `port` among the slices of its service. `local_only` is policy Local.
pub(crate) fn usable<'a>(
    slices: impl Iterator<Item = &'a SliceView>,
    port: &PortView,
    v4: bool,
    local_only: bool,
    node: &Node,
) -> Usable {
    let all = candidates(slices, port, v4, node);
    let chosen = if local_only {
        let here: Vec<_> = all.iter().filter(|c| c.local).collect();
        ready_or_terminating(&here)
    } else {
        let everywhere: Vec<_> = all.iter().collect();
        cluster(&everywhere, node)
    };
    let any = all.iter().any(|c| c.endpoint.ready || c.falls_back());
    let mut backends: Vec<_> = chosen.iter().map(|c| (!c.local, c.backend)).collect();
    backends.sort_unstable();
    backends.truncate(usize::from(u16::MAX));
    Usable {
        local: backends.iter().filter(|(remote, _)| !remote).count(),
        elsewhere: local_only && chosen.is_empty() && any,
        backends: backends.into_iter().map(|(_, b)| b).collect(),
        serving: all
            .iter()
            .filter(|c| c.endpoint.serving)
            .map(|c| c.backend)
            .collect(),
    }
}

/// Pairs slices and port by name and protocol. The same address and port in several slices counts once; a copy that is not
/// terminating wins.
fn candidates<'a>(
    slices: impl Iterator<Item = &'a SliceView>,
    port: &PortView,
    v4: bool,
    node: &Node,
) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<Backend, Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.proto == port.proto);
        for p in ports {
            for endpoint in slice.endpoints.iter().filter(|e| e.addr.is_ipv4() == v4) {
                let backend = Backend {
                    addr: Address::from(endpoint.addr),
                    port: Be16::new(p.port),
                    flags: 0,
                };
                let candidate = Candidate {
                    endpoint,
                    backend,
                    local: endpoint.node.as_deref() == Some(&*node.name),
                };
                match found.get(&backend) {
                    Some(other) if !other.endpoint.terminating => {}
                    _ => {
                        found.insert(backend, candidate);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

/// The set under policy Cluster: ready ones as the hints say, else terminating ones regardless of hints.
fn cluster<'a, 'b>(all: &[&'b Candidate<'a>], node: &Node) -> Vec<&'b Candidate<'a>> {
    let ready: Vec<_> = all.iter().copied().filter(|c| c.endpoint.ready).collect();
    if ready.is_empty() {
        return ready_or_terminating(all);
    }
    let by_node = hinted(&ready, |e| &e.node_hints, Some(&node.name));
    by_node
        .or_else(|| hinted(&ready, |e| &e.zone_hints, node.zone.as_ref()))
        .unwrap_or(ready)
}

/// All or nothing: hints count only if every ready endpoint has one and at least one is for us.
fn hinted<'a, 'b>(
    ready: &[&'b Candidate<'a>],
    hints: impl Fn(&EndpointView) -> &Vec<Arc<str>>,
    us: Option<&Arc<str>>,
) -> Option<Vec<&'b Candidate<'a>>> {
    let us = us?;
    if ready.iter().any(|c| hints(c.endpoint).is_empty()) {
        return None;
    }
    let ours: Vec<_> = ready
        .iter()
        .copied()
        .filter(|c| hints(c.endpoint).contains(us))
        .collect();
    (!ours.is_empty()).then_some(ours)
}

fn ready_or_terminating<'a, 'b>(all: &[&'b Candidate<'a>]) -> Vec<&'b Candidate<'a>> {
    let ready: Vec<_> = all.iter().copied().filter(|c| c.endpoint.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    all.iter().copied().filter(|c| c.falls_back()).collect()
}
