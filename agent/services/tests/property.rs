//! Whatever happens in whatever order: the maps become what is wanted, and at no moment does a frontend lead nowhere.
#![allow(clippy::unwrap_used)]

use agent_services::{
    Changes, EndpointView, Existing, Node, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView,
};
use datapath_abi::{BackendKey, FrontendKey, FrontendValue, Owner, Proto};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Something that is observed.
#[derive(Clone, Debug)]
enum Event {
    Service(ServiceView),
    ServiceGone(ObjectName),
    Slice(SliceView),
    SliceGone(ObjectName),
    /// The planner is asked what to do.
    Plan,
    /// A new agent starts from the maps and observes everything again.
    Restart,
    /// Writing stops after this many entries; the planner starts again from what stands there.
    Fail(usize),
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    (0..4_u8).prop_map(|i| ObjectName::new("ns", &format!("s{i}")))
}

fn service() -> impl Strategy<Value = ServiceView> {
    let ips = proptest::sample::subsequence(
        vec![
            "10.96.0.1",
            "10.96.0.2",
            "10.96.0.3",
            "fd00:10:96::1",
            "fd00:10:96::2",
        ],
        0..3,
    );
    let ports = proptest::sample::subsequence(
        vec![
            ("a", Proto::TCP, 80),
            ("b", Proto::UDP, 80),
            ("c", Proto::TCP, 81),
        ],
        1..4,
    );
    let external = proptest::sample::subsequence(vec!["192.0.2.1", "192.0.2.2", "2001:db8::9"], 0..3);
    let balancer = proptest::sample::subsequence(vec!["192.0.2.1", "198.51.100.1", "2001:db8::8"], 0..2);
    let ranges = proptest::sample::subsequence(
        vec![("203.0.113.0", 25), ("192.168.0.0", 16), ("2001:db8::", 32)],
        0..3,
    );
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (service_name(), ips, ports, external, balancer, ranges, flags).prop_map(
        |(
            name,
            ips,
            ports,
            external,
            balancer,
            ranges,
            (internal_local, external_local, kept, node_ports),
        )| {
            let parse = |ips: Vec<&str>| ips.iter().map(|ip| ip.parse().unwrap()).collect();
            ServiceView {
                cluster_ips: parse(ips),
                external_ips: parse(external),
                balancer_ips: parse(balancer),
                source_ranges: ranges
                    .iter()
                    .map(|(ip, bits)| (ip.parse().unwrap(), *bits))
                    .collect(),
                ports: ports
                    .into_iter()
                    .map(|(name, proto, port)| PortView {
                        name: name.into(),
                        proto,
                        port,
                        node_port: if node_ports { 30_000 + port } else { 0 },
                    })
                    .collect(),
                internal_local,
                external_local,
                affinity: if kept { 10 } else { 0 },
                ..ServiceView::new(name)
            }
        },
    )
}

fn endpoint() -> impl Strategy<Value = EndpointView> {
    (0..6_u8, any::<bool>(), any::<(bool, bool, bool)>(), any::<bool>()).prop_map(
        |(host, v6, (ready, serving, terminating), local)| EndpointView {
            addr: if v6 {
                format!("fd00:10:244::{host}").parse().unwrap()
            } else {
                IpAddr::from([10, 244, 0, host])
            },
            ready,
            serving,
            terminating,
            node: Some(if local { "here" } else { "there" }.into()),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        },
    )
}

fn slice() -> impl Strategy<Value = SliceView> {
    let endpoints = proptest::collection::vec(endpoint(), 0..5);
    (service_name(), 0..3_u8, endpoints, 8080..8082_u16).prop_map(|(service, i, endpoints, port)| SliceView {
        name: format!("slice-{i}").into(),
        service,
        ports: [("a", Proto::TCP), ("b", Proto::UDP), ("c", Proto::TCP)]
            .map(|(name, proto)| SlicePort {
                name: name.into(),
                proto,
                port,
            })
            .to_vec(),
        endpoints,
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => service().prop_map(Event::Service),
        1 => service_name().prop_map(Event::ServiceGone),
        6 => slice().prop_map(Event::Slice),
        1 => (0..3_u8).prop_map(|i| Event::SliceGone(ObjectName::new("ns", &format!("slice-{i}")))),
        3 => Just(Event::Plan),
        1 => Just(Event::Restart),
        1 => (0..20_usize).prop_map(Event::Fail),
    ]
}

fn planner(existing: Existing) -> Planner {
    let node = Node {
        name: "here".into(),
        addresses: vec!["192.168.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        node_port_addresses: vec!["192.168.0.2".parse().unwrap()],
        dns: vec!["10.96.0.3".parse().unwrap()],
        ..Node::default()
    };
    Planner::new(node, existing)
}

/// What is in the API, to be observed again by another planner.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<ObjectName, ServiceView>,
    slices: BTreeMap<ObjectName, SliceView>,
}

impl Cluster {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Service(s) => drop(self.services.insert(s.name.clone(), s.clone())),
            Event::ServiceGone(name) => drop(self.services.remove(name)),
            Event::Slice(s) => drop(self.slices.insert(ObjectName::new("ns", &s.name), s.clone())),
            Event::SliceGone(name) => drop(self.slices.remove(name)),
            _ => {}
        }
    }

    fn tell(&self, planner: &mut Planner) {
        self.services.values().for_each(|s| planner.service(s.clone()));
        self.slices.values().for_each(|s| planner.slice(s.clone()));
    }
}

