//! Reading the fixtures.
use crate::frame::Frame;
use crate::names::Names;
use crate::text::{Reading, proto};
use agent_services::{EndpointView, ObjectName, PortView, ServiceView, SlicePort, SliceView};
use datapath_abi::Proto;
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
    /// Passes as the same packet between these ends, the second pair for what an error quotes.
    Becomes(String),
    /// Answered by a reset, or by port unreachable.
    Rejected,
    Dropped,
}

/// A packet of a case. `given` in place of a port stands for the one that the node chose last.
#[derive(Clone, Debug)]
pub struct Step {
    pub text: String,
    /// What passes before it.
    pub wait: Duration,
    pub hook: Hook,
    pub outcome: Outcome,
    packet: String,
    names: Names,
    main: Proto,
}

impl Step {
    /// The packet; `given` is the port that the node chose last.
    pub fn frame(&self, given: u16) -> Frame {
        self.reading(given)
            .packet(&self.packet)
            .unwrap_or_else(|| panic!("not a packet: {}", self.text))
    }

    /// Whether it needs the port that the node chose.
    pub fn uses_given(&self) -> bool {
        self.text.contains(":given")
    }

    pub(crate) fn reading(&self, given: u16) -> Reading {
        Reading {
            names: self.names,
            main: self.main,
            given,
        }
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
    #[serde(default = "both")]
    families: Vec<u8>,
    services: Vec<RawService>,
    packets: Vec<String>,
}

fn tcp_and_udp() -> Vec<String> {
    vec!["TCP".into(), "UDP".into()]
}

fn both() -> Vec<u8> {
    vec![4, 6]
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
        ("errors.toml", include_str!("../fixtures/errors.toml")),
        ("fragments.toml", include_str!("../fixtures/fragments.toml")),
        ("headers.toml", include_str!("../fixtures/headers.toml")),
        ("flows.toml", include_str!("../fixtures/flows.toml")),
        ("sctp.toml", include_str!("../fixtures/sctp.toml")),
    ];
    let mut all = Vec::new();
    for (name, text) in files {
        let file: File = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        for raw in &file.case {
            for family in &raw.families {
                let names = Names { v4: *family == 4 };
                all.extend(raw.protocols.iter().map(|p| one(raw, names, proto(p))));
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
        steps: steps(&raw.packets, names, main),
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

/// `hook packet : outcome`; `wait SECONDS` counts for the next packet.
fn steps(texts: &[String], names: Names, main: Proto) -> Vec<Step> {
    let mut all = Vec::new();
    let mut wait = Duration::ZERO;
    for text in texts {
        match text.strip_prefix("wait ") {
            Some(seconds) => {
                let seconds = seconds.parse().unwrap_or_else(|_| panic!("no time: {text}"));
                wait += Duration::from_secs(seconds);
            }
            None => all.push(step(text, std::mem::take(&mut wait), names, main)),
        }
    }
    all
}

fn step(text: &str, wait: Duration, names: Names, main: Proto) -> Step {
    let read = || {
        let (packet, outcome) = text.rsplit_once(" : ")?;
        let (hook, packet) = packet.split_once(' ')?;
        let step = Step {
            text: text.to_owned(),
            wait,
            hook: hook_of(hook)?,
            outcome: outcome_of(outcome.trim(), names)?,
            packet: packet.to_owned(),
            names,
            main,
        };
        step.reading(1).packet(&step.packet)?;
        Some(step)
    };
    read().unwrap_or_else(|| panic!("not a packet: {text}"))
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
        Some(("becomes", ends)) => Outcome::Becomes(ends.to_owned()),
        _ => return None,
    })
}
