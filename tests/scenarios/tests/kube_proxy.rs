//! kube-proxy's behaviour as data: each scenario's flows, decided by our tables.
//!
//! Flows that need what is not built yet are left out with their reason; `skips.txt` lists them, and differs as soon as one
//! more is left out or one less needs to be.
use datapath_abi::Proto;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use tests_scenarios::{Model, Outcome, golden, name};

fn scenarios() -> Vec<Value> {
    let text = include_str!("../data/kube-proxy-flows.json");
    serde_json::from_str(text).expect("the file is JSON")
}

fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map_or(&[], Vec::as_slice)
}

fn model(scenario: &Value) -> Model {
    let node = &scenario["node"];
    let ranges: Vec<String> = list(node, "service_cidrs")
        .iter()
        .filter_map(|c| c.as_str().map(str::to_owned))
        .collect();
    Model::new(
        node["name"].as_str().expect("a node has a name"),
        node["zone"].as_str(),
        &ranges,
    )
}

/// Why a flow cannot be decided yet.
fn skip(scenario: &Value, flow: &Value) -> Option<&'static str> {
    let from = flow["from"].as_str().unwrap_or_default();
    if from.starts_with("external") || from.starts_with("pod-remote") {
        return Some("traffic from outside the node is not served yet");
    }
    if flow["protocol"] == "SCTP" {
        return Some("SCTP is not served yet");
    }
    if flow.get("at").is_some() {
        return Some("session affinity is not built yet");
    }
    let to: IpAddr = flow["to"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("an address");
    let cluster_range = match to {
        IpAddr::V4(v4) => v4.octets()[..2] == [172, 30],
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd00, 0x172, 0x30],
    };
    if !cluster_range && touches_service(scenario, flow) {
        return Some("node ports, external and load balancer addresses are not built yet");
    }
    None
}

/// Whether the flow expects anything else than being left alone.
fn touches_service(_scenario: &Value, flow: &Value) -> bool {
    expectation(flow) != "accept-direct"
}

fn expectation(flow: &Value) -> &str {
    flow["expect"]
        .as_str()
        .or_else(|| flow["expect_nftables"].as_str())
        .expect("a flow expects something")
}

fn check(scenario: &Value, index: usize, flow: &Value, model: &Model) -> Result<(), String> {
    let proto = if flow["protocol"] == "UDP" {
        Proto::UDP
    } else {
        Proto::TCP
    };
    let ip: IpAddr = flow["to"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("an address");
    let port = flow["port"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok())
        .expect("a port");
    let got = model.connect(SocketAddr::new(ip, port), proto);
    let wanted = match expectation(flow) {
        "accept-direct" => Outcome::Untouched,
        "reject" => Outcome::Rejected,
        "drop" => Outcome::Dropped,
        "backends" => Outcome::Endpoints(backends(flow)),
        other => panic!("an unknown expectation {other}"),
    };
    if got == wanted {
        return Ok(());
    }
    let id = scenario["id"].as_str().unwrap_or_default();
    Err(format!(
        "{id} flow {index} ({}): wanted {wanted:?}, got {got:?}",
        flow["why"]
    ))
}

fn backends(flow: &Value) -> BTreeSet<SocketAddr> {
    let text = |b: &Value| b.as_str().and_then(|t| t.parse().ok()).expect("an endpoint");
    list(flow, "backends").iter().map(text).collect()
}

fn step(model: &mut Model, step: &Value) {
    match step["op"].as_str() {
        Some("apply") => model.apply(&step["object"]),
        Some("delete") => model.delete(
            step["kind"].as_str().expect("a kind"),
            &agent_services::ObjectName::new(
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

/// Runs all flows that hold after `done` steps.
fn flows(scenario: &Value, done: usize, model: &Model, seen: &mut Seen) {
    let all = list(scenario, "steps").len();
    for (i, flow) in list(scenario, "flows").iter().enumerate() {
        let after = flow["after_step"].as_u64().map_or(all, |n| n as usize);
        if after != done {
            continue;
        }
        match skip(scenario, flow) {
            Some(reason) => seen.skipped.push(format!(
                "{} flow {i}: {reason}",
                scenario["id"].as_str().unwrap_or_default()
            )),
            None => {
                seen.run += 1;
                seen.failed.extend(check(scenario, i, flow, model).err());
            }
        }
    }
}

#[derive(Default)]
struct Seen {
    run: usize,
    skipped: Vec<String>,
    failed: Vec<String>,
}

fn objects(scenario: &Value) -> Vec<&Value> {
    let (services, slices) = (list(scenario, "services"), list(scenario, "endpointslices"));
    services.iter().chain(slices).collect()
}

#[test]
fn services_behave_as_under_kube_proxy() {
    let mut seen = Seen::default();
    for scenario in scenarios() {
        let mut model = model(&scenario);
        for object in objects(&scenario) {
            model.apply(object);
        }
        model.sync();
        flows(&scenario, 0, &model, &mut seen);
        for (i, s) in list(&scenario, "steps").iter().enumerate() {
            step(&mut model, s);
            flows(&scenario, i + 1, &model, &mut seen);
        }
    }
    assert!(
        seen.failed.is_empty(),
        "{} of {}:\n{}",
        seen.failed.len(),
        seen.run,
        seen.failed.join("\n")
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("skips.txt");
    let text = format!(
        "# Flows of kube-proxy-flows.json that are not decided yet, and why. {} flows are.\n{}\n",
        seen.run,
        seen.skipped.join("\n")
    );
    golden(&path, &text);
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
    }
}
