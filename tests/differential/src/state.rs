//! Random states of a cluster, one after another: Services, EndpointSlices, the node's zone.
use crate::place::NODE_IPS;
use crate::probe::{Changes, Client, Probe, Proto};
use fastrand::Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use tests_scenarios::rules::{
    Cluster, Endpoint, Node, Port, Service, Slice, rules, service_object, slice_object,
};

const SERVICES: u8 = 4;
const SLICES: u8 = 5;
/// Name, protocol and number of the ports that a service can have.
const PORTS: [(&str, &str, u16); 3] = [("p0", "TCP", 80), ("p1", "UDP", 80), ("p2", "TCP", 443)];

/// A cluster that changes.
pub struct State {
    pub cluster: Cluster,
    rng: Rng,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of the test")
}

impl State {
    /// An empty one; the same seed makes the same of it.
    pub fn new(seed: u64) -> Self {
        let addresses: Vec<IpAddr> = NODE_IPS.iter().map(|a| ip(a)).collect();
        let node = Node {
            name: tests_lab::NODE.into(),
            zone: None,
            node_port_addresses: addresses[..2].to_vec(),
            addresses,
        };
        Self {
            cluster: Cluster {
                node,
                services: BTreeMap::new(),
                slices: BTreeMap::new(),
            },
            rng: Rng::with_seed(seed),
        }
    }

    /// One to a few events at once.
    pub fn step(&mut self) -> Changes {
        let mut changes = Changes::default();
        let most = if self.cluster.services.is_empty() { 20 } else { 6 };
        for _ in 0..self.rng.usize(1..most) {
            match self.rng.u8(0..16) {
                0..=5 => self.put_service(&mut changes),
                6..=12 => self.put_slice(&mut changes),
                13 => self.drop_service(&mut changes),
                14 => self.drop_slice(&mut changes),
                _ => {
                    let zones = [None, Some("a"), Some("b")];
                    let zone = self.rng.choice(zones).flatten();
                    self.cluster.node.zone = zone.map(str::to_owned);
                }
            }
        }
        changes.zone.clone_from(&self.cluster.node.zone);
        changes
    }

    fn put_service(&mut self, changes: &mut Changes) {
        let service = self.service();
        changes.put(service_object(&service));
        self.cluster.services.insert(service.name.clone(), service);
    }

    fn put_slice(&mut self, changes: &mut Changes) {
        let slice = self.slice();
        changes.put(slice_object(&slice));
        self.cluster.slices.insert(slice.name.clone(), slice);
    }

    fn drop_service(&mut self, changes: &mut Changes) {
        let name = format!("s{}", self.rng.u8(0..SERVICES));
        if self.cluster.services.remove(&name).is_some() {
            changes.drop("Service", name);
        }
    }

    fn drop_slice(&mut self, changes: &mut Changes) {
        let name = slice_name(self.rng.u8(0..SLICES), self.rng.bool());
        if self.cluster.slices.remove(&name).is_some() {
            changes.drop("EndpointSlice", name);
        }
    }

    /// True in one of `n` cases.
    fn one_in(&mut self, n: u8) -> bool {
        self.rng.u8(0..n) == 0
    }

    fn service(&mut self) -> Service {
        let i = self.rng.u8(0..SERVICES);
        let families = self
            .rng
            .choice([&[4][..], &[6], &[4, 6], &[4, 6]])
            .unwrap_or(&[4]);
        let ips = |v4: &str, v6: &str| -> Vec<IpAddr> {
            let of = |f: &i32| ip(&format!("{}{i}", if *f == 4 { v4 } else { v6 }));
            families.iter().map(of).collect()
        };
        let mut external_ips = ips("192.0.2.1", "2001:db8:2::1");
        if self.one_in(2) {
            external_ips.clear();
        }
        let as_they_are = !self.one_in(6);
        let balancers = ips("198.51.100.1", "2001:db8:3::1");
        let balancer_ips: Vec<_> = balancers.into_iter().map(|ip| (ip, as_they_are)).collect();
        let node_ports = !self.one_in(3);
        let mut ports: Vec<Port> = (0..PORTS.len()).map(|n| port(i, n, node_ports)).collect();
        ports.retain(|_| !self.one_in(4));
        Service {
            name: format!("s{i}"),
            cluster_ips: ips("10.96.0.1", "fd00:10:96::1"),
            external_ips,
            balancer_ips: if self.one_in(3) { Vec::new() } else { balancer_ips },
            source_ranges: self.source_ranges(),
            ports,
            internal_local: self.one_in(4),
            external_local: self.one_in(3),
            affinity: self.one_in(5).then_some(10_800),
        }
    }

