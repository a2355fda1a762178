//! Questions to a small cluster, and the answers word by word.
#![allow(clippy::unwrap_used)]
use agent_explain::{Ask, DecidedBy, Explanation, Hook, Outcome, Question, World, explain, planned};
use datapath_logic::host::{Fate, Hook as StageHook, Ran, StageError, Stages};
use serde_json::{Value, json};

fn node(name: &str, ip: &str, zone: &str, pods: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDRs": [pods]}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

fn pod(name: &str, ip: &str, node: &str) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {"nodeName": node, "containers": []},
        "status": {"podIP": ip, "podIPs": [{"ip": ip}]}})
}

fn endpoint(ip: &str, node: &str, ready: bool, terminating: bool) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready, "serving": ready || terminating, "terminating": terminating}})
}

fn slice(service: &str, endpoints: Value) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"name": format!("{service}-1"), "namespace": "default",
        "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn service(name: &str, ip: &str, more: Value) -> Value {
    let mut spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}})
}

fn world(spec: Value, endpoints: Value) -> World {
    let mut world = World::default();
    for object in [
        node("n1", "192.0.2.1", "a", "10.0.1.0/24"),
        node("n2", "192.0.2.2", "b", "10.0.2.0/24"),
        pod("client", "10.0.1.2", "n1"),
        pod("web-1", "10.0.1.10", "n1"),
        pod("web-2", "10.0.2.10", "n2"),
        service("web", "10.96.0.5", spec),
        slice("web", endpoints),
    ] {
        world.add(object).unwrap();
    }
    world
}

fn ask(world: &World, node: &str, question: &str) -> Explanation {
    let question: Question = question.parse().unwrap();
    let packet = world.resolve(&question, "default").unwrap();
    explain(world, &packet, node, &planned(world, node, &[]), Ask::default())
}

fn told(e: &Explanation, words: &str) {
    assert!(
        e.steps.iter().any(|s| s.decision.contains(words)),
        "{words:?} is not in {:#?}",
        e.steps
    );
}

fn reason<'a>(e: &'a Explanation, address: &str) -> &'a str {
    &e.endpoints.iter().find(|l| l.address == address).unwrap().reason
}

fn both() -> Value {
    json!([
        endpoint("10.0.1.10", "n1", true, false),
        endpoint("10.0.2.10", "n2", true, false)
    ])
}

#[test]
fn a_pod_is_sent_to_any_ready_endpoint() {
    let w = world(json!({}), both());
    let e = ask(&w, "n1", "pod/client -> svc/web:http");
    assert_eq!((e.hook, e.outcome), (Hook::Socket, Outcome::Endpoint));
    told(&e, "the cluster address of service default/web");
    told(&e, "one of 2 by chance");
    assert_eq!(e.endpoints.iter().filter(|l| l.used).count(), 2);
    assert_eq!(e.endpoints[0].pod.as_deref(), Some("default/web-1"));
}

#[test]
fn endpoints_that_are_not_used_say_why() {
    let endpoints = json!([
        endpoint("10.0.1.10", "n1", true, false),
        endpoint("10.0.2.10", "n2", false, false),
        endpoint("10.0.2.11", "n2", false, true)
    ]);
    let e = ask(&world(json!({}), endpoints), "n1", "pod/client -> svc/web");
    assert_eq!(reason(&e, "10.0.1.10:8080"), "ready");
    assert_eq!(reason(&e, "10.0.2.10:8080"), "not ready");
    assert!(reason(&e, "10.0.2.11:8080").contains("terminating, and other endpoints are ready"));
}

#[test]
fn no_ready_endpoint_is_a_refusal() {
    let endpoints = json!([endpoint("10.0.1.10", "n1", false, false)]);
    let e = ask(&world(json!({}), endpoints), "n1", "pod/client -> svc/web");
    assert_eq!(e.outcome, Outcome::Refused);
    told(&e, "no endpoint is ready: 1 × not ready");
    assert_eq!(reason(&e, "10.0.1.10:8080"), "not ready");
}

#[test]
fn a_port_that_the_service_lacks_is_named_with_those_it_has() {
    let e = ask(&world(json!({}), both()), "n1", "pod/client -> svc/web:81");
    assert_eq!(e.outcome, Outcome::Refused);
    told(&e, "service default/web has no port 81/TCP; it has http (80/TCP)");
}

#[test]
fn an_unallocated_address_is_silence_and_a_pods_address_is_left_alone() {
    let w = world(json!({}), both());
    assert_eq!(
        ask(&w, "n1", "pod/client -> 10.96.7.7:80").outcome,
        Outcome::Dropped
    );
    let e = ask(&w, "n1", "pod/client -> pod/web-2:8080");
    assert_eq!(e.outcome, Outcome::Untouched);
    told(&e, "the address of pod default/web-2");
}

#[test]
fn source_ranges_are_asked_of_outsiders_and_pods() {
    let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/25"]});
    let w = world(spec, both());
    let e = ask(&w, "n1", "203.0.113.2 -> 198.51.100.9:80");
    assert_eq!((e.hook, e.outcome), (Hook::Uplink, Outcome::Endpoint));
    told(
        &e,
        "source 203.0.113.2 is in loadBalancerSourceRanges (203.0.113.0/25)",
    );
    let e = ask(&w, "n1", "203.0.113.200 -> 198.51.100.9:80");
    assert_eq!(e.outcome, Outcome::Dropped);
    told(&e, "source 203.0.113.200 is not in loadBalancerSourceRanges");
    let e = ask(&w, "n1", "pod/client -> 198.51.100.9:80");
    assert_eq!((e.hook, e.outcome), (Hook::Pod, Outcome::Dropped));
}

