//! Rules of single services that surprise.
#![allow(clippy::unwrap_used)]

use agent_services::{
    EndpointView, Existing, Node, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView, Unused,
};
use datapath_abi::{FrontendFlags, Proto};

fn planner() -> Planner {
    let node = Node {
        name: "here".into(),
        ..Node::default()
    };
    Planner::new(node, Existing::default())
}

fn service(proto: Proto) -> ServiceView {
    ServiceView {
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![PortView {
            name: "p".into(),
            proto,
            port: 80,
            node_port: 0,
        }],
        ..ServiceView::new(ObjectName::new("ns", "web"))
    }
}

/// Endpoints as (last octet, ready, serving, terminating).
fn slice(proto: Proto, endpoints: &[(u8, bool, bool, bool)]) -> SliceView {
    SliceView {
        name: "web-1".into(),
        service: ObjectName::new("ns", "web"),
        ports: vec![SlicePort {
            name: "p".into(),
            proto,
            port: 8080,
        }],
        endpoints: endpoints
            .iter()
            .map(|&(host, ready, serving, terminating)| EndpointView {
                addr: [10, 244, 0, host].into(),
                ready,
                serving,
                terminating,
                node: None,
                zone_hints: Vec::new(),
                node_hints: Vec::new(),
            })
            .collect(),
    }
}

#[test]
fn flows_to_an_endpoint_that_still_serves_are_not_ended_until_it_stops() {
    let mut p = planner();
    p.service(service(Proto::UDP));
    p.slice(slice(
        Proto::UDP,
        &[(1, true, true, false), (2, true, true, false)],
    ));
    p.plan();
    p.slice(slice(
        Proto::UDP,
        &[(1, false, true, true), (2, true, true, false)],
    ));
    let changes = p.plan();
    assert_eq!(changes.ended, vec![], "it is terminating, and still serves");
    assert!(!changes.backends.is_empty(), "new flows go to the other one only");
    p.slice(slice(Proto::UDP, &[(2, true, true, false)]));
    let ended = p.plan().ended;
    assert_eq!(ended.len(), 1, "{ended:?}");
}

#[test]
fn flows_end_when_the_last_endpoint_or_the_service_goes() {
    let mut p = planner();
    p.service(service(Proto::UDP));
    p.slice(slice(Proto::UDP, &[(1, true, true, false)]));
    p.plan();
    p.slice(slice(Proto::UDP, &[]));
    assert_eq!(p.plan().ended.len(), 1);
    p.slice(slice(Proto::UDP, &[(1, true, true, false)]));
    p.plan();
    p.service_gone(&ObjectName::new("ns", "web"));
    assert_eq!(p.plan().ended.len(), 1);
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let mut p = planner();
    p.service(service(Proto::TCP));
    p.slice(slice(Proto::TCP, &[(1, true, true, false)]));
    p.plan();
    let mut renamed = slice(Proto::TCP, &[(1, true, true, false)]);
    renamed.endpoints[0].node = Some("there".into());
    p.slice(renamed);
    assert!(p.plan().is_empty());
}

#[test]
fn one_changed_endpoint_writes_that_service_only() {
    let mut p = planner();
    for i in 0..200_u8 {
        let name = ObjectName::new("ns", &format!("s{i}"));
        let mut s = service(Proto::TCP);
        s.name = name.clone();
        s.cluster_ips = vec![[10, 96, 1, i].into()];
        p.service(s);
        let mut e = slice(Proto::TCP, &[(1, true, true, false), (2, true, true, false)]);
        e.name = format!("s{i}-1").into();
        e.service = name;
        p.slice(e);
    }
    assert_eq!(p.plan().backends.len(), 400);
    let mut e = slice(Proto::TCP, &[(1, true, true, false)]);
    e.name = "s7-1".into();
    e.service = ObjectName::new("ns", "s7");
    p.slice(e);
    let changes = p.plan();
    assert_eq!(
        (
            changes.backends.len(),
            changes.frontends.len(),
            changes.gone_backends.len()
        ),
        (1, 1, 2)
    );
}