    fn source_ranges(&mut self) -> Vec<(IpAddr, u8)> {
        if !self.one_in(3) {
            return Vec::new();
        }
        let mut ranges = vec![
            (ip("203.0.113.0"), 25),
            (ip("2001:db8:5200::"), 64),
            (ip("10.89.0.0"), 24),
            (ip("10.244.0.0"), 16),
            (ip("fd00:10:244::"), 64),
            (ip("0.0.0.0"), 0),
        ];
        ranges.retain(|(_, bits)| self.one_in(if *bits == 0 { 10 } else { 2 }));
        ranges
    }

    fn slice(&mut self) -> Slice {
        let i = self.rng.u8(0..SLICES);
        let v4 = self.rng.bool();
        let number = self.rng.u16(8080..8082);
        let hinted = self.one_in(4);
        let count = self.rng.usize(0..5);
        let mut endpoints: Vec<Endpoint> = (0..count).map(|_| self.endpoint(i, v4, hinted)).collect();
        // Two copies of one endpoint that say different things have no one meaning: not in a slice, nor in two of one service.
        endpoints.sort_by_key(|e| e.ip);
        endpoints.dedup_by_key(|e| e.ip);
        Slice {
            name: slice_name(i, v4),
            service: format!("s{}", i % SERVICES),
            v4,
            ports: (0..PORTS.len())
                .map(|n| (PORTS[n].0.to_owned(), PORTS[n].1, number + n as u16))
                .collect(),
            endpoints,
        }
    }

    /// Where an endpoint is, its address tells; without a node's name it is nowhere that anybody knows of.
    fn endpoint(&mut self, slice: u8, v4: bool, hinted: bool) -> Endpoint {
        let second = slice >= SERVICES;
        let n = self.rng.u8(0..4) + 4 * u8::from(second);
        let (text, node) = match (self.rng.u8(u8::from(second)..8), v4) {
            (0, true) => ("10.244.0.32".to_owned(), "here"),
            (0, false) => ("fd00:10:244::4:0".to_owned(), "here"),
            (1..=4, true) => (format!("10.244.0.{}", 16 + n), "here"),
            (1..=4, false) => (format!("fd00:10:244::1:{n}"), "here"),
            (_, true) => (format!("10.244.1.{}", 2 + n), "there"),
            (_, false) => (format!("fd00:10:244:1::{n}"), "there"),
        };
        let nowhere = node == "there" && self.one_in(6);
        let terminating = self.one_in(4);
        let zones = ["a", "b"].map(str::to_owned).into_iter();
        let nodes = ["here", "there"].map(str::to_owned).into_iter();
        Endpoint {
            ip: ip(&text),
            ready: self.condition(if terminating { 2 } else { 5 }),
            serving: self.condition(4),
            terminating: terminating.then_some(true),
            node: (!nowhere).then(|| node.to_owned()),
            zones: zones.filter(|_| hinted && self.rng.bool()).collect(),
            nodes: nodes.filter(|_| hinted && self.rng.bool()).collect(),
        }
    }

    /// False in one of `n` cases, else true or left open.
    fn condition(&mut self, n: u8) -> Option<bool> {
        if self.one_in(n) {
            return Some(false);
        }
        self.rng.bool().then_some(true)
    }

    /// So many probes, most of them of addresses that a service has or could have.
    pub fn probes(&mut self, count: usize) -> Vec<Probe> {
        (0..count).map(|_| self.probe()).collect()
    }

