//! Objects in, map content and decisions out: the planner and the packet logic together, without a kernel.
mod flows;
mod manifests;
mod read;
pub mod rules;
mod walk;

pub use flows::{ByLogic, Layer, flows_of_kube_proxy, model_of, node_of, reasons, scenarios};
pub use manifests::ByManifests;
pub use read::{read, whole_addresses};
pub use walk::{Connection, From, Memory, Outcome};

use agent_services::{Changes, Existing, Node, ObjectName, Planner, ServiceView, SliceView};
use datapath_abi::{BackendKey, FrontendFlags, FrontendKey, FrontendValue, Proto, Settings};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A node's planner and the maps that it fills.
pub struct Model {
    pub planner: Planner,
    pub maps: Existing,
    ranges: Vec<(IpAddr, u8)>,
    /// The agent's `--nodeport-addresses`, as texts; for layers that start from those.
    pub node_ports: Vec<String>,
    /// The objects that are there, by kind and name.
    pub objects: BTreeMap<(String, ObjectName), Value>,
    /// What clients keep.
    pub affinity: Memory,
    /// The clock.
    pub seconds: u64,
}

impl Model {
    /// An empty node. `ranges` are the service ranges.
    pub fn new(node: Node, ranges: &[String]) -> Self {
        Self {
            planner: Planner::new(node, Existing::default()),
            maps: Existing::default(),
            ranges: ranges.iter().map(|r| parse_range(r)).collect(),
            node_ports: Vec::new(),
            objects: BTreeMap::new(),
            affinity: Memory::new(),
            seconds: 0,
        }
    }

    /// The service ranges.
    pub fn ranges(&self) -> &[(IpAddr, u8)] {
        &self.ranges
    }

    /// The clock in nanoseconds.
    pub fn now(&self) -> u64 {
        self.seconds * 1_000_000_000
    }

    /// What the programs are told; uplinks are served.
    pub fn settings(&self) -> Settings {
        self.planner.node().settings(&self.ranges, true, walk::HOST_NETNS)
    }

    /// Observes that an object is there, or changed.
    pub fn apply(&mut self, object: &Value) {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        self.objects.insert((kind, name(object)), object.clone());
        match object["kind"].as_str() {
            Some("Service") => {
                let service: Service = parse(object);
                self.planner
                    .service(ServiceView::of(&service).expect("a service has a name"));
            }
            Some("EndpointSlice") => {
                let slice: EndpointSlice = parse(object);
                match SliceView::of(&slice) {
                    Some(view) => self.planner.slice(view),
                    None => self.planner.slice_gone(&name(object)),
                }
            }
            other => panic!("a scenario with a {other:?}"),
        }
    }

    /// Observes that an object is gone.
    pub fn delete(&mut self, kind: &str, name: &ObjectName) {
        self.objects.remove(&(kind.to_owned(), name.clone()));
        match kind {
            "Service" => self.planner.service_gone(name),
            "EndpointSlice" => self.planner.slice_gone(name),
            other => panic!("a scenario with a {other}"),
        }
    }

    /// Plans and carries out; the maps hold together after it.
    pub fn sync(&mut self) -> Changes {
        let changes = self.planner.plan();
        self.maps.apply(&changes);
        let wrong = self.maps.inconsistencies();
        assert!(wrong.is_empty(), "{wrong:#?}");
        changes
    }

    /// The maps in words: the same text for the same services, whatever ids they were given.
    pub fn dump(&self) -> String {
        let mut lines: Vec<String> = self.maps.frontends.iter().map(|(k, v)| self.line(k, v)).collect();
        lines.sort();
        lines.join("\n") + "\n"
    }

    fn line(&self, key: &FrontendKey, v: &FrontendValue) -> String {
        let owner = self.maps.owners.get(&v.set).map_or("?", |o| o.text());
        if key.proto == Proto::ANY {
            let what = if v.flags.has(FrontendFlags::HERE) {
                "answered by this node"
            } else {
                "rejected"
            };
            return format!("{:?} every other port: {what} ({owner})", key.addr);
        }
        let backends = self.slots(v, 0, v.count);
        let front = SocketAddr::new(key.addr.to_ip(), key.port.get());
        let own = if v.local_first == 0 {
            String::new()
        } else {
            format!(" [{}]", self.slots(v, v.local_first, v.local))
        };
        let affinity = if v.affinity == 0 {
            String::new()
        } else {
            format!(" kept {} s", v.affinity)
        };
        format!(
            "{front} {:?} → [{backends}] local {}{own}{}{affinity} ({owner})",
            key.proto,
            v.local,
            flags(v.flags)
        )
    }

    fn slots(&self, v: &FrontendValue, first: u16, count: u16) -> String {
        let slot = |slot| BackendKey {
            set: v.set,
            generation: v.generation,
            slot,
        };
        let backends = (first..first + count).filter_map(|s| self.maps.backends.get(&slot(s)));
        let texts: Vec<_> = backends
            .map(|b| SocketAddr::new(b.addr.to_ip(), b.port.get()).to_string())
            .collect();
        texts.join(", ")
    }
}

fn flags(flags: FrontendFlags) -> String {
    let names = [
        (FrontendFlags::LOCAL_ALWAYS, "local only"),
        (FrontendFlags::LOCAL_OUTSIDE, "local only from outside"),
        (FrontendFlags::ELSEWHERE, "some elsewhere"),
        (FrontendFlags::RANGES, "source ranges"),
        (FrontendFlags::NODE_PORT, "node port"),
        (FrontendFlags::EXTERNAL, "external"),
        (FrontendFlags::MAGLEV, "Maglev"),
        (FrontendFlags::HERE, "answered by this node"),
        (FrontendFlags::HOST_PORT, "host port"),
        (FrontendFlags::NODE_ONLY, "for the node only"),
    ];
    let set = names.iter().filter(|(f, _)| flags.has(*f));
    set.map(|(_, name)| format!(", {name}")).collect()
}

fn parse<T: serde::de::DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e} in {object}"))
}

/// Namespace and name of an object.
pub fn name(object: &Value) -> ObjectName {
    let of = |field: &str| {
        object["metadata"][field]
            .as_str()
            .expect("namespaced objects only")
            .to_owned()
    };
    ObjectName::new(&of("namespace"), &of("name"))
}

/// `10.0.0.0/8` as address and prefix length.
pub fn parse_range(cidr: &str) -> (IpAddr, u8) {
    let (addr, bits) = cidr.split_once('/').expect("a range has a length");
    let addr: IpAddr = addr.parse().expect("a range starts with an address");
    (addr, bits.parse().expect("a length is a number"))
}

/// The elements of a list; none where it is missing.
pub fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map_or(&[], Vec::as_slice)
}

/// The texts of a list.
pub fn texts(of: &Value, field: &str) -> Vec<String> {
    let text = |v: &Value| v.as_str().expect("a list of texts").to_owned();
    list(of, field).iter().map(text).collect()
}

/// Compares with a committed file; `SKEP_BLESS=1` writes it instead.
pub fn golden(path: &std::path::Path, actual: &str) {
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(path, actual).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; `cargo xtask bless` accepts this:\n{actual}",
        path.display()
    );
}
