//! Rules of single services that surprise.
#![allow(clippy::unwrap_used)]

use agent_services::{
    EndpointView, Existing, Node, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView,
};
use datapath_abi::Proto;

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
