//! Whatever happens in whatever order: after each plan the maps say what the plain rules say, and what a planner that sees
//! only the end writes.
use agent_services::{Existing, ObjectName};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tests_scenarios::rules::{
    Cluster, Endpoint, Node, Port, Service, Slice, rules, service_object, slice_object,
};
use tests_scenarios::{Model, read, whole_addresses};

const SERVICES: u8 = 4;

#[derive(Clone, Debug)]
enum Event {
    Service(Service),
    ServiceGone(u8),
    Slice(Slice),
    SliceGone(String),
    Node(Node),
    /// A new agent starts from the maps.
    Restart,
}

fn ip(text: String) -> IpAddr {
    text.parse().expect("an address")
}

fn service_name(i: u8) -> String {
    format!("s{i}")
}

/// Each service has addresses of its own: who gets one that two want is another test's business.
fn service() -> impl Strategy<Value = Service> {
    let ranges = vec![
        (ip("192.168.0.0".into()), 24),
        (ip("203.0.113.0".into()), 25),
        (ip("0.0.0.0".into()), 0),
        (ip("2001:db8::".into()), 64),
    ];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let affinity = proptest::option::weighted(0.3, select(vec![1_u32, 10_800]));
    (
        0..SERVICES,
        subsequence(vec![4, 6], 0..=2),
        subsequence(vec![0_u16, 1, 2], 1..=3),
        subsequence(ranges, 0..=2),
        flags,
        affinity,
        any::<u8>(),
    )
        .prop_map(
            |(
                i,
                families,
                ports,
                source_ranges,
                (internal_local, external_local, external, balancer),
                affinity,
                bits,
            )| {
                let ips = |v4: &str, v6: &str, wanted: bool| -> Vec<IpAddr> {
                    let both = families.iter().map(|f| {
                        if *f == 4 {
                            ip(format!("{v4}{i}"))
                        } else {
                            ip(format!("{v6}{i}"))
                        }
                    });
                    both.filter(|_| wanted).collect()
                };
                Service {
                    name: service_name(i),
                    cluster_ips: ips("10.96.0.1", "fd00:10:96::1", true),
                    external_ips: ips("192.0.2.1", "2001:db8:2::1", external),
                    balancer_ips: ips("198.51.100.1", "2001:db8:3::1", balancer)
                        .into_iter()
                        .map(|ip| (ip, bits & 1 == 0))
                        .collect(),
                    source_ranges,
                    ports: ports.iter().map(|n| port(i, *n, bits & 2 == 0)).collect(),
                    internal_local,
                    external_local,
                    affinity,
                }
            },
        )
}

fn port(service: u8, n: u16, node_ports: bool) -> Port {
    Port {
        name: format!("p{n}"),
        proto: if n == 1 { "UDP" } else { "TCP" },
        number: if n == 2 { 443 } else { 80 },
        node_port: node_ports.then_some(30_000 + u16::from(service) * 10 + n),
    }
}

fn endpoint(v4: bool) -> impl Strategy<Value = Endpoint> {
    let condition = || proptest::option::of(any::<bool>());
    let node = proptest::option::weighted(0.9, select(vec!["here".to_owned(), "there".to_owned()]));
    let zones = subsequence(vec!["a".to_owned(), "b".to_owned()], 0..=2);
    let nodes = subsequence(vec!["here".to_owned(), "there".to_owned()], 0..=2);
    let hints = prop_oneof![3 => Just((Vec::new(), Vec::new())), 1 => (zones, nodes)];
    (
        1..7_u8,
        condition(),
        condition(),
        proptest::option::weighted(0.3, any::<bool>()),
        node,
        hints,
    )
        .prop_map(
            move |(host, ready, serving, terminating, node, (zones, nodes))| Endpoint {
                // Host 6 is the node itself.
                ip: match (v4, host) {
                    (true, 6) => ip("192.168.0.2".into()),
                    (true, _) => ip(format!("10.244.0.{host}")),
                    (false, _) => ip(format!("fd00:10:244::{host}")),
                },
                ready,
                serving,
                terminating,
                node,
                zones,
                nodes,
            },
        )
}

fn slice() -> impl Strategy<Value = Slice> {
    let shape = (0..SERVICES, 0..3_u8, any::<bool>(), 8080..8082_u16);
    shape.prop_flat_map(|(service, i, v4, number)| {
        proptest::collection::vec(endpoint(v4), 0..5).prop_map(move |endpoints| Slice {
            name: format!("slice-{i}"),
            service: service_name(service),
            v4,
            ports: (0..3)
                .map(|n| (format!("p{n}"), if n == 1 { "UDP" } else { "TCP" }, number + n))
                .collect(),
            endpoints,
        })
    })
}

