//! The layer of `skep explain --state`: the scenario's objects as manifests, the connection as a question, the answer as an outcome.
use crate::Model;
use crate::flows::{ByLogic, Layer};
use crate::walk::{Connection, From, Memory, Outcome};
use agent_explain::{Ask, Explanation, Question, World, explain, planned};
use agent_services::Changes;
use datapath_abi::{Proto, Reason};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Explanations from manifests.
#[derive(Default)]
pub struct ByManifests {
    objects: Vec<Value>,
}

impl Layer for ByManifests {
    fn changed(&mut self, model: &Model, _: &Changes) {
        self.objects = model.objects.values().cloned().collect();
        self.objects.extend(node(model));
    }

    fn outcome(&mut self, model: &Model, c: &Connection) -> Outcome {
        let mut world = World::default();
        let client = client(model, c.from);
        for object in self.objects.iter().chain(&client) {
            world
                .add(object.clone())
                .unwrap_or_else(|e| panic!("{object}: {e}"));
        }
        let text = question(model, c);
        let question: Question = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        let packet = world
            .resolve(&question, "default")
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        let node = &model.planner.node().name;
        let tables = planned(&world, node, &model.node_ports);
        tables.affinity.borrow_mut().extend(model.affinity.iter());
        tables.clock.set(model.now());
        let ask = Ask {
            packets: matches!(c.from, From::PodPackets(_)),
            before_stack: matches!(c.from, From::UplinkEarly(_)),
            programs: None,
        };
        outcome(&explain(&world, &packet, node, &tables, ask), c)
    }

    /// Explaining makes no connection: the logic does.
    fn made(&mut self, model: &Model, connection: &Connection) -> (Option<SocketAddr>, Memory) {
        ByLogic.made(model, connection)
    }

    /// A socket's client keeps its endpoint by its network namespace, which manifests do not tell.
    fn knows_kept(&self, from: From) -> bool {
        !matches!(from, From::PodSocket(_) | From::Node)
    }
}

fn outcome(e: &Explanation, c: &Connection) -> Outcome {
    assert!(e.warnings.is_empty(), "{e:#?}");
    match e.outcome {
        agent_explain::Outcome::Untouched => Outcome::Untouched,
        agent_explain::Outcome::Dropped => Outcome::Dropped,
        // As for a socket's call on the other layers: the client gets nothing either way.
        agent_explain::Outcome::Refused
            if matches!(
                e.reason,
                Some(Reason::SocketNoLocalEndpoint | Reason::SocketSourceNotAllowed)
            ) =>
        {
            Outcome::Dropped
        }
        agent_explain::Outcome::Refused => Outcome::Rejected,
        agent_explain::Outcome::Endpoint => {
            let used = e.endpoints.iter().filter(|line| line.used);
            let ends: BTreeMap<SocketAddr, bool> = used
                .map(|line| {
                    let at = line
                        .address
                        .parse()
                        .unwrap_or_else(|e| panic!("{}: {e}", line.address));
                    (at, line.sees.is_some())
                })
                .collect();
            assert!(!ends.is_empty(), "{c:?}: no endpoint is marked: {e:#?}");
            Outcome::Endpoints(ends)
        }
    }
}

/// `10.0.0.2 -> 172.30.0.41:80/tcp`, as people write it.
fn question(model: &Model, c: &Connection) -> String {
    let from = match c.from {
        From::Node => format!("node/{}", model.planner.node().name),
        From::PodSocket(ip) | From::PodPackets(ip) | From::Uplink(ip) | From::UplinkEarly(ip) => {
            ip.to_string()
        }
    };
    let proto = match c.proto {
        Proto::UDP => "udp",
        Proto::SCTP => "sctp",
        _ => "tcp",
    };
    format!("{from} -> {}/{proto}", c.to)
}

/// The node as the API has it, and the service ranges.
fn node(model: &Model) -> Vec<Value> {
    let node = model.planner.node();
    let range = |(ip, bits): &(IpAddr, u8)| format!("{ip}/{bits}");
    let addresses: Vec<_> = node
        .addresses
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    let mut meta = json!({"name": &*node.name});
    if let Some(zone) = &node.zone {
        meta["labels"] = json!({"topology.kubernetes.io/zone": &**zone});
    }
    let pods: Vec<_> = node.pod_ranges.iter().map(range).collect();
    let services: Vec<_> = model.ranges().iter().map(range).collect();
    vec![
        json!({"kind": "Node", "metadata": meta, "spec": {"podCIDRs": pods}, "status": {"addresses": addresses}}),
        json!({"kind": "ServiceCIDR", "metadata": {"name": "all"}, "spec": {"cidrs": services}}),
    ]
}

/// The pod of this node that asks; nobody else is known.
fn client(model: &Model, from: From) -> Option<Value> {
    let (From::PodSocket(ip) | From::PodPackets(ip)) = from else {
        return None;
    };
    Some(
        json!({"kind": "Pod", "metadata": {"name": "client", "namespace": "default"},
        "spec": {"nodeName": &*model.planner.node().name, "containers": []}, "status": {"podIP": ip, "podIPs": [{"ip": ip}]}}),
    )
}
