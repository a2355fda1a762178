//! Ports of the node that lead to a pod.
#![allow(clippy::unwrap_used)]
use agent_services::{
    Changes, EndedBackend, EndedFront, Existing, HostPortsView, Node, ObjectName, Planner, PortView,
    ServiceView,
};
use datapath_abi::{FrontendFlags, Proto};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::net::SocketAddr;

fn node() -> Node {
    let ips = ["192.0.2.1", "2001:db8::1", "fe80::1"];
    Node {
        name: "here".into(),
        addresses: ips.iter().map(|a| a.parse().unwrap()).collect(),
        ..Node::default()
    }
}

fn pod(name: &str, ip: &str, ports: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}, {"ip": "fd00::7"}]},
    }))
    .unwrap()
}

fn view(name: &str, ip: &str, ports: &Value) -> HostPortsView {
    HostPortsView::of(&pod(name, ip, ports)).unwrap()
}

/// Plans, writes, and checks what stands then.
fn written(planner: &mut Planner, maps: &mut Existing) -> Changes {
    let changes = planner.plan();
    maps.apply(&changes);
    assert_eq!(maps.inconsistencies(), Vec::<String>::new());
    changes
}

/// Each front with its endpoints, in order.
fn fronts(maps: &Existing) -> Vec<String> {
    let mut all: Vec<_> = maps
        .frontends
        .iter()
        .map(|(key, value)| {
            let mut ends: Vec<_> = maps.backends.iter().filter(|(k, _)| k.set == value.set).collect();
            ends.sort();
            let ends: Vec<_> = ends
                .iter()
                .map(|(_, b)| SocketAddr::new(b.addr.to_ip(), b.port.get()).to_string())
                .collect();
            let only = if value.flags.has(FrontendFlags::NODE_ONLY) {
                " for the node"
            } else {
                ""
            };
            let front = SocketAddr::new(key.addr.to_ip(), key.port.get());
            format!("{front}/{} -> {}{only}", key.proto.0, ends.join(" "))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_host_port_is_served_at_every_address_of_the_node_and_at_loopback_for_the_node_alone() {
    let (mut planner, mut maps) = (Planner::new(node(), Existing::default()), Existing::default());
    let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
    planner.host_ports(&[view("web", "10.0.0.7", &ports)]);
    written(&mut planner, &mut maps);
    assert_eq!(
        fronts(&maps),
        [
            "127.0.0.1:8080/6 -> 10.0.0.7:80 for the node",
            "192.0.2.1:8080/6 -> 10.0.0.7:80",
            "[2001:db8::1]:8080/6 -> [fd00::7]:80",
            "[::1]:8080/6 -> [fd00::7]:80 for the node",
        ]
    );
    assert!(planner.has_external_fronts());
    let owners: Vec<_> = maps.owners.values().map(|o| o.text().to_owned()).collect();
    assert!(owners.iter().all(|o| o == "default/pod/web:8080"), "{owners:?}");
}

#[test]
fn one_port_is_different_pods_at_different_addresses_and_protocols() {
    let (mut planner, mut maps) = (Planner::new(node(), Existing::default()), Existing::default());
    let at = |ip: &str, proto: &str| json!([{"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": proto}]);
    planner.host_ports(&[
        view("a", "10.0.0.1", &at("127.0.0.1", "TCP")),
        view("b", "10.0.0.2", &at("192.0.2.1", "TCP")),
        view("c", "10.0.0.3", &at("192.0.2.1", "UDP")),
        view("d", "10.0.0.4", &at("0.0.0.0", "SCTP")),
    ]);
    written(&mut planner, &mut maps);
    assert_eq!(
        fronts(&maps),
        [
            "127.0.0.1:8080/132 -> 10.0.0.4:80 for the node",
            "127.0.0.1:8080/6 -> 10.0.0.1:80 for the node",
            "192.0.2.1:8080/132 -> 10.0.0.4:80",
            "192.0.2.1:8080/17 -> 10.0.0.3:80",
            "192.0.2.1:8080/6 -> 10.0.0.2:80",
        ]
    );
}

#[test]
fn host_ports_go_with_their_pod_and_end_its_flows() {
    let (mut planner, mut maps) = (Planner::new(node(), Existing::default()), Existing::default());
    let ports = json!([{"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"}]);
    let web = view("dns", "10.0.0.7", &ports);
    planner.host_ports(std::slice::from_ref(&web));
    written(&mut planner, &mut maps);
    planner.host_ports(std::slice::from_ref(&web));
    assert!(planner.plan().is_empty(), "nothing changed");
    planner.host_ports(&[view("dns", "10.0.0.8", &ports)]);
    let changes = written(&mut planner, &mut maps);
    assert_eq!(fronts(&maps), ["192.0.2.1:53/17 -> 10.0.0.8:53"]);
    assert!(matches!(
        changes.ended[..],
        [EndedBackend {
            proto: Proto::UDP,
            ..
        }]
    ));
    planner.host_ports(&[]);
    written(&mut planner, &mut maps);
    assert_eq!(maps, Existing::default());
    assert!(!planner.has_external_fronts());
}

#[test]
fn the_next_agent_takes_over_what_stands() {
    let (mut planner, mut maps) = (Planner::new(node(), Existing::default()), Existing::default());
    let ports = json!([
        {"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"},
        {"containerPort": 81, "hostPort": 8080, "hostIP": "127.0.0.1"}]);
    let all = [view("web", "10.0.0.7", &ports)];
    planner.host_ports(&all);
    written(&mut planner, &mut maps);
    let mut next = Planner::new(node(), maps.clone());
    next.host_ports(&all);
    assert!(next.plan().is_empty());
    // Writing failed somewhere: the same again.
    next.restart(maps.clone());
    assert!(next.plan().is_empty());
}

#[test]
fn a_front_that_a_service_has_is_a_pods_when_the_service_is_gone() {
    let (mut planner, mut maps) = (Planner::new(node(), Existing::default()), Existing::default());
    let service = ObjectName::new("default", "web");
    planner.service(ServiceView {
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        external_ips: vec!["192.0.2.1".parse().unwrap()],
        ports: vec![PortView {
            name: "".into(),
            proto: Proto::TCP,
            port: 8080,
            node_port: 0,
        }],
        ..ServiceView::new(service.clone())
    });
    written(&mut planner, &mut maps);
    let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"}]);
    planner.host_ports(&[view("web", "10.0.0.7", &ports)]);
    written(&mut planner, &mut maps);
    assert!(fronts(&maps).contains(&"192.0.2.1:8080/6 -> ".to_owned()));
    planner.service_gone(&service);
    let changes = written(&mut planner, &mut maps);
    assert_eq!(fronts(&maps), ["192.0.2.1:8080/6 -> 10.0.0.7:80"]);
    assert!(
        !changes
            .ended_fronts
            .iter()
            .any(|f: &EndedFront| f.port.get() == 80)
    );
}

#[test]
fn pods_that_are_over_without_addresses_or_in_the_nodes_network_have_none() {
    let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut object = serde_json::to_value(pod("web", "10.0.0.7", &ports)).unwrap();
        change(&mut object);
        HostPortsView::of(&serde_json::from_value(object).unwrap())
    };
    assert!(with(&|_| {}).is_some());
    assert_eq!(with(&|p| p["status"]["phase"] = "Succeeded".into()), None);
    assert_eq!(with(&|p| p["status"]["podIPs"] = json!([])), None);
    assert_eq!(with(&|p| p["spec"]["hostNetwork"] = true.into()), None);
    let none = json!([{"containerPort": 80}]);
    assert_eq!(HostPortsView::of(&pod("web", "10.0.0.7", &none)), None);
}
