//! Whether this node serves services: kube-proxy's `/healthz` and `/livez`, and the health-check ports of services.
//!
//! Pure: what happened goes in with its time, answers come out. The rules are kube-proxy's; its facts are replayed below.

use agent_services::{ObjectName, SliceView};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long a change may wait before it is late: twice kube-proxy's `--sync-period`.
pub const LATE: Duration = Duration::from_secs(60);
/// What stands for "never" where a time has to stand.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// One address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// As Kubernetes writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// How far the writing of one family has come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    written: Option<Timestamp>,
    /// The oldest change that is not written yet.
    waiting: Option<Timestamp>,
}

impl Progress {
    /// A family that was never written is not judged.
    fn is_late(self, late: Duration, now: Timestamp) -> bool {
        let limit = |since| now.duration_since(since).unsigned_abs() >= late && now > since;
        self.written.is_some() && self.waiting.is_some_and(limit)
    }
}

/// An answer of a health port.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// 200 or 503.
    pub status: u16,
    /// The weight for balancers that ask for it; on service ports only.
    pub weight: Option<u32>,
    /// The body.
    pub body: Value,
}

/// The health of the services part as a whole.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    late: Duration,
    progress: [Progress; 2],
    eligible: bool,
}

impl ProxyHealth {
    /// Nothing happened yet, and the node was not seen. Changes are late after `late`.
    #[must_use]
    pub fn new(late: Duration) -> Self {
        Self {
            late,
            progress: [Progress::default(); 2],
            eligible: false,
        }
    }

    /// A change arrived that is to be written.
    pub fn queued(&mut self, family: Family, now: Timestamp) {
        self.progress[family as usize].waiting.get_or_insert(now);
    }

    /// Everything that had arrived was written.
    pub fn written(&mut self, family: Family, now: Timestamp) {
        self.progress[family as usize] = Progress {
            written: Some(now),
            waiting: None,
        };
    }

    /// Whether the node is there and is not about to go.
    pub fn set_eligible(&mut self, eligible: bool) {
        self.eligible = eligible;
    }

    /// Whether no family is late.
    #[must_use]
    pub fn is_healthy(&self, now: Timestamp) -> bool {
        self.progress.iter().all(|p| !p.is_late(self.late, now))
    }

    /// `/livez`: whether services are kept up to date.
    #[must_use]
    pub fn livez(&self, now: Timestamp) -> Report {
        self.report(self.is_healthy(now), now)
    }

    /// `/healthz`: the same, and whether balancers outside should send traffic to this node.
    #[must_use]
    pub fn healthz(&self, now: Timestamp) -> Report {
        let mut report = self.report(self.is_healthy(now) && self.eligible, now);
        report.body["nodeEligible"] = json!(self.eligible);
        report
    }

    fn report(&self, good: bool, now: Timestamp) -> Report {
        let written = self.progress.iter().filter_map(|p| p.written).max();
        let last = if good { Some(now) } else { written };
        let mut body = json!({
            "healthy": self.is_healthy(now),
            "lastUpdated": time(last),
            "currentTime": time(Some(now)),
        });
        for family in Family::BOTH {
            let progress = self.progress[family as usize];
            if progress.written.is_some() {
                body["status"][family.name()] = json!({
                    "lastUpdated": time(progress.written),
                    "healthy": !progress.is_late(self.late, now),
                });
            }
        }
        Report {
            status: if good { 200 } else { 503 },
            weight: None,
            body,
        }
    }
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), |at| at.to_string())
}

/// The health-check port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// Its number on the node.
    pub port: u16,
    /// Whether the service has IPv4, and IPv6.
    pub families: [bool; 2],
    /// Ready endpoints on this node, per family.
    pub local: [u32; 2],
}

impl HealthPort {
    /// The port that a service asks for: of type LoadBalancer, under external policy Local only.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let wants = spec.type_.as_deref() == Some("LoadBalancer")
            && spec.external_traffic_policy.as_deref() == Some("Local");
        let port = spec.health_check_node_port.filter(|_| wants)?;
        let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
        let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let families: HashSet<bool> = ips
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .map(|ip| ip.is_ipv4())
            .collect();
        let none = families.is_empty();
        Some(Self {
            port,
            families: [none || families.contains(&true), families.contains(&false)],
            local: [0, 0],
        })
    }

    /// The answer on the port of `family`.
    #[must_use]
    pub fn report(&self, name: &ObjectName, family: Family, proxy_healthy: bool) -> Report {
        let local = self.local[family as usize];
        Report {
            status: if local > 0 && proxy_healthy { 200 } else { 503 },
            weight: Some(local),
            body: json!({
                "service": {"namespace": &*name.namespace, "name": &*name.name},
                "localEndpoints": local,
                "serviceProxyHealthy": proxy_healthy,
            }),
        }
    }
}

/// Which ready endpoints of which service are on this node.
#[derive(Debug, Default)]
pub struct LocalEndpoints {
    /// By the slice's name; slices without any are not kept.
    slices: HashMap<ObjectName, (ObjectName, Vec<IpAddr>)>,
}

impl LocalEndpoints {
    /// A slice is there, or changed. Only ready endpoints of `node` count: terminating ones still get traffic, but should
    /// get no more.
    pub fn slice(&mut self, view: &SliceView, node: &str) {
        let own = ObjectName {
            namespace: view.service.namespace.clone(),
            name: view.name.clone(),
        };
        let local = view
            .endpoints
            .iter()
            .filter(|e| e.ready && e.node.as_deref() == Some(node));
        let local: Vec<IpAddr> = local.map(|e| e.addr).collect();
        if local.is_empty() {
            self.slices.remove(&own);
        } else {
            self.slices.insert(own, (view.service.clone(), local));
        }
    }

    /// A slice is gone.
    pub fn slice_gone(&mut self, own: &ObjectName) {
        self.slices.remove(own);
    }

    /// Distinct addresses of each service that has any, IPv4 and IPv6.
    #[must_use]
    pub fn counts(&self) -> HashMap<&ObjectName, [u32; 2]> {
        let mut seen: HashMap<&ObjectName, HashSet<IpAddr>> = HashMap::new();
        for (service, ips) in self.slices.values() {
            seen.entry(service).or_default().extend(ips);
        }
        let count = |ips: &HashSet<IpAddr>, v4| {
            u32::try_from(ips.iter().filter(|ip| ip.is_ipv4() == v4).count()).unwrap_or(u32::MAX)
        };
        seen.iter()
            .map(|(name, ips)| (*name, [count(ips, true), count(ips, false)]))
            .collect()
    }
}

/// All health-check ports of this node, by service.
pub type HealthPorts = BTreeMap<ObjectName, HealthPort>;

/// The ports with the counts of now.
#[must_use]
pub fn counted(ports: &HealthPorts, local: &LocalEndpoints) -> HealthPorts {
    if ports.is_empty() {
        return HealthPorts::new();
    }
    let counts = local.counts();
    let count = |(name, port): (&ObjectName, &HealthPort)| {
        let local = counts.get(name).copied().unwrap_or_default();
        let port = HealthPort {
            local,
            ..port.clone()
        };
        (name.clone(), port)
    };
    ports.iter().map(count).collect()
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
