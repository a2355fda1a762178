//! Which flows of datagrams a change ends, against what kube-proxy cleans from connection tracking; and the counts that health checks are told.
use agent_services::{Node, ObjectName};
use datapath_abi::{Address, Be16, FrontendKey, Proto, SetId};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tests_scenarios::{Model, list, name};

fn read(text: &str) -> Value {
    serde_json::from_str(text).expect("the file is JSON")
}

fn model() -> Model {
    let addresses: Vec<IpAddr> = ["192.168.0.2", "192.168.1.2", "2001:db8::1"]
        .map(|a| a.parse().expect("an address"))
        .to_vec();
    let node = Node {
        name: "test-node".into(),
        node_port_addresses: addresses.clone(),
        addresses,
        ..Node::default()
    };
    Model::new(
        node,
        &["172.30.0.0/16".to_owned(), "fd00:172:30::/112".to_owned()],
    )
}

fn objects(of: &Value) -> Vec<Value> {
    list(of, "services")
        .iter()
        .chain(list(of, "endpointslices"))
        .cloned()
        .collect()
}

/// Applies a state: what it lacks is deleted.
fn become_(model: &mut Model, before: &[Value], after: &[Value]) {
    let id = |o: &Value| (o["kind"].to_string(), name(o));
    let kept: BTreeSet<_> = after.iter().map(id).collect();
    for gone in before.iter().filter(|o| !kept.contains(&id(o))) {
        model.delete(gone["kind"].as_str().expect("a kind"), &name(gone));
    }
    after.iter().for_each(|o| model.apply(o));
}

/// Entries in which we end more than kube-proxy, by scenario: it leaves them to time out.
const ENDED_SOONER: [&str; 6] = [
    "front-removed",
    "front-removed-and-endpoint-changed",
    "last-endpoint-removed",
    "last-endpoint-stops-serving",
    "service-and-slices-deleted",
    "service-deleted-slices-stay",
];

fn address(entry: &Value, field: &str) -> Address {
    let ip: IpAddr = entry[field]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("an address");
    ip.into()
}

fn port(entry: &Value, field: &str) -> Option<Be16> {
    let n = entry[field].as_u64().and_then(|n| u16::try_from(n).ok());
    n.map(Be16::new)
}

/// The set from which a flow of the state before got its endpoint; `None` if such a flow cannot be: no service was addressed, it was
/// never translated, or no slot led to the endpoint.
fn set(model: &Model, entry: &Value) -> Option<SetId> {
    let proto = match entry["protocol"].as_str() {
        Some("UDP") => Proto::UDP,
        Some("SCTP") => Proto::SCTP,
        _ => Proto::TCP,
    };
    let key = FrontendKey::new(address(entry, "orig_dst"), port(entry, "orig_dst_port")?, proto);
    let front = model.maps.frontends.get(&key)?;
    let endpoint = (address(entry, "reply_src"), port(entry, "reply_src_port")?);
    let mut slots = model.maps.backends.iter().filter(|(k, _)| k.set == front.set);
    slots
        .any(|(_, b)| (b.addr, b.port) == endpoint)
        .then_some(front.set)
}

#[test]
fn flows_of_datagrams_end_when_their_endpoint_does() {
    let scenarios = read(include_str!("../data/kube-proxy-conntrack.json"));
    let (mut compared, mut sooner) = (0, BTreeSet::new());
    for scenario in scenarios.as_array().expect("a list") {
        let id = scenario["id"].as_str().expect("an id");
        let mut model = model();
        let (before, after) = (objects(&scenario["before"]), objects(&scenario["after"]));
        become_(&mut model, &[], &before);
        model.sync();
        let entries: Vec<_> = list(scenario, "entries")
            .iter()
            .map(|e| (e, set(&model, e)))
            .collect();
        become_(&mut model, &before, &after);
        let changes = model.sync();
        for (entry, set) in entries {
            let (Some(set), Some(endpoint_port)) = (set, port(entry, "reply_src_port")) else {
                continue;
            };
            let endpoint = (address(entry, "reply_src"), endpoint_port);
            let by_endpoint = changes
                .ended
                .iter()
                .any(|e| e.set == set && (e.addr, e.port) == endpoint);
            let front = (
                address(entry, "orig_dst"),
                port(entry, "orig_dst_port").expect("seen above"),
            );
            let by_front = changes
                .ended_fronts
                .iter()
                .any(|f| f.set == set && (f.addr, f.port) == front);
            let ended = entry["protocol"] == "UDP" && (by_endpoint || by_front);
            compared += 1;
            match (entry["expect"].as_str(), ended) {
                (Some("cleared"), true) | (Some("kept"), false) => {}
                (Some("kept"), true) if ENDED_SOONER.contains(&id) => {
                    sooner.insert(id.to_owned());
                }
                (wanted, _) => panic!(
                    "{id}: {entry} is to be {wanted:?}, ended here: {ended}; {:?}",
                    changes.ended
                ),
            }
        }
    }
    assert!(compared > 20, "{compared} entries are compared");
    let listed: BTreeSet<String> = ENDED_SOONER.map(str::to_owned).into();
    assert_eq!(sooner, listed, "what is listed differs, and nothing else does");
}

#[test]
fn health_checks_are_told_how_many_ready_addresses_are_here() {
    let facts = read(include_str!("../data/kube-proxy-health.json"));
    for scenario in list(&facts, "endpoint_counts") {
        let mut model = model();
        let mut before = Vec::new();
        for state in list(scenario, "states") {
            let after = objects(state);
            become_(&mut model, &before, &after);
            model.sync();
            let counts = state["counts"].as_object().expect("counts by service");
            let mut names: BTreeSet<ObjectName> = after.iter().map(service_of).collect();
            names.extend(before.iter().map(service_of));
            for service in names {
                let wanted = counts
                    .get(&service.to_string())
                    .and_then(Value::as_u64)
                    .unwrap_or(0);
                assert_eq!(
                    model.planner.local_ready(&service) as u64,
                    wanted,
                    "{} {service}",
                    scenario["id"]
                );
            }
            before = after;
        }
    }
}

fn service_of(slice: &Value) -> ObjectName {
    let of = |v: &Value| v.as_str().expect("a text").to_owned();
    let labels = &slice["metadata"]["labels"];
    ObjectName::new(
        &of(&slice["metadata"]["namespace"]),
        &of(&labels["kubernetes.io/service-name"]),
    )
}

#[test]
fn only_load_balancers_with_local_policy_are_asked_about() {
    let facts = read(include_str!("../data/kube-proxy-health.json"));
    let listened =
        |model: &Model| -> Vec<u64> { model.planner.health().iter().map(|h| u64::from(h.port)).collect() };
    let wanted = |of: &Value| -> Vec<u64> { list(of, "listens").iter().filter_map(Value::as_u64).collect() };
    let mut seen = 0;
    for scenario in list(&facts, "listeners") {
        let mut model = model();
        let steps = list(scenario, "states");
        let states = if steps.is_empty() {
            std::slice::from_ref(scenario)
        } else {
            steps
        };
        for state in states.iter().filter(|s| s.get("service").is_some()) {
            model.apply(&state["service"]);
            model.sync();
            assert_eq!(listened(&model), wanted(state), "{}", scenario["id"]);
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} services");
}
