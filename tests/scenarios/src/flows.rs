//! kube-proxy's behaviour as data: each scenario's flows, through one layer after another.
//!
//! `differences.toml` lists the flows in which we differ on purpose, each under its reason. A flow that differs and is not
//! listed fails, and so does a listed one that differs no longer. All layers answer to the same list.
use crate::walk::{Connection, From, Memory, Outcome};
use crate::{Model, list, parse_range, texts};
use agent_services::{Changes, Node, ObjectName, node_port_addresses};
use datapath_abi::Proto;
use datapath_logic::host::Logic;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Whatever can be asked what becomes of a connection on the node of a model.
pub trait Layer {
    /// The maps of the model changed.
    fn changed(&mut self, model: &Model, changes: &Changes);
    /// Every outcome that a connection can have now. Nothing is remembered of it.
    fn outcome(&mut self, model: &Model, connection: &Connection) -> Outcome;
    /// Makes a connection: its endpoint, and what clients keep from then on.
    fn made(&mut self, model: &Model, connection: &Connection) -> (Option<SocketAddr>, Memory);
    /// Whether it knows what a client keeps that comes this way.
    fn knows_kept(&self, from: From) -> bool {
        let _ = from;
        true
    }
}

/// Planner and logic.
pub struct ByLogic;

impl Layer for ByLogic {
    fn changed(&mut self, _: &Model, _: &Changes) {}

    fn outcome(&mut self, model: &Model, connection: &Connection) -> Outcome {
        let host = model.host(0);
        connection.outcome(model, &mut Logic::over(&host))
    }

    fn made(&mut self, model: &Model, connection: &Connection) -> (Option<SocketAddr>, Memory) {
        let host = model.host(0);
        let mut logic = Logic::over(&host);
        let (endpoint, memory) = connection.made(model, &mut logic);
        (
            endpoint,
            memory.unwrap_or_else(|| logic.now.affinity.into_inner()),
        )
    }
}

/// All scenarios.
pub fn scenarios() -> Vec<Value> {
    serde_json::from_str(include_str!("../data/kube-proxy-flows.json")).expect("the file is JSON")
}

/// The node of a scenario, without objects.
pub fn model_of(scenario: &Value) -> Model {
    let node = &scenario["node"];
    Model {
        node_ports: texts(node, "nodeport_addresses"),
        ..Model::new(node_of(node), &texts(node, "service_cidrs"))
    }
}

/// A scenario's node as a planner knows it.
pub fn node_of(node: &Value) -> Node {
    let addresses: Vec<IpAddr> = texts(node, "ips")
        .iter()
        .chain(&texts(node, "extra_local_ips"))
        .map(|ip| ip.parse().expect("an address"))
        .collect();
    let pods = texts(&node["detect_local"], "cidrs");
    Node {
        name: node["name"].as_str().expect("a node has a name").into(),
        zone: node["zone"].as_str().map(Into::into),
        node_port_addresses: node_port_addresses(&addresses, &texts(node, "nodeport_addresses")),
        addresses,
        pod_ranges: pods.iter().map(|r| parse_range(r)).collect(),
        dns: Vec::new(),
    }
}

/// All ways that such a connection can take through our node.
fn ways(flow: &Value) -> Vec<From> {
    let from = flow["from"].as_str().expect("a flow comes from somewhere");
    let (kind, ip) = from.split_once(' ').expect("a kind and an address");
    let ip: IpAddr = ip.parse().expect("an address");
    match kind {
        "pod-local" => vec![From::PodSocket(ip), From::PodPackets(ip)],
        "node" => vec![From::Node],
        "external" | "pod-remote" => vec![From::Uplink(ip), From::UplinkEarly(ip)],
        other => panic!("a flow from a {other}"),
    }
}