/// Carries out changes one entry at a time, in their order; stops after `most` entries.
fn write(maps: &mut Existing, c: &Changes, most: usize) -> Result<(), String> {
    let mut steps: Vec<Changes> = Vec::new();
    let one = |f: &dyn Fn(&mut Changes)| {
        let mut c = Changes::default();
        f(&mut c);
        c
    };
    steps.extend(c.owners.iter().map(|e| one(&|c| c.owners.push(*e))));
    steps.extend(c.backends.iter().map(|e| one(&|c| c.backends.push(*e))));
    steps.extend(c.members.iter().map(|e| one(&|c| c.members.push(*e))));
    steps.extend(c.maglev.iter().map(|e| one(&|c| c.maglev.push(*e))));
    steps.extend(c.ranges.iter().map(|e| one(&|c| c.ranges.push(*e))));
    steps.extend(c.frontends.iter().map(|e| one(&|c| c.frontends.push(*e))));
    steps.extend(
        c.gone_frontends
            .iter()
            .map(|e| one(&|c| c.gone_frontends.push(*e))),
    );
    steps.extend(c.gone_ranges.iter().map(|e| one(&|c| c.gone_ranges.push(*e))));
    steps.extend(c.gone_maglev.iter().map(|e| one(&|c| c.gone_maglev.push(*e))));
    steps.extend(c.gone_members.iter().map(|e| one(&|c| c.gone_members.push(*e))));
    steps.extend(c.gone_backends.iter().map(|e| one(&|c| c.gone_backends.push(*e))));
    steps.extend(c.gone_owners.iter().map(|e| one(&|c| c.gone_owners.push(*e))));
    for step in steps.iter().take(most) {
        maps.apply(step);
        let wrong = maps.dangling();
        if !wrong.is_empty() {
            return Err(format!("{wrong:?} after {step:?}"));
        }
    }
    Ok(())
}

/// The maps without ids, which differ between planners that saw things in another order.
fn meaning(maps: &Existing) -> Vec<String> {
    let owner = |v: &FrontendValue| maps.owners.get(&v.set).map_or("?", Owner::text).to_owned();
    let line = |k: &FrontendKey, v: &FrontendValue| {
        let slots: Vec<_> = (0..v.slots())
            .map(|slot| {
                let key = BackendKey {
                    set: v.set,
                    generation: v.generation,
                    slot,
                };
                maps.backends.get(&key).map(|b| (b.addr, b.port, b.flags))
            })
            .collect();
        let mut ranges: Vec<_> = maps
            .ranges
            .iter()
            .filter(|r| r.set == v.set.0.to_be_bytes())
            .map(|r| (r.bits, r.addr))
            .collect();
        ranges.sort();
        format!(
            "{k:?} {} {:?} {} {} {} {} {slots:?} {ranges:?}",
            owner(v),
            v.flags,
            v.count,
            v.local,
            v.local_first,
            v.affinity
        )
    };
    let mut lines: Vec<_> = maps.frontends.iter().map(|(k, v)| line(k, v)).collect();
    lines.sort();
    lines
}

/// Services whose addresses nobody else has: for those the outcome does not depend on who came first.
fn addresses_are_unique(cluster: &Cluster) -> bool {
    let mut seen = std::collections::HashSet::new();
    let fronts = |s: &ServiceView| {
        let external: BTreeSet<IpAddr> = s.external_ips.iter().chain(&s.balancer_ips).copied().collect();
        let node_ports = s.ports.iter().any(|p| p.node_port != 0);
        let node = node_ports.then(|| "192.168.0.2".parse().unwrap());
        s.cluster_ips
            .iter()
            .copied()
            .chain(external)
            .chain(node)
            .collect::<Vec<_>>()
    };
    let mut ips = cluster.services.values().flat_map(fronts);
    ips.all(|ip| seen.insert(ip))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_maps_become_what_is_wanted_and_no_frontend_ever_leads_nowhere(
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let (mut maps, mut cluster) = (Existing::default(), Cluster::default());
        let mut p = planner(Existing::default());
        for e in &events {
            cluster.observe(e);
            match e {
                Event::Service(s) => p.service(s.clone()),
                Event::ServiceGone(name) => p.service_gone(name),
                Event::Slice(s) => p.slice(s.clone()),
                Event::SliceGone(name) => p.slice_gone(name),
                Event::Plan => {
                    prop_assert_eq!(write(&mut maps, &p.plan(), usize::MAX), Ok(()));
                    prop_assert_eq!(maps.inconsistencies(), Vec::<String>::new());
                }
                Event::Restart => {
                    p = planner(maps.clone());
                    cluster.tell(&mut p);
                    prop_assert_eq!(write(&mut maps, &p.plan(), usize::MAX), Ok(()));
                    prop_assert_eq!(maps.inconsistencies(), Vec::<String>::new());
                }
                Event::Fail(n) => {
                    prop_assert_eq!(write(&mut maps, &p.plan(), *n), Ok(()));
                    p.restart(maps.clone());
                }
            }
        }
        prop_assert_eq!(write(&mut maps, &p.plan(), usize::MAX), Ok(()));
        prop_assert_eq!(maps.inconsistencies(), Vec::<String>::new());

        // A planner that sees only the end comes to the same maps.
        if addresses_are_unique(&cluster) {
            let mut fresh = planner(Existing::default());
            cluster.tell(&mut fresh);
            let mut wanted = Existing::default();
            wanted.apply(&fresh.plan());
            prop_assert_eq!(meaning(&maps), meaning(&wanted));
            // And one that starts from the maps finds nothing to do, but to clear what is counted for nobody.
            let mut next = planner(maps.clone());
            cluster.tell(&mut next);
            let mut again = next.plan();
            again.gone_numbers.clear();
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }
}
