//! Objects in, map content and decisions out: the planner and the packet logic together, without a kernel.
use agent_services::{Existing, Node, ObjectName, Planner, ServiceView, SliceView};
use datapath_abi::{
    Address, Affinity, AffinityKey, Backend, BackendKey, Be16, FrontendKey, FrontendValue, MaglevKey, Member,
    MemberKey, Proto, Range, Scope, Settings, SourceRangeKey,
};
use datapath_logic::Tables;
use datapath_logic::choose::{Client, Found, Front, Refusal, find};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// A node's planner and the maps that it fills.
pub struct Model {
    pub planner: Planner,
    pub maps: Existing,
    ranges: Vec<Range>,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a service's address.
    Untouched,
    /// One of these endpoints.
    Endpoints(BTreeSet<SocketAddr>),
    Rejected,
    Dropped,
}

impl Model {
    /// An empty node.
    pub fn new(node: &str, zone: Option<&str>, ranges: &[String]) -> Self {
        let node = Node {
            name: node.into(),
            zone: zone.map(Into::into),
            ..Node::default()
        };
        Self {
            planner: Planner::new(node, Existing::default()),
            maps: Existing::default(),
            ranges: ranges.iter().map(|r| parse_range(r)).collect(),
        }
    }

    /// Observes that an object is there, or changed.
    pub fn apply(&mut self, object: &Value) {
        match object["kind"].as_str() {
            Some("Service") => {
                let service: Service = read(object);
                self.planner
                    .service(ServiceView::of(&service).expect("a service has a name"));
            }
            Some("EndpointSlice") => {
                let slice: EndpointSlice = read(object);
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
        match kind {
            "Service" => self.planner.service_gone(name),
            "EndpointSlice" => self.planner.slice_gone(name),
            other => panic!("a scenario with a {other}"),
        }
    }

    /// Plans and carries out; the maps hold together after it.
    pub fn sync(&mut self) {
        let changes = self.planner.plan();
        self.maps.apply(&changes);
        let wrong = self.maps.inconsistencies();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Every outcome that a connection to this address can have, from the tables as the programs read them.
    pub fn connect(&self, to: SocketAddr, proto: Proto) -> Outcome {
        let mut endpoints = BTreeSet::new();
        // The random numbers walk over all slots, so every endpoint that can be chosen is.
        for i in 0..64 {
            let tables = View {
                model: self,
                settings: self.settings(),
                random: Cell::new(i << 26),
            };
            let front = Front {
                addr: to.ip().into(),
                port: Be16::new(to.port()),
                proto,
            };
            let client = Client {
                scope: Scope::Inside,
                known_as: Address::default(),
                source: datapath_abi::Address::default(),
                port: Be16::new(0),
            };
            match find(&tables, &front, &client, None) {
                Found::NotAService => return Outcome::Untouched,
                Found::Nowhere(Refusal::NoEndpoint | Refusal::NoPort) => return Outcome::Rejected,
                Found::Nowhere(Refusal::NoLocalEndpoint | Refusal::NoService | Refusal::SourceNotAllowed) => {
                    return Outcome::Dropped;
                }
                Found::Nowhere(Refusal::SlotMissing) => panic!("{to}: a slot is missing"),
                Found::Endpoint(c) => {
                    endpoints.insert(SocketAddr::new(c.backend.addr.to_ip(), c.backend.port.get()));
                }
            }
        }
        Outcome::Endpoints(endpoints)
    }

    fn settings(&self) -> Settings {
        let mut s = Settings::default();
        s.service_ranges
            .iter_mut()
            .zip(&self.ranges)
            .for_each(|(to, from)| *to = *from);
        s
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
            return format!("{:?} every other port: rejected ({owner})", key.addr);
        }
        let slot = |slot| BackendKey {
            set: v.set,
            generation: v.generation,
            slot,
        };
        let backends: Vec<_> = (0..v.count)
            .filter_map(|s| self.maps.backends.get(&slot(s)))
            .map(|b| SocketAddr::new(b.addr.to_ip(), b.port.get()).to_string())
            .collect();
        let front = SocketAddr::new(key.addr.to_ip(), key.port.get());
        format!(
            "{front} {:?} → [{}] local {} flags {} ({owner})",
            key.proto,
            backends.join(", "),
            v.local,
            v.flags.0
        )
    }
}

/// The maps as the logic sees them.
struct View<'a> {
    model: &'a Model,
    settings: Settings,
    random: Cell<u32>,
}

impl Tables for View<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.model.maps.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.model.maps.backends.get(key).copied()
    }
    fn admits(&self, _: &SourceRangeKey) -> bool {
        true
    }
    fn member(&self, _: &MemberKey) -> Option<Member> {
        None
    }
    fn maglev(&self, _: &MaglevKey, _: u16) -> Option<u16> {
        None
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn keep_affinity(&self, _: &AffinityKey, _: &Affinity) {}
    fn now(&self) -> u64 {
        0
    }
    fn random(&self) -> u32 {
        self.random.get()
    }
}

fn read<T: serde::de::DeserializeOwned>(object: &Value) -> T {
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

fn parse_range(cidr: &str) -> Range {
    let (addr, bits) = cidr.split_once('/').expect("a range has a length");
    let addr: IpAddr = addr.parse().expect("a range starts with an address");
    Range::new(addr, bits.parse().expect("a length is a number"))
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