fn target(flow: &Value) -> (SocketAddr, Proto) {
    let ip: IpAddr = flow["to"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("an address");
    let port = flow["port"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok())
        .expect("a port");
    let proto = match flow["protocol"].as_str() {
        Some("UDP") => Proto::UDP,
        Some("SCTP") => Proto::SCTP,
        _ => Proto::TCP,
    };
    (SocketAddr::new(ip, port), proto)
}

fn ends(flow: &Value, field: &str) -> BTreeSet<SocketAddr> {
    let texts = texts(flow, field);
    texts.iter().map(|t| t.parse().expect("an endpoint")).collect()
}

/// What kube-proxy in nftables mode does.
fn wanted(flow: &Value) -> &str {
    let same = flow["expect"].as_str();
    same.or_else(|| flow["expect_nftables"].as_str())
        .expect("a flow expects something")
}

/// How the outcome differs from kube-proxy's.
fn differs(flow: &Value, way: From, got: &Outcome) -> Option<String> {
    let Outcome::Endpoints(endpoints) = got else {
        let same = matches!(
            (wanted(flow), got),
            ("accept-direct", Outcome::Untouched)
                | ("reject", Outcome::Rejected)
                | ("drop", Outcome::Dropped)
        );
        return (!same).then(|| format!("{way:?}: {} wanted, got {got:?}", wanted(flow)));
    };
    let drawn: BTreeSet<_> = endpoints.keys().copied().collect();
    if wanted(flow) != "backends" || drawn != ends(flow, "backends") {
        let backends = texts(flow, "backends");
        return Some(format!(
            "{way:?}: {} {backends:?} wanted, got {drawn:?}",
            wanted(flow)
        ));
    }
    let differing: Vec<_> = endpoints
        .iter()
        .filter(|(e, got)| masquerade(flow, e).is_some_and(|m| m != **got))
        .collect();
    (!differing.is_empty()).then(|| format!("{way:?}: masqueraded otherwise: {differing:?}"))
}

/// Whether kube-proxy would show this endpoint the node's address; `None` where that is not told. The node's own processes have the
/// node's address whoever sees it.
fn masquerade(flow: &Value, endpoint: &SocketAddr) -> Option<bool> {
    if flow["from"].as_str().is_some_and(|f| f.starts_with("node ")) {
        return None;
    }
    if ends(flow, "snat_if_backend").contains(endpoint) {
        return Some(true);
    }
    flow["snat"].as_bool().or_else(|| flow["snat_nftables"].as_bool())
}

/// What is kept from flow to flow of a scenario, for each way separately: the second would find what the first one left.
#[derive(Default)]
struct Drawn {
    /// Endpoints that earlier flows were given, by the flow's id and the way it took.
    endpoints: HashMap<(String, usize), SocketAddr>,
    memory: [Memory; 2],
}

/// Affinity: the flow has to repeat an earlier one's endpoint, or must be free not to.
fn repeats(flow: &Value, way: usize, got: &Outcome, drawn: &Drawn) -> Option<String> {
    let of = |field: &str| Some(drawn.endpoints.get(&(flow[field].as_str()?.to_owned(), way)));
    let Outcome::Endpoints(endpoints) = got else {
        return None;
    };
    if let Some(before) = of("same_backend_as") {
        let kept: Vec<_> = endpoints.keys().copied().collect();
        let same = before.is_some_and(|b| kept == [*b]);
        return (!same).then(|| format!("{before:?} is not kept: {kept:?}"));
    }
    if of("independent_of").is_some() && endpoints.len() < 2 {
        return Some("it draws what another one keeps".to_owned());
    }
    None
}

/// Affinity flows may be given less than they could be: what is drawn is among it.
fn differs_when_kept(flow: &Value, way: From, got: &Outcome) -> Option<String> {
    let Outcome::Endpoints(endpoints) = got else {
        return differs(flow, way, got);
    };
    let among = ends(flow, "backends");
    if !endpoints.keys().all(|e| among.contains(e)) {
        return Some(format!("{way:?}: {endpoints:?} is not among {among:?}"));
    }
    let differing = endpoints
        .iter()
        .any(|(e, got)| masquerade(flow, e).is_some_and(|m| m != *got));
    differing.then(|| format!("{way:?}: masqueraded otherwise: {endpoints:?}"))
}

/// One step of a scenario: an object comes, changes or goes, or the node changes.
fn step(model: &mut Model, step: &Value) {
    match step["op"].as_str() {
        Some("apply") => model.apply(&step["object"]),
        Some("delete") => model.delete(
            step["kind"].as_str().expect("a kind"),
            &ObjectName::new(
                step["namespace"].as_str().expect("a namespace"),
                step["name"].as_str().expect("a name"),
            ),
        ),
        Some("node") => model
            .planner
            .set_zone(step["set"]["zone"].as_str().map(Into::into)),
        other => panic!("an unknown step {other:?}"),
    }
}

/// A layer on its way through the scenarios: flows that differ, by scenario and number, in words.
struct Course<'a> {
    layer: &'a mut dyn Layer,
    run: usize,
    differing: BTreeMap<(String, usize), Vec<String>>,
}