    /// The service whose number the address or node port ends with, in words.
    pub fn about(&self, at: SocketAddr) -> String {
        let number = match at.port() {
            port @ 30_000.. => u32::from((port - 30_000) / 10),
            _ => at
                .ip()
                .to_string()
                .chars()
                .last()
                .and_then(|c| c.to_digit(10))
                .unwrap_or(0),
        };
        let name = format!("s{number}");
        let slices = self.cluster.slices.values().filter(|s| s.service == name);
        format!(
            "{:?}, {:?}",
            self.cluster.services.get(&name),
            slices.collect::<Vec<_>>()
        )
    }

    fn probe(&mut self) -> Probe {
        let fronts: Vec<_> = rules(&self.cluster).into_keys().collect();
        let front = self.rng.choice(fronts).filter(|_| self.rng.bool());
        let (to, proto) = match front {
            Some((ip, proto, port)) => (SocketAddr::new(ip, port), proto),
            None => self.any_front(),
        };
        Probe {
            client: self.rng.choice(Client::ALL).unwrap_or(Client::PodPackets),
            to,
            proto: if proto == "TCP" { Proto::Tcp } else { Proto::Udp },
            address: self.one_in(5).then_some(1),
        }
    }

    /// Where a service may be, or not.
    fn any_front(&mut self) -> (SocketAddr, &'static str) {
        let i = self.rng.u8(0..SERVICES);
        let v4 = self.rng.bool();
        let of = |v4_text: &str, v6_text: &str| ip(&format!("{}{i}", if v4 { v4_text } else { v6_text }));
        let n = self.rng.usize(0..PORTS.len());
        let node_port = 30_000 + u16::from(i) * 10 + n as u16;
        let (ip, number) = match self.rng.u8(0..10) {
            0..=2 => (of("10.96.0.1", "fd00:10:96::1"), PORTS[n].2),
            3 | 4 => (of("192.0.2.1", "2001:db8:2::1"), PORTS[n].2),
            5 | 6 => (of("198.51.100.1", "2001:db8:3::1"), PORTS[n].2),
            7 | 8 => (ip(NODE_IPS[usize::from(!v4)]), node_port),
            _ => self.unusual(i, v4),
        };
        let number = if self.one_in(12) { 81 } else { number };
        (SocketAddr::new(ip, number), PORTS[n].1)
    }

    /// Addresses that no service can have, and ports that none has.
    fn unusual(&mut self, i: u8, v4: bool) -> (IpAddr, u16) {
        let (of_family, port) = match self.rng.u8(0..4) {
            0 => (["10.96.0.77", "fd00:10:96::77"], 80),
            1 => (["198.51.100.77", "2001:db8:3::77"], 80),
            2 => ([NODE_IPS[2], NODE_IPS[3]], 30_000 + u16::from(i) * 10),
            _ => ([NODE_IPS[0], NODE_IPS[1]], 30_999),
        };
        (ip(of_family[usize::from(!v4)]), port)
    }
}

/// A slice is of one family for all its life.
fn slice_name(i: u8, v4: bool) -> String {
    format!("slice-{i}-{}", if v4 { 4 } else { 6 })
}

fn port(service: u8, n: usize, node_ports: bool) -> Port {
    let (name, proto, number) = PORTS[n];
    Port {
        name: name.to_owned(),
        proto,
        number,
        node_port: node_ports.then_some(30_000 + u16::from(service) * 10 + n as u16),
    }
}

impl Changes {
    /// Of two that concern one object the later one counts.
    fn put(&mut self, object: Value) {
        let name = |o: &Value| (o["kind"].clone(), o["metadata"]["name"].clone());
        let (kind, text) = name(&object);
        self.put.retain(|o| name(o) != name(&object));
        self.gone
            .retain(|(k, n)| kind != k.as_str() || text != n.as_str());
        self.put.push(object);
    }

    fn drop(&mut self, kind: &str, name: String) {
        self.put
            .retain(|o| o["kind"] != kind || o["metadata"]["name"] != name.as_str());
        self.gone.push((kind.to_owned(), name));
    }
}
