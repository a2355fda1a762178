//! What the zone says, from API objects to records.
#![allow(clippy::unwrap_used)]

use agent_names::{Answer, Code, Data, Kind, Owner, ServiceKey, ServiceView, SliceView, Zone, ZoneConfig};
use proptest::prelude::*;
use serde_json::{Value, json};

fn zone() -> Zone {
    Zone::new(ZoneConfig {
        origin: "cluster.local".into(),
        servers: vec!["10.3.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
    })
}

fn service(zone: &mut Zone, namespace: &str, name: &str, spec: Value) {
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    zone.service(ServiceView::of(&serde_json::from_value(object).unwrap()).unwrap());
}

fn slice(zone: &mut Zone, service: &str, name: &str, endpoints: Value, ports: Value) {
    let object = json!({"metadata": {"namespace": "default", "name": name,
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
    zone.slice(SliceView::of(&serde_json::from_value(object).unwrap()).unwrap());
}

fn headless(zone: &mut Zone) {
    service(
        zone,
        "default",
        "headless",
        json!({"clusterIP": "None", "ports": [{"name": "https", "port": 443}]}),
    );
    let endpoints = json!([
        {"addresses": ["10.3.0.100"], "hostname": "my-pet", "conditions": {"ready": true}},
        {"addresses": ["10.3.0.101"], "hostname": "My-Pet-2"},
        {"addresses": ["10.3.0.102"], "conditions": {"ready": true}},
        {"addresses": ["10.3.0.103"], "hostname": "sick", "conditions": {"ready": false}},
    ]);
    slice(
        zone,
        "headless",
        "headless-a",
        endpoints,
        json!([{"name": "https", "port": 8443, "protocol": "TCP"}]),
    );
}

/// A zone with everything that the specification's examples are about.
fn example() -> Zone {
    let mut zone = zone();
    let ports = json!([{"name": "https", "port": 443, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}]);
    let addresses = json!({"clusterIP": "10.3.0.1", "clusterIPs": ["10.3.0.1", "fd00::1"], "ports": ports});
    service(&mut zone, "default", "kubernetes", addresses);
    service(
        &mut zone,
        "default",
        "foo",
        json!({"type": "ExternalName", "externalName": "www.Example.com."}),
    );
    headless(&mut zone);
    zone
}

fn ask(zone: &Zone, name: &str, kind: Kind) -> Answer {
    zone.answer(name, kind, 0)
        .unwrap_or_else(|| panic!("{name} is not the zone's"))
}

/// `EXISTS`, `MISSING`, or the records as text, sorted.
fn said(zone: &Zone, name: &str, kind: Kind) -> Vec<String> {
    let answer = ask(zone, name, kind);
    let mut texts: Vec<String> = answer.records.iter().map(|r| text(&r.data)).collect();
    texts.sort();
    match answer.code {
        Code::Missing => vec!["MISSING".to_owned()],
        Code::Exists if texts.is_empty() => vec!["EXISTS".to_owned()],
        Code::Exists => texts,
    }
}

fn text(data: &Data) -> String {
    match data {
        Data::A(ip) => ip.to_string(),
        Data::Aaaa(ip) => ip.to_string(),
        Data::Cname(to) => format!("CNAME {to}"),
        Data::Srv { port, target } => format!("SRV {port} {target}"),
        Data::Ptr(to) => format!("PTR {to}"),
        Data::Txt(text) => format!("TXT {text}"),
        Data::Soa => "SOA".to_owned(),
        Data::Ns(to) => format!("NS {to}"),
    }
}

#[test]
fn the_specifications_examples_are_answered_as_it_says() {
    let zone = example();
    let of = |name: &str, kind| said(&zone, name, kind).join(", ");
    let table = [
        ("dns-version.cluster.local", Kind::Txt, "TXT 1.1.0"),
        ("kubernetes.default.svc.cluster.local", Kind::A, "10.3.0.1"),
        ("kubernetes.default.svc.cluster.local", Kind::Aaaa, "fd00::1"),
        (
            "_https._tcp.kubernetes.default.svc.cluster.local",
            Kind::Srv,
            "SRV 443 kubernetes.default.svc.cluster.local",
        ),
        (
            "1.0.3.10.in-addr.arpa",
            Kind::Ptr,
            "PTR kubernetes.default.svc.cluster.local",
        ),
        (
            "headless.default.svc.cluster.local",
            Kind::A,
            "10.3.0.100, 10.3.0.101, 10.3.0.102",
        ),
        ("my-pet.headless.default.svc.cluster.local", Kind::A, "10.3.0.100"),
        (
            "10-3-0-102.headless.default.svc.cluster.local",
            Kind::A,
            "10.3.0.102",
        ),
        (
            "_https._tcp.headless.default.svc.cluster.local",
            Kind::Srv,
            "SRV 8443 10-3-0-102.headless.default.svc.cluster.local, \
             SRV 8443 my-pet-2.headless.default.svc.cluster.local, \
             SRV 8443 my-pet.headless.default.svc.cluster.local",
        ),
        (
            "100.0.3.10.in-addr.arpa",
            Kind::Ptr,
            "PTR my-pet.headless.default.svc.cluster.local",
        ),
        ("foo.default.svc.cluster.local", Kind::A, "CNAME www.example.com"),
        ("1-2-3-4.default.pod.cluster.local", Kind::A, "1.2.3.4"),
        ("fd00--1-5.default.pod.cluster.local", Kind::Aaaa, "fd00::1:5"),
        ("cluster.local", Kind::Soa, "SOA"),
        ("cluster.local", Kind::Ns, "NS ns.dns.cluster.local"),
        ("ns.dns.cluster.local", Kind::A, "10.3.0.10"),
    ];
    for (name, kind, wanted) in table {
        assert_eq!(of(name, kind), wanted, "{name} {kind:?}");
    }
}

#[test]
fn a_name_without_the_kind_asked_for_exists_and_one_without_anything_does_not() {
    let zone = example();
    let exists = [
        ("kubernetes.default.svc.cluster.local", Kind::Txt),
        ("kubernetes.default.svc.cluster.local", Kind::Srv),
        ("kubernetes.default.svc.cluster.local", Kind::Other),
        ("headless.default.svc.cluster.local", Kind::Aaaa),
        ("my-pet.headless.default.svc.cluster.local", Kind::Aaaa),
        ("_https._tcp.kubernetes.default.svc.cluster.local", Kind::A),
        ("1-2-3-4.default.pod.cluster.local", Kind::Aaaa),
        ("dns-version.cluster.local", Kind::A),
        ("1.0.3.10.in-addr.arpa", Kind::A),
        // Nothing but names below them (RFC 8020).
        ("cluster.local", Kind::A),
        ("svc.cluster.local", Kind::A),
        ("pod.cluster.local", Kind::A),
        ("dns.cluster.local", Kind::A),
        ("default.svc.cluster.local", Kind::A),
        ("default.pod.cluster.local", Kind::A),
        ("_tcp.kubernetes.default.svc.cluster.local", Kind::Srv),
        ("_tcp.headless.default.svc.cluster.local", Kind::Srv),
    ];
    for (name, kind) in exists {
        assert_eq!(said(&zone, name, kind), ["EXISTS"], "{name} {kind:?}");
    }
    let missing = [
        "nobody.default.svc.cluster.local",
        "kubernetes.elsewhere.svc.cluster.local",
        "elsewhere.svc.cluster.local",
        "a.kubernetes.default.svc.cluster.local",
        "sick.headless.default.svc.cluster.local",
        "_udp.kubernetes.default.svc.cluster.local",
        "_https._udp.kubernetes.default.svc.cluster.local",
        "_http._tcp.kubernetes.default.svc.cluster.local",
        "https._tcp.kubernetes.default.svc.cluster.local",
        "a._https._tcp.kubernetes.default.svc.cluster.local",
        "1-2-3.default.pod.cluster.local",
        "1-2-3-256.default.pod.cluster.local",
        "1-2-3-4.a.default.pod.cluster.local",
        "a.foo.default.svc.cluster.local",
        "kubernetes.default.cluster.local",
        "other.cluster.local",
    ];
    for name in missing {
        assert_eq!(said(&zone, name, Kind::A), ["MISSING"], "{name}");
    }
}

#[test]
fn other_names_are_not_the_zones_to_say() {
    let zone = example();
    for name in [
        "",
        "local",
        "www.example.com",
        "xcluster.local",
        "cluster.local.example.com",
        "7.7.7.7.in-addr.arpa",
        "3.10.in-addr.arpa",
    ] {
        assert_eq!(zone.answer(name, Kind::A, 0), None, "{name}");
    }
}

#[test]
fn an_alias_says_where_it_leads_unless_the_alias_itself_was_asked_for() {
    let zone = example();
    let name = "foo.default.svc.cluster.local";
    assert_eq!(
        ask(&zone, name, Kind::A).follow.as_deref(),
        Some("www.example.com")
    );
    assert_eq!(ask(&zone, name, Kind::Cname).follow, None);
    assert_eq!(said(&zone, name, Kind::Cname), ["CNAME www.example.com"]);
}

#[test]
fn addresses_of_a_port_record_come_with_it() {
    let answer = ask(
        &example(),
        "_https._tcp.headless.default.svc.cluster.local",
        Kind::Srv,
    );
    let with = answer.additional.iter().map(|r| match &r.owner {
        Owner::Name(name) => format!("{name} {}", text(&r.data)),
        Owner::Asked => panic!("an addition has a name of its own"),
    });
    assert!(
        with.collect::<Vec<_>>()
            .contains(&"my-pet.headless.default.svc.cluster.local 10.3.0.100".to_owned())
    );
}

#[test]
fn a_headless_service_has_a_name_only_with_a_ready_endpoint() {
    let mut zone = zone();
    headless(&mut zone);
    let name = "headless.default.svc.cluster.local";
    slice(
        &mut zone,
        "headless",
        "headless-a",
        json!([{"addresses": ["10.3.0.100"], "conditions": {"ready": false}}]),
        json!([]),
    );
    assert_eq!(said(&zone, name, Kind::A), ["MISSING"]);
    assert_eq!(zone.answer("100.0.3.10.in-addr.arpa", Kind::Ptr, 0), None);
    assert_eq!(said(&zone, "default.svc.cluster.local", Kind::A), ["EXISTS"]);
    slice(
        &mut zone,
        "headless",
        "headless-b",
        json!([{"addresses": ["10.3.0.9"]}]),
        json!([]),
    );
    assert_eq!(said(&zone, name, Kind::A), ["10.3.0.9"]);
    zone.slice_gone("default", "headless-b");
    assert_eq!(said(&zone, name, Kind::A), ["MISSING"]);
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_stays_until_both_are_gone() {
    let mut zone = zone();
    headless(&mut zone);
    let again = json!([{"addresses": ["10.3.0.100"], "hostname": "my-pet"}]);
    let port = json!([{"name": "https", "port": 8443, "protocol": "TCP"}]);
    slice(&mut zone, "headless", "headless-b", again, port);
    assert_eq!(
        said(&zone, "my-pet.headless.default.svc.cluster.local", Kind::A),
        ["10.3.0.100"]
    );
    assert_eq!(
        said(&zone, "_https._tcp.headless.default.svc.cluster.local", Kind::Srv).len(),
        3
    );
    assert_eq!(said(&zone, "100.0.3.10.in-addr.arpa", Kind::Ptr).len(), 1);
    zone.slice_gone("default", "headless-a");
    assert_eq!(
        said(&zone, "headless.default.svc.cluster.local", Kind::A),
        ["10.3.0.100"]
    );
    assert_eq!(said(&zone, "100.0.3.10.in-addr.arpa", Kind::Ptr).len(), 1);
    zone.slice_gone("default", "headless-b");
    assert_eq!(zone.answer("100.0.3.10.in-addr.arpa", Kind::Ptr, 0), None);
    assert_eq!(zone.known_slices().count(), 0);
}

#[test]
fn a_hostname_with_several_addresses_has_them_all() {
    let mut zone = zone();
    headless(&mut zone);
    slice(
        &mut zone,
        "headless",
        "headless-6",
        json!([{"addresses": ["fd00::100"], "hostname": "my-pet"}]),
        json!([]),
    );
    assert_eq!(
        said(&zone, "my-pet.headless.default.svc.cluster.local", Kind::Aaaa),
        ["fd00::100"]
    );
    assert_eq!(
        said(&zone, "my-pet.headless.default.svc.cluster.local", Kind::A),
        ["10.3.0.100"]
    );
}

#[test]
fn slices_may_come_before_their_service() {
    let mut zone = zone();
    slice(
        &mut zone,
        "late",
        "late-a",
        json!([{"addresses": ["10.3.0.5"]}]),
        json!([]),
    );
    assert_eq!(
        said(&zone, "late.default.svc.cluster.local", Kind::A),
        ["MISSING"]
    );
    service(&mut zone, "default", "late", json!({"clusterIP": "None"}));
    assert_eq!(
        said(&zone, "late.default.svc.cluster.local", Kind::A),
        ["10.3.0.5"]
    );
    zone.service_gone(&ServiceKey::new("default", "late"));
    assert_eq!(
        said(&zone, "late.default.svc.cluster.local", Kind::A),
        ["MISSING"]
    );
    assert_eq!(zone.answer("5.0.3.10.in-addr.arpa", Kind::Ptr, 0), None);
}

#[test]
fn slices_passed_over_are_wanted_when_their_service_turns_headless() {
    let mut zone = zone();
    service(&mut zone, "default", "web", json!({"clusterIP": "10.3.0.7"}));
    slice(
        &mut zone,
        "web",
        "web-a",
        json!([{"addresses": ["10.3.0.5"]}]),
        json!([]),
    );
    assert_eq!(zone.known_slices().count(), 0);
    service(&mut zone, "default", "other", json!({"clusterIP": "None"}));
    assert!(!zone.take_slices_wanted());
    zone.service_gone(&ServiceKey::new("default", "web"));
    service(&mut zone, "default", "web", json!({"clusterIP": "None"}));
    assert!(zone.take_slices_wanted());
    assert!(!zone.take_slices_wanted());
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut zone = zone();
    headless(&mut zone);
    service(&mut zone, "default", "other", json!({"clusterIP": "None"}));
    slice(
        &mut zone,
        "other",
        "headless-a",
        json!([{"addresses": ["10.3.0.5"]}]),
        json!([]),
    );
    assert_eq!(
        said(&zone, "headless.default.svc.cluster.local", Kind::A),
        ["MISSING"]
    );
    assert_eq!(
        said(&zone, "other.default.svc.cluster.local", Kind::A),
        ["10.3.0.5"]
    );
}

#[test]
fn a_changed_address_takes_its_reverse_name_along() {
    let mut zone = zone();
    service(&mut zone, "default", "web", json!({"clusterIP": "10.3.0.7"}));
    service(&mut zone, "default", "web", json!({"clusterIP": "10.3.0.8"}));
    assert_eq!(zone.answer("7.0.3.10.in-addr.arpa", Kind::Ptr, 0), None);
    assert_eq!(
        said(&zone, "8.0.3.10.in-addr.arpa", Kind::Ptr),
        ["PTR web.default.svc.cluster.local"]
    );
    let changes = zone.changes();
    service(&mut zone, "default", "web", json!({"clusterIP": "10.3.0.8"}));
    assert_eq!(zone.changes(), changes, "the same again is no change");
}

#[test]
fn the_first_of_several_addresses_is_another_one_each_time() {
    let zone = example();
    let first = |turn| {
        zone.answer("headless.default.svc.cluster.local", Kind::A, turn)
            .unwrap()
            .records[0]
            .data
            .clone()
    };
    let firsts: std::collections::BTreeSet<String> = (0..3).map(|t| text(&first(t))).collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn everything_deleted_leaves_an_empty_zone() {
    let mut zone = example();
    for name in ["kubernetes", "foo", "headless"] {
        zone.service_gone(&ServiceKey::new("default", name));
    }
    zone.slice_gone("default", "headless-a");
    assert_eq!((zone.services(), zone.known_slices().count()), (0, 0));
    assert_eq!(said(&zone, "default.svc.cluster.local", Kind::A), ["MISSING"]);
    assert_eq!(zone.answer("1.0.3.10.in-addr.arpa", Kind::Ptr, 0), None);
}

proptest! {
    #[test]
    fn no_name_makes_it_panic(name in "[a-c0-9._-]{0,40}(\\.(svc|pod|dns))?(\\.cluster\\.local|\\.in-addr\\.arpa|\\.ip6\\.arpa)?", turn: usize) {
        let zone = example();
        for kind in [Kind::A, Kind::Srv, Kind::Ptr, Kind::Any, Kind::Other] {
            let _ = zone.answer(&name, kind, turn);
        }
    }

    /// The order in which objects come, and what came in between, leaves no trace.
    #[test]
    fn only_the_last_state_counts(steps in proptest::collection::vec((0..3u8, 0..4u8, 0..5u8), 0..40)) {
        let names = ["a", "b", "c"];
        let spec = |how: u8| match how {
            0 => json!({"clusterIP": "10.3.0.7", "ports": [{"name": "p", "port": 1}]}),
            1 => json!({"type": "ExternalName", "externalName": "example.com"}),
            _ => json!({"clusterIP": "None"}),
        };
        let endpoints = |how: u8| json!([{"addresses": [format!("10.3.1.{how}")]}]);
        let mut zone = zone();
        let mut services: std::collections::BTreeMap<u8, u8> = Default::default();
        let mut slices: std::collections::BTreeMap<u8, u8> = Default::default();
        let mut relist = false;
        for (n, what, how) in steps {
            let name = names[usize::from(n)];
            match what {
                0 => { service(&mut zone, "default", name, spec(how)); services.insert(n, how); }
                1 => { zone.service_gone(&ServiceKey::new("default", name)); services.remove(&n); }
                2 => { slice(&mut zone, name, name, endpoints(how), json!([])); slices.insert(n, how); }
                _ => { zone.slice_gone("default", name); slices.remove(&n); }
            }
            relist |= zone.take_slices_wanted();
            if std::mem::take(&mut relist) {
                for (n, how) in &slices {
                    let name = names[usize::from(*n)];
                    slice(&mut zone, name, name, endpoints(*how), json!([]));
                }
            }
        }
        let mut fresh = self::zone();
        for (n, how) in &slices {
            let name = names[usize::from(*n)];
            slice(&mut fresh, name, name, endpoints(*how), json!([]));
        }
        for (n, how) in &services {
            service(&mut fresh, "default", names[usize::from(*n)], spec(*how));
        }
        for name in ["a.default.svc", "b.default.svc", "c.default.svc", "default.svc", "_p._tcp.a.default.svc"] {
            let name = format!("{name}.cluster.local");
            prop_assert_eq!(said(&zone, &name, Kind::Any), said(&fresh, &name, Kind::Any), "{}", name);
        }
        for ip in 0..5 {
            let name = format!("{ip}.1.3.10.in-addr.arpa");
            let of = |z: &Zone| z.answer(&name, Kind::Ptr, 0).map(|a| {
                let mut all: Vec<_> = a.records.iter().map(|r| text(&r.data)).collect();
                all.sort();
                all
            });
            prop_assert_eq!(of(&zone), of(&fresh), "{}", name);
        }
    }
}
