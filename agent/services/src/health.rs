//! What is told about services besides packets: health checks, metrics, and why an endpoint is not used.
use crate::endpoints::{candidates, cluster, local};
use crate::packed::PackedSlice;
use crate::planner::Planner;
use crate::texts::Texts;
use crate::view::{ObjectName, PortView};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// A service about which load balancers ask each node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    pub service: ObjectName,
    /// Where they ask (`healthCheckNodePort`).
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node, over all ports.
    pub local_ready: usize,
}

/// Ports whose policy is Local, without an endpoint on this node, and with some elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    pub internal: usize,
    pub external: usize,
}

/// One endpoint of a service's port, and whether it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    pub addr: IpAddr,
    pub port: u16,
    pub node: Option<Arc<str>>,
    /// Gets new connections under policy Cluster.
    pub in_cluster_set: bool,
    /// Gets new connections under policy Local.
    pub in_local_set: bool,
    /// Why it is not in the Cluster set.
    pub unused: Option<Unused>,
}

/// Why an endpoint gets no new connections under policy Cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// It neither is ready nor serves while it terminates.
    NotReady,
    /// It terminates, and others are ready.
    Terminating,
    /// Its hints name other nodes or zones, and some endpoint's name ours.
    HintedElsewhere,
}

impl Unused {
    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotReady => "it is not ready",
            Self::Terminating => "it is terminating, and other endpoints are ready",
            Self::HintedElsewhere => "its topology hints are for other nodes or zones",
        }
    }
}

/// One port of a service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    pub port: PortView,
    pub v4: bool,
    pub endpoints: Vec<EndpointFacts>,
}

impl Planner {
    /// All services about which load balancers ask.
    pub fn health(&self) -> Vec<ServiceHealth> {
        let health = |name: &ObjectName| {
            let port = self.book.by_name(name)?.view.as_ref()?.health_port()?;
            Some(ServiceHealth {
                service: name.clone(),
                port,
                local_ready: self.local_ready(name),
            })
        };
        self.asked.iter().filter_map(health).collect()
    }

    /// Distinct addresses of the service's ready endpoints on this node, over all slices; terminating ones that still get
    /// traffic do not count.
    pub fn local_ready(&self, service: &ObjectName) -> usize {
        let Some(entry) = self.book.by_name(service) else {
            return 0;
        };
        let endpoints = entry.slices().iter().flat_map(PackedSlice::endpoints);
        let here = endpoints.filter(|e| e.ready && e.node == Some(&*self.rest.node.name));
        here.map(|e| e.addr).collect::<BTreeSet<_>>().len()
    }

    /// For the metric that counts ports which drop traffic by their Local policy.
    pub fn no_local_endpoints(&self) -> NoLocalEndpoints {
        let mut found = NoLocalEndpoints::default();
        for entry in self.book.entries() {
            let Some(view) = &entry.view else { continue };
            let (internal, external) = view.is_local();
            let count = entry.sets.iter().filter(|s| s.elsewhere).count();
            found.internal += if internal { count } else { 0 };
            let outside = entry.sets.iter().filter(|s| s.elsewhere && s.is_external());
            found.external += if external { outside.count() } else { 0 };
        }
        found
    }

    /// What became of each endpoint of a service on this node, port by port; `None` for a service that was not observed.
    pub fn endpoints(&self, service: &ObjectName) -> Option<Vec<PortFacts>> {
        let entry = self.book.by_name(service)?;
        let packed = entry.view.as_ref()?;
        let view = packed.view(service.clone(), &mut Texts::default());
        let mut found = Vec::new();
        for v4 in [true, false] {
            if !view.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4) {
                continue;
            }
            for port in &view.ports {
                let all = candidates(entry.slices(), port, v4, &self.rest.node);
                let of = |set: Vec<&crate::endpoints::Candidate<'_>>| -> BTreeSet<_> {
                    set.iter().map(|c| (c.backend.addr, c.backend.port)).collect()
                };
                let (cluster, local) = (of(cluster(&all, &self.rest.node)), of(local(&all)));
                let facts = |c: &crate::endpoints::Candidate<'_>| {
                    let id = (c.backend.addr, c.backend.port);
                    EndpointFacts {
                        addr: c.endpoint.addr,
                        port: c.backend.port.get(),
                        node: c.endpoint.node.map(Arc::from),
                        in_cluster_set: cluster.contains(&id),
                        in_local_set: local.contains(&id),
                        unused: unused(c, cluster.contains(&id)),
                    }
                };
                found.push(PortFacts {
                    port: port.clone(),
                    v4,
                    endpoints: all.iter().map(facts).collect(),
                });
            }
        }
        Some(found)
    }
}

fn unused(c: &crate::endpoints::Candidate<'_>, used: bool) -> Option<Unused> {
    match (used, c.endpoint.ready) {
        (true, _) => None,
        (false, true) => Some(Unused::HintedElsewhere),
        (false, false) if c.falls_back() => Some(Unused::Terminating),
        (false, false) => Some(Unused::NotReady),
    }
}