fn node() -> impl Strategy<Value = Node> {
    let zone = select(vec![None, Some("a".to_owned()), Some("b".to_owned())]);
    let own = ["192.168.0.2", "192.168.1.2", "2001:db8::1"]
        .map(|a| ip(a.to_owned()))
        .to_vec();
    (zone, subsequence(own.clone(), 0..=3), any::<bool>()).prop_map(
        move |(zone, node_port_addresses, turned)| {
            let mut addresses = own.clone();
            if turned {
                addresses.swap(0, 1);
            }
            Node {
                name: "here".into(),
                zone,
                addresses,
                node_port_addresses,
            }
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => service().prop_map(Event::Service),
        1 => (0..SERVICES).prop_map(Event::ServiceGone),
        6 => slice().prop_map(Event::Slice),
        1 => (0..3_u8).prop_map(|i| Event::SliceGone(format!("slice-{i}"))),
        1 => node().prop_map(Event::Node),
        1 => Just(Event::Restart),
    ]
}

fn planned_node(node: &Node) -> agent_services::Node {
    agent_services::Node {
        name: node.name.as_str().into(),
        zone: node.zone.as_deref().map(Into::into),
        addresses: node.addresses.clone(),
        node_port_addresses: node.node_port_addresses.clone(),
        ..agent_services::Node::default()
    }
}

fn fresh(node: &Node) -> Model {
    Model::new(
        planned_node(node),
        &["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()],
    )
}

/// All objects of the cluster.
fn objects(cluster: &Cluster) -> Vec<Value> {
    let services = cluster.services.values().map(service_object);
    services
        .chain(cluster.slices.values().map(slice_object))
        .collect()
}

/// Observes it in the cluster and in the model.
fn observe(event: &Event, cluster: &mut Cluster, model: &mut Model) {
    match event {
        Event::Service(s) => {
            model.apply(&service_object(s));
            cluster.services.insert(s.name.clone(), s.clone());
        }
        Event::ServiceGone(i) => {
            model.delete("Service", &ObjectName::new("ns", &service_name(*i)));
            cluster.services.remove(&service_name(*i));
        }
        Event::Slice(s) => {
            model.apply(&slice_object(s));
            cluster.slices.insert(s.name.clone(), s.clone());
        }
        Event::SliceGone(name) => {
            model.delete("EndpointSlice", &ObjectName::new("ns", name));
            cluster.slices.remove(name);
        }
        Event::Node(node) => {
            model.planner.set_node(planned_node(node));
            cluster.node = node.clone();
        }
        Event::Restart => {
            let maps = std::mem::take(&mut model.maps);
            *model = fresh(&cluster.node);
            model.planner = agent_services::Planner::new(planned_node(&cluster.node), maps.clone());
            model.maps = maps;
            objects(cluster).iter().for_each(|o| model.apply(o));
        }
    }
}

/// The maps say what the plain rules say.
fn agree(model: &Model, cluster: &Cluster) -> Result<(), TestCaseError> {
    let mut plain = rules(cluster);
    plain.values_mut().for_each(|r| r.service.insert_str(0, "ns/"));
    prop_assert_eq!(read(&model.maps), plain);
    let with_ports = cluster.services.values().filter(|s| !s.ports.is_empty());
    let whole: BTreeSet<IpAddr> = with_ports.flat_map(|s| s.cluster_ips.clone()).collect();
    prop_assert_eq!(whole_addresses(&model.maps), whole);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_maps_say_what_the_plain_rules_say(
        first in node(),
        events in proptest::collection::vec((event(), proptest::bool::weighted(0.7)), 1..30),
    ) {
        let mut model = fresh(&first);
        let mut cluster = Cluster { node: first, services: BTreeMap::new(), slices: BTreeMap::new() };
        for (event, plan) in &events {
            observe(event, &mut cluster, &mut model);
            if *plan {
                // Checks that no entry names what is missing, and that nothing is left over.
                model.sync();
                agree(&model, &cluster)?;
            }
        }
        model.sync();
        agree(&model, &cluster)?;

        let (mut forward, mut backward) = (fresh(&cluster.node), fresh(&cluster.node));
        let all = objects(&cluster);
        all.iter().for_each(|o| forward.apply(o));
        forward.sync();
        for o in all.iter().rev() {
            backward.apply(o);
            backward.sync();
        }
        prop_assert_eq!(model.dump(), forward.dump());
        prop_assert_eq!(model.dump(), backward.dump());

        for o in &all {
            model.delete(o["kind"].as_str().expect("a kind"), &tests_scenarios::name(o));
            model.sync();
        }
        prop_assert_eq!(&model.maps, &Existing::default());
    }
}
