//! kube-proxy's behaviour as data: each scenario's flows, through planner and logic.
//!
//! `differences.toml` lists the flows in which we differ on purpose, each under its reason. A flow that differs and is not
//! listed fails, and so does a listed one that differs no longer.
use agent_services::{Node, ObjectName, node_port_addresses};
use datapath_abi::{Affinity, AffinityKey, Proto};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use tests_scenarios::{From, Model, Outcome, list, name, parse_range, texts};

fn scenarios() -> Vec<Value> {
    serde_json::from_str(include_str!("../data/kube-proxy-flows.json")).expect("the file is JSON")
}

fn model(scenario: &Value) -> Model {
    Model::new(
        node(&scenario["node"]),
        &texts(&scenario["node"], "service_cidrs"),
    )
}

fn node(node: &Value) -> Node {
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
    memory: [HashMap<AffinityKey, Affinity>; 2],
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
    model.sync();
}

/// Flows that differ, by scenario and number, in words.
#[derive(Default)]
struct Seen {
    run: usize,
    differing: BTreeMap<(String, usize), Vec<String>>,
}

/// Runs all flows that hold after `done` steps.
fn flows(scenario: &Value, done: usize, model: &mut Model, drawn: &mut Drawn, seen: &mut Seen) {
    let all = list(scenario, "steps").len();
    for (i, flow) in list(scenario, "flows").iter().enumerate() {
        if flow["after_step"].as_u64().map_or(all, |n| n as usize) != done {
            continue;
        }
        seen.run += 1;
        let id = scenario["id"].as_str().expect("a scenario has an id").to_owned();
        for text in run(flow, model, drawn) {
            seen.differing.entry((id.clone(), i)).or_default().push(text);
        }
    }
}

fn run(flow: &Value, model: &mut Model, drawn: &mut Drawn) -> Vec<String> {
    let (to, proto) = target(flow);
    let mut found = Vec::new();
    let timed = flow["at"].as_u64();
    model.seconds = timed.unwrap_or(model.seconds);
    for (i, way) in ways(flow).into_iter().enumerate() {
        std::mem::swap(&mut model.affinity, &mut drawn.memory[i]);
        let got = model.connect(way, to, proto);
        found.extend(repeats(flow, i, &got, drawn));
        if flow.get("same_backend_as").is_some() {
            found.extend(differs_when_kept(flow, way, &got));
        } else {
            found.extend(differs(flow, way, &got));
        }
        if let Some(id) = flow["id"].as_str()
            && let Some(endpoint) = model.connect_once(way, to, proto, 0x9e37_79b9)
        {
            drawn.endpoints.insert((id.to_owned(), i), endpoint);
        }
        std::mem::swap(&mut model.affinity, &mut drawn.memory[i]);
    }
    found
}

fn objects(scenario: &Value) -> Vec<&Value> {
    let (services, slices) = (list(scenario, "services"), list(scenario, "endpointslices"));
    services.iter().chain(slices).collect()
}

/// The committed list.
#[derive(Deserialize)]
struct Listed {
    reasons: BTreeMap<String, Reason>,
}

#[derive(Deserialize)]
struct Reason {
    why: String,
    flows: BTreeMap<String, Vec<usize>>,
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

#[test]
fn services_behave_as_under_kube_proxy_but_for_what_is_listed() {
    let mut seen = Seen::default();
    for scenario in scenarios() {
        let (mut model, mut drawn) = (model(&scenario), Drawn::default());
        for object in objects(&scenario) {
            model.apply(object);
        }
        model.sync();
        flows(&scenario, 0, &mut model, &mut drawn, &mut seen);
        for (i, s) in list(&scenario, "steps").iter().enumerate() {
            step(&mut model, s);
            flows(&scenario, i + 1, &mut model, &mut drawn, &mut seen);
        }
    }
    assert_eq!(seen.run, 516, "every flow is run");
    let listed = Listed::read().flows();
    let unlisted: Vec<_> = seen
        .differing
        .iter()
        .filter(|(k, _)| !listed.contains(*k))
        .map(|((id, i), texts)| format!("{id} flow {i}: {}", texts.join("; ")))
        .collect();
    let same: Vec<_> = listed
        .iter()
        .filter(|k| !seen.differing.contains_key(*k))
        .collect();
    assert!(
        unlisted.is_empty() && same.is_empty(),
        "{} flows differ and are not listed:\n{}\nlisted, and the same: {same:?}",
        unlisted.len(),
        unlisted.join("\n")
    );
}

#[test]
fn ports_that_drop_by_policy_are_counted_as_under_kube_proxy() {
    let mut checked = 0;
    for scenario in scenarios() {
        let metrics = &scenario["metrics"]["kubeproxy_sync_proxy_rules_no_local_endpoints_total"];
        let (Some(internal), Some(external)) = (metrics["internal"].as_u64(), metrics["external"].as_u64())
        else {
            continue;
        };
        let mut model = model(&scenario);
        objects(&scenario).iter().for_each(|o| model.apply(o));
        model.sync();
        let got = model.planner.no_local_endpoints();
        assert_eq!(
            (got.internal as u64, got.external as u64),
            (internal, external),
            "{}",
            scenario["id"]
        );
        checked += 1;
    }
    assert_eq!(checked, 5);
}

#[test]
fn the_order_in_which_objects_are_seen_does_not_matter() {
    for scenario in scenarios() {
        let (mut forward, mut backward, mut singly) = (model(&scenario), model(&scenario), model(&scenario));
        let objects = objects(&scenario);
        for object in &objects {
            forward.apply(object);
            singly.apply(object);
            singly.sync();
        }
        for object in objects.iter().rev() {
            backward.apply(object);
        }
        forward.sync();
        backward.sync();
        assert_eq!(forward.dump(), backward.dump(), "{}", scenario["id"]);
        assert_eq!(forward.dump(), singly.dump(), "{}", scenario["id"]);
    }
}

#[test]
fn deleting_everything_leaves_nothing() {
    for scenario in scenarios() {
        let mut model = model(&scenario);
        let objects = objects(&scenario);
        for object in &objects {
            model.apply(object);
        }
        model.sync();
        for object in &objects {
            model.delete(object["kind"].as_str().expect("a kind"), &name(object));
            model.sync();
        }
        assert_eq!(
            model.maps,
            agent_services::Existing::default(),
            "{}",
            scenario["id"]
        );
        assert!(!model.planner.has_external_fronts());
    }
}