#[test]
fn an_address_that_moves_to_another_service_leads_there() {
    let mut p = planner();
    let mut maps = Existing::default();
    p.service(service(Proto::TCP));
    maps.apply(&p.plan());
    let mut heir = service(Proto::TCP);
    heir.name = ObjectName::new("ns", "heir");
    // The new owner is seen before the old one is gone.
    p.service(heir);
    maps.apply(&p.plan());
    p.service_gone(&ObjectName::new("ns", "web"));
    maps.apply(&p.plan());
    assert_eq!(maps.inconsistencies(), Vec::<String>::new());
    let owners: Vec<_> = maps.owners.values().map(|o| o.text().to_owned()).collect();
    assert_eq!(owners, ["ns/heir:p"]);
    assert_eq!(maps.frontends.len(), 2, "the port and the address itself");
}

#[test]
fn an_address_that_the_node_answers_itself_is_known_with_and_without_its_service() {
    let mut p = planner();
    let mut maps = Existing::default();
    p.service(service(Proto::UDP));
    maps.apply(&p.plan());
    let resolver = Node {
        dns: vec!["10.96.0.1".parse().unwrap()],
        ..p.node().clone()
    };
    p.set_node(resolver);
    maps.apply(&p.plan());
    assert_eq!(maps.inconsistencies(), Vec::<String>::new());
    let here = |maps: &Existing| {
        let all = maps.frontends.values();
        (
            all.clone().count(),
            all.filter(|v| v.flags.has(FrontendFlags::HERE)).count(),
        )
    };
    assert_eq!(here(&maps), (2, 2), "the port and the address itself");
    p.service_gone(&ObjectName::new("ns", "web"));
    maps.apply(&p.plan());
    assert_eq!(here(&maps), (1, 1));
    p.set_node(Node {
        dns: Vec::new(),
        ..p.node().clone()
    });
    maps.apply(&p.plan());
    assert_eq!(maps, Existing::default());
}

#[test]
fn a_removed_address_ends_the_flows_that_came_by_it() {
    let mut p = planner();
    let mut s = service(Proto::UDP);
    s.external_ips = vec!["192.0.2.1".parse().unwrap()];
    p.service(s.clone());
    p.slice(slice(Proto::UDP, &[(1, true, true, false)]));
    p.plan();
    assert!(p.has_external_fronts());
    s.external_ips.clear();
    p.service(s);
    let changes = p.plan();
    assert_eq!(changes.ended, vec![], "its endpoints go on");
    assert_eq!(changes.ended_fronts.len(), 1);
    assert_eq!(changes.backends, vec![], "no slot is written again");
    assert!(!p.has_external_fronts());
}

#[test]
fn it_is_told_why_an_endpoint_is_not_used() {
    let mut p = planner();
    p.service(service(Proto::TCP));
    p.slice(slice(
        Proto::TCP,
        &[
            (1, true, true, false),
            (2, false, true, true),
            (3, false, false, false),
        ],
    ));
    p.plan();
    let facts = p.endpoints(&ObjectName::new("ns", "web")).unwrap();
    let why: Vec<_> = facts[0].endpoints.iter().map(|e| e.unused).collect();
    assert_eq!(why, [None, Some(Unused::Terminating), Some(Unused::NotReady)]);
    assert!(p.endpoints(&ObjectName::new("ns", "other")).is_none());
}

#[test]
fn a_service_is_read_as_far_as_packets_go() {
    let read = |spec: serde_json::Value| {
        let object = serde_json::json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.4"}, {"ip": "198.51.100.8", "ipMode": "Proxy"}]}}});
        ServiceView::of(&serde_json::from_value(object).unwrap()).unwrap()
    };
    let view = read(serde_json::json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.041", "externalTrafficPolicy": "Local", "healthCheckNodePort": 345,
        "loadBalancerSourceRanges": [" 203.0.113.77/25 ", "nonsense"], "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "nodePort": 30080}],
    }));
    assert_eq!(
        view.cluster_ips,
        ["10.96.0.41".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        view.balancer_ips,
        ["198.51.100.4".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(view.source_ranges, [("203.0.113.0".parse().unwrap(), 25)]);
    assert_eq!((view.affinity, view.health_port), (10_800, Some(345)));
    assert_eq!(view.ports[0].node_port, 30_080);
    let named =
        read(serde_json::json!({"type": "ExternalName", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    assert_eq!(named, ServiceView::new(ObjectName::new("ns", "web")));
}