#[test]
fn an_outsider_at_a_node_port_meets_policy_local() {
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    let remote = json!([endpoint("10.0.2.10", "n2", true, false)]);
    let w = world(spec.clone(), remote);
    let e = ask(&w, "n1", "203.0.113.2 -> node/n1:30080");
    assert_eq!(e.outcome, Outcome::Dropped);
    told(&e, "policy Local allows no other");
    assert_eq!(
        reason(&e, "10.0.2.10:8080"),
        "ready, but on n2: policy Local wants one on n1"
    );
    let e = ask(&w, "n2", "203.0.113.2 -> node/n2:30080");
    assert_eq!(e.outcome, Outcome::Endpoint);
    let e = ask(&w, "n1", "node/n1 -> node/n1:30080");
    assert_eq!((e.hook, e.outcome), (Hook::Socket, Outcome::Endpoint));
}

#[test]
fn a_remote_endpoint_of_an_outsider_is_masqueraded() {
    let remote = json!([endpoint("10.0.2.10", "n2", true, false)]);
    let w = world(json!({"type": "NodePort"}), remote);
    let e = ask(&w, "n1", "203.0.113.2 -> node/n1:30080");
    assert_eq!(e.outcome, Outcome::Endpoint);
    told(&e, "the client stands behind 192.0.2.1");
}

#[test]
fn the_answer_is_the_same_contract_in_json() {
    let e = ask(&world(json!({}), both()), "n1", "pod/client -> svc/web");
    let v = serde_json::to_value(&e).unwrap();
    assert_eq!(v["outcome"], "endpoint");
    assert_eq!(v["decidedBy"], "logic");
    assert!(v.get("warnings").is_none());
    assert_eq!(v["hook"], "socket");
    assert_eq!(v["packet"], "10.0.1.2 → 10.96.0.5:80/TCP");
    assert_eq!(v["endpoints"][0]["used"], true);
}

#[test]
fn a_service_without_endpoints_says_so() {
    let e = ask(&world(json!({}), json!([])), "n1", "pod/client -> svc/web");
    told(&e, "no endpoint is ready: the service has none");
    assert_eq!(e.reason.map(|r| r.label()), Some("socket_no_endpoint"));
}

#[test]
fn an_endpoint_of_an_outsider_on_another_node_sees_the_node() {
    let w = world(json!({"type": "NodePort"}), both());
    let e = ask(&w, "n1", "203.0.113.2 -> node/n1:30080");
    let sees = |address: &str| e.endpoints.iter().find(|l| l.address == address).unwrap().sees;
    assert_eq!(sees("10.0.1.10:8080"), None);
    assert_eq!(sees("10.0.2.10:8080"), Some("192.0.2.1".parse().unwrap()));
}

#[test]
fn an_echo_to_a_service_is_refused_and_one_to_a_pod_is_left_alone() {
    let w = world(json!({}), both());
    let e = ask(&w, "n1", "pod/client -> svc/web/icmp");
    assert_eq!((e.hook, e.outcome), (Hook::Pod, Outcome::Refused));
    told(&e, "service default/web has ports only, and answers no ICMP");
    assert_eq!(e.packet, "10.0.1.2 → 10.96.0.5/ICMP");
    let e = ask(&w, "n1", "pod/client -> pod/web-2/icmp");
    assert_eq!(e.outcome, Outcome::Untouched);
}

#[test]
fn sctp_is_decided_by_packets_for_no_hook_is_asked_about_it() {
    let e = ask(&world(json!({}), both()), "n1", "pod/client -> svc/web:80/sctp");
    assert_eq!((e.hook, e.outcome), (Hook::Pod, Outcome::Refused));
    told(&e, "service default/web has no port 80/SCTP");
}

#[test]
fn a_host_port_is_its_pods() {
    let mut w = world(json!({}), both());
    w.add(json!({"kind": "Pod", "metadata": {"name": "edge", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"containerPort": 8080, "hostPort": 8443}]}]},
        "status": {"podIP": "10.0.1.20", "podIPs": [{"ip": "10.0.1.20"}]}}))
        .unwrap();
    let e = ask(&w, "n1", "203.0.113.2 -> node/n1:8443");
    assert_eq!(e.outcome, Outcome::Endpoint);
    told(&e, "192.0.2.1:8443 is a host port of pod default/edge");
}

/// Programs that refuse everything.
struct Broken;

impl Stages for Broken {
    fn again(&mut self, _: u32) -> Result<(), StageError> {
        Ok(())
    }
    fn run(&self, _: StageHook, _: &[u8]) -> Result<Ran, StageError> {
        Ok(Ran {
            fate: Fate::Dropped,
            reason: Some(datapath_abi::Reason::SlotMissing),
        })
    }
}

#[test]
fn programs_that_decide_otherwise_than_the_logic_are_told_of() {
    let w = world(json!({"type": "NodePort"}), both());
    let question: Question = "203.0.113.2 -> node/n1:30080".parse().unwrap();
    let packet = w.resolve(&question, "default").unwrap();
    let mut broken = Broken;
    let with = Ask {
        programs: Some(&mut broken),
        ..Ask::default()
    };
    let e = explain(&w, &packet, "n1", &planned(&w, "n1", &[]), with);
    assert_eq!((e.outcome, e.decided_by), (Outcome::Dropped, DecidedBy::Programs));
    assert!(e.warnings[0].contains("disagree"), "{:?}", e.warnings);
    assert!(e.endpoints.iter().all(|l| !l.used));
}