impl Course<'_> {
    fn scenario(&mut self, scenario: &Value) {
        let (mut model, mut drawn) = (model_of(scenario), Drawn::default());
        for object in list(scenario, "services")
            .iter()
            .chain(list(scenario, "endpointslices"))
        {
            model.apply(object);
        }
        self.sync(&mut model);
        self.flows(scenario, 0, &mut model, &mut drawn);
        for (i, s) in list(scenario, "steps").iter().enumerate() {
            step(&mut model, s);
            self.sync(&mut model);
            self.flows(scenario, i + 1, &mut model, &mut drawn);
        }
        for (kind, name) in model.objects.keys().cloned().collect::<Vec<_>>() {
            model.delete(&kind, &name);
        }
        self.sync(&mut model);
    }

    fn sync(&mut self, model: &mut Model) {
        let changes = model.sync();
        self.layer.changed(model, &changes);
    }

    /// Runs all flows that hold after `done` steps.
    fn flows(&mut self, scenario: &Value, done: usize, model: &mut Model, drawn: &mut Drawn) {
        let all = list(scenario, "steps").len();
        for (i, flow) in list(scenario, "flows").iter().enumerate() {
            if flow["after_step"].as_u64().map_or(all, |n| n as usize) != done {
                continue;
            }
            self.run += 1;
            let id = scenario["id"].as_str().expect("a scenario has an id").to_owned();
            for text in self.flow(flow, model, drawn) {
                self.differing.entry((id.clone(), i)).or_default().push(text);
            }
        }
    }

    fn flow(&mut self, flow: &Value, model: &mut Model, drawn: &mut Drawn) -> Vec<String> {
        let (to, proto) = target(flow);
        let mut found = Vec::new();
        model.seconds = flow["at"].as_u64().unwrap_or(model.seconds);
        for (i, from) in ways(flow).into_iter().enumerate() {
            let connection = Connection { from, to, proto };
            std::mem::swap(&mut model.affinity, &mut drawn.memory[i]);
            let got = self.layer.outcome(model, &connection);
            let knows = self.layer.knows_kept(from);
            if knows {
                found.extend(repeats(flow, i, &got, drawn));
            }
            if flow.get("same_backend_as").is_some() && knows {
                found.extend(differs_when_kept(flow, from, &got));
            } else {
                found.extend(differs(flow, from, &got));
            }
            if let Some(id) = flow["id"].as_str() {
                let (endpoint, memory) = self.layer.made(model, &connection);
                model.affinity = memory;
                if let Some(endpoint) = endpoint {
                    drawn.endpoints.insert((id.to_owned(), i), endpoint);
                }
            }
            std::mem::swap(&mut model.affinity, &mut drawn.memory[i]);
        }
        found
    }
}

/// Runs every flow of every scenario through a layer, and panics with those that differ from kube-proxy and are not listed, or
/// are listed and differ no longer.
pub fn flows_of_kube_proxy(layer: &mut dyn Layer) {
    let mut course = Course {
        layer,
        run: 0,
        differing: BTreeMap::new(),
    };
    for scenario in scenarios() {
        course.scenario(&scenario);
    }
    assert_eq!(course.run, 516, "every flow is run");
    let listed = Listed::read().flows();
    let unlisted: Vec<_> = course
        .differing
        .iter()
        .filter(|(k, _)| !listed.contains(*k))
        .map(|((id, i), texts)| format!("{id} flow {i}: {}", texts.join("; ")))
        .collect();
    let same: Vec<_> = listed
        .iter()
        .filter(|k| !course.differing.contains_key(*k))
        .collect();
    assert!(
        unlisted.is_empty() && same.is_empty(),
        "{} flows differ and are not listed:\n{}\nlisted, and the same: {same:?}",
        unlisted.len(),
        unlisted.join("\n")
    );
}

/// The committed list.
#[derive(Deserialize)]
struct Listed {
    reasons: BTreeMap<String, Reason>,
}

#[derive(Deserialize)]
struct Reason {
    why: String,
    #[serde(default)]
    flows: BTreeMap<String, Vec<usize>>,
}

/// The names of all reasons, those too that no flow of the data has.
pub fn reasons() -> BTreeSet<String> {
    Listed::read().reasons.into_keys().collect()
}

impl Listed {
    fn read() -> Self {
        toml::from_str(include_str!("../differences.toml")).expect("the list of differences is TOML")
    }

    fn flows(&self) -> BTreeSet<(String, usize)> {
        let mut found = BTreeSet::new();
        for (name, reason) in &self.reasons {
            assert!(reason.why.len() > 20, "{name} does not say why");
            for (scenario, flows) in &reason.flows {
                for flow in flows {
                    assert!(
                        found.insert((scenario.clone(), *flow)),
                        "{scenario} flow {flow} is listed twice"
                    );
                }
            }
        }
        found
    }
}
