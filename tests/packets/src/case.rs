//! Reading the fixtures.
use crate::flag;
use crate::frame::Frame;
use crate::names::Names;
use agent_services::{EndpointView, ObjectName, PortView, ServiceView, SlicePort, SliceView};
use datapath_abi::Proto;
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

/// What has to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passes, byte by byte the same.
    Untouched,
    /// Passes with one of these destinations; `same`: the one that the last packet of this kind had.
    SentTo {
        ends: Vec<SocketAddr>,
        same: bool,
    },
    /// Passes with this source.
    ComesFrom(SocketAddr),
    /// Passes with the node's address and a port of its choice as source.
    Masqueraded,
    /// Answered by a reset, or by port unreachable.
    Rejected,
    Dropped,
}

/// A packet of a case. `given` in place of a port stands for the one that the node chose last.
#[derive(Clone, Debug)]
pub struct Step {
    pub text: String,
    pub hook: Hook,
    pub proto: Proto,
    pub flags: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub to_given: bool,
    pub outcome: Outcome,
}

impl Step {
    /// The packet; `given` is the port that the node chose last.
    pub fn frame(&self, given: u16) -> Frame {
        let mut to = self.to;
        if self.to_given {
            to.set_port(given);
        }
        Frame::new(self.proto, self.flags, self.from, to)
    }
}

/// A service of a case, in one family.
#[derive(Clone, Debug)]
pub struct Service {
    pub view: ServiceView,
    pub slice: SliceView,
}

/// Some services, then packets in order.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub services: Vec<Service>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
struct File {
    case: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default = "tcp_and_udp")]
    protocols: Vec<String>,
    services: Vec<RawService>,
    packets: Vec<String>,
}

fn tcp_and_udp() -> Vec<String> {
    vec!["TCP".into(), "UDP".into()]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawService {
    address: String,
    port: u16,
    /// Of all protocols of the case, unless it says so.
    protocol: Option<String>,
    endpoints: Vec<String>,
    node_port: u16,
    balancer: bool,
    external: bool,
    ranges: Vec<String>,
    internal_local: bool,
    external_local: bool,
    affinity: u32,
}

impl Default for RawService {
    fn default() -> Self {
        Self {
            address: "vip".into(),
            port: 80,
            protocol: None,
            endpoints: Vec::new(),
            node_port: 0,
            balancer: false,
            external: false,
            ranges: Vec::new(),
            internal_local: false,
            external_local: false,
            affinity: 0,
        }
    }
}

/// All cases: each in both families, with each protocol.
pub fn cases() -> Vec<Case> {
    let files = [
        ("cluster.toml", include_str!("../fixtures/cluster.toml")),
        ("outside.toml", include_str!("../fixtures/outside.toml")),
    ];
    let mut all = Vec::new();
    for (name, text) in files {
        let file: File = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        for raw in &file.case {
            for v4 in [true, false] {
                all.extend(raw.protocols.iter().map(|p| one(raw, Names { v4 }, proto(p))));
            }
        }
    }
    all
}

fn one(raw: &Raw, names: Names, main: Proto) -> Case {
    let family = if names.v4 { "IPv4" } else { "IPv6" };
    let services = raw.services.iter().enumerate();
    Case {
        name: format!("{} ({family}, {main:?})", raw.name),
        services: services.map(|(i, s)| service(i, s, names, main)).collect(),
        steps: raw.packets.iter().map(|p| step(p, names, main)).collect(),
    }
}

fn proto(text: &str) -> Proto {
    match text {
        "TCP" => Proto::TCP,
        "UDP" => Proto::UDP,
        other => panic!("{other} is no protocol of the fixtures"),
    }
}

fn service(number: usize, raw: &RawService, names: Names, main: Proto) -> Service {
    let proto = raw.protocol.as_deref().map_or(main, proto);
    let name = ObjectName::new("default", &format!("s{number}"));
    let one = |wanted: bool, who: &str| wanted.then(|| names.ip(who)).into_iter().collect();
    let view = ServiceView {
        cluster_ips: vec![names.ip(&raw.address)],
        external_ips: one(raw.external, "external"),
        balancer_ips: one(raw.balancer, "balancer"),
        source_ranges: raw.ranges.iter().map(|r| names.range(r)).collect(),
        ports: vec![PortView {
            name: "p".into(),
            proto,
            port: raw.port,
            node_port: raw.node_port,
        }],
        internal_local: raw.internal_local,
        external_local: raw.external_local,
        affinity: raw.affinity,
        ..ServiceView::new(name.clone())
    };
    let slice = SliceView {
        name: format!("s{number}").into(),
        service: name,
        ports: vec![SlicePort {
            name: "p".into(),
            proto,
            port: 8080,
        }],
        endpoints: raw.endpoints.iter().map(|e| endpoint(e, names)).collect(),
    };
    Service { view, slice }
}

/// Pods called `remote…` are on another node.
fn endpoint(name: &str, names: Names) -> EndpointView {
    let node = if name.starts_with("remote") {
        "elsewhere"
    } else {
        tests_lab::NODE
    };
    EndpointView {
        addr: names.ip(name),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(Arc::from(node)),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

/// `hook flags from > to : outcome`; the flags count for TCP only.
fn step(text: &str, names: Names, main: Proto) -> Step {
    let bad = || -> String { format!("not a packet: {text}") };
    let (packet, outcome) = text.split_once(" : ").unwrap_or_else(|| panic!("{}", bad()));
    let words: Vec<&str> = packet.split_whitespace().collect();
    let [hook, flags, from, ">", to] = words[..] else {
        panic!("{}", bad())
    };
    let (proto, flags) = match flags.split_once('/') {
        Some((p, flags)) => (proto(p), flags),
        None => (main, flags),
    };
    let to_given = to.ends_with(":given");
    Step {
        text: text.to_owned(),
        hook: hook_of(hook).unwrap_or_else(|| panic!("{}", bad())),
        proto,
        flags: if proto == Proto::TCP { tcp_flags(flags) } else { 0 },
        from: names.at(from),
        to: names.at(&to.replace(":given", ":0")),
        to_given,
        outcome: outcome_of(outcome.trim(), names).unwrap_or_else(|| panic!("{}", bad())),
    }
}

fn hook_of(text: &str) -> Option<Hook> {
    Some(match text {
        "from-pod" => Hook::FromPod,
        "to-pod" => Hook::ToPod,
        "from-uplink" => Hook::FromUplink,
        "to-uplink" => Hook::ToUplink,
        _ => return None,
    })
}

fn tcp_flags(text: &str) -> u8 {
    let one = |f: &str| match f {
        "syn" => flag::SYN,
        "ack" => flag::ACK,
        "fin" => flag::FIN,
        "rst" => flag::RST,
        other => panic!("{other} is no TCP flag"),
    };
    text.split('+').map(one).sum()
}

fn outcome_of(text: &str, names: Names) -> Option<Outcome> {
    Some(match text.split_once(' ') {
        None if text == "untouched" => Outcome::Untouched,
        None if text == "rejected" => Outcome::Rejected,
        None if text == "dropped" => Outcome::Dropped,
        None if text == "masqueraded" => Outcome::Masqueraded,
        Some(("to", ends)) => {
            let (ends, same) = ends.strip_suffix(" same").map_or((ends, false), |e| (e, true));
            Outcome::SentTo {
                ends: ends.split('|').map(|e| names.at(e)).collect(),
                same,
            }
        }
        Some(("from", end)) => Outcome::ComesFrom(names.at(end)),
        _ => return None,
    })
}
