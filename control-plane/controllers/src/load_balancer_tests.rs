use super::*;
use crate::world::World;

fn pools(list: &[&str]) -> Vec<Range> {
    list.iter().map(|range| range.parse().unwrap()).collect()
}

/// Both families, with few addresses in IPv4: .1 to .6.
fn small() -> Vec<Range> {
    pools(&["198.51.100.0/29", "2001:db8:1::/112"])
}

fn put(world: &mut World, name: &str, spec: Value) {
    world.put::<Service>(json!({"metadata": {"namespace": "n", "name": name}, "spec": spec}));
}

fn balancer() -> Value {
    json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]})
}

fn run(world: &mut World, pools: &[Range]) {
    world.apply(&plan(&world.all(), pools));
    let again: Vec<_> = plan(&world.all(), pools)
        .actions()
        .filter(|a| a.subresource().is_some())
        .cloned()
        .collect();
    assert!(again.is_empty(), "a second plan writes again: {again:?}");
}

fn ips(world: &World, name: &str) -> Vec<String> {
    let service = world.get::<Service>("n", name).unwrap();
    held(&service).iter().map(ToString::to_string).collect()
}

#[test]
fn every_balancer_gets_the_first_free_address_of_each_of_its_families() {
    let mut world = World::default();
    put(
        &mut world,
        "a",
        json!({"type": "LoadBalancer", "ipFamilies": ["IPv6", "IPv4"]}),
    );
    put(&mut world, "b", balancer());
    put(&mut world, "c", json!({"type": "ClusterIP"}));
    run(&mut world, &small());
    assert_eq!(ips(&world, "a"), ["2001:db8:1::1", "198.51.100.1"]);
    assert_eq!(ips(&world, "b"), ["198.51.100.2"]);
    assert!(ips(&world, "c").is_empty());
    let status = world.get::<Service>("n", "b").unwrap().status.clone().unwrap();
    let mode = status.load_balancer.unwrap().ingress.unwrap()[0].ip_mode.clone();
    assert_eq!(mode.as_deref(), Some("VIP"));
}

#[test]
fn without_a_pool_nothing_is_touched() {
    let mut world = World::default();
    put(&mut world, "a", balancer());
    assert!(plan(&world.all(), &[]).is_empty());
}

#[test]
fn another_class_is_somebody_elses_and_so_are_its_addresses() {
    let mut world = World::default();
    world.put::<Service>(json!({"metadata": {"namespace": "n", "name": "cloud"},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/cloud"},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}}));
    let mut ours = balancer();
    ours["loadBalancerClass"] = json!(CLASS);
    put(&mut world, "ours", ours);
    run(&mut world, &small());
    assert_eq!(ips(&world, "cloud"), ["198.51.100.1"]);
    assert_eq!(ips(&world, "ours"), ["198.51.100.2"]);
}

#[test]
fn a_service_gets_the_address_that_it_asks_for_or_is_told_why_not() {
    let mut world = World::default();
    for (name, ip) in [("a", "198.51.100.5"), ("b", "198.51.100.5"), ("c", "203.0.113.1")] {
        let mut spec = balancer();
        spec["loadBalancerIP"] = json!(ip);
        put(&mut world, name, spec);
    }
    run(&mut world, &small());
    assert_eq!(ips(&world, "a"), ["198.51.100.5"]);
    assert!(ips(&world, "b").is_empty() && ips(&world, "c").is_empty());
    assert!(world.events.iter().any(|e| e.starts_with("AddressInUse")));
    assert!(world.events.iter().any(|e| e.starts_with("AddressNotInPool")));
}

#[test]
fn a_service_that_asks_for_another_address_moves() {
    let mut world = World::default();
    put(&mut world, "a", balancer());
    run(&mut world, &small());
    world.change::<Service>("n", "a", |s| s["spec"]["loadBalancerIP"] = json!("198.51.100.4"));
    run(&mut world, &small());
    assert_eq!(ips(&world, "a"), ["198.51.100.4"]);
}

#[test]
fn an_address_is_free_again_when_its_service_is_gone_or_of_another_type() {
    let mut world = World::default();
    put(&mut world, "a", balancer());
    put(&mut world, "b", balancer());
    run(&mut world, &small());
    world.change::<Service>("n", "a", |s| s["spec"]["type"] = json!("NodePort"));
    run(&mut world, &small());
    assert!(ips(&world, "a").is_empty());
    put(&mut world, "c", balancer());
    run(&mut world, &small());
    assert_eq!(ips(&world, "c"), ["198.51.100.1"]);
    assert_eq!(ips(&world, "b"), ["198.51.100.2"], "nobody else is moved");
}

#[test]
fn when_no_address_is_left_the_service_is_told_and_gets_the_next_one_that_is() {
    let mut world = World::default();
    for n in 0..7 {
        put(&mut world, &format!("s{n}"), balancer());
    }
    run(&mut world, &small());
    let without: Vec<_> = (0..7)
        .filter(|n| ips(&world, &format!("s{n}")).is_empty())
        .collect();
    assert_eq!(without, [6]);
    assert!(world.events[0].starts_with("AddressPoolExhausted"));
    world.change::<Service>("n", "s3", |s| s["spec"]["type"] = json!("ClusterIP"));
    world.apply(&plan(&world.all(), &small()));
    assert!(
        ips(&world, "s6").is_empty(),
        "the address is given once it is seen to be free"
    );
    run(&mut world, &small());
    assert_eq!(ips(&world, "s6"), ["198.51.100.4"]);
}

#[test]
fn of_two_with_one_address_the_older_keeps_it() {
    let mut world = World::default();
    for (name, born) in [("young", "2026-01-02T00:00:00Z"), ("old", "2026-01-01T00:00:00Z")] {
        world.put::<Service>(json!({
            "metadata": {"namespace": "n", "name": name, "creationTimestamp": born},
            "spec": balancer(),
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.3", "ipMode": "VIP"}]}}}));
    }
    run(&mut world, &small());
    assert_eq!(ips(&world, "old"), ["198.51.100.3"]);
    assert_eq!(ips(&world, "young"), ["198.51.100.1"]);
}

#[test]
fn an_external_ip_out_of_a_pool_is_not_given_to_another() {
    let mut world = World::default();
    put(
        &mut world,
        "a",
        json!({"type": "ClusterIP", "externalIPs": ["198.51.100.1"]}),
    );
    put(&mut world, "b", balancer());
    run(&mut world, &small());
    assert_eq!(ips(&world, "b"), ["198.51.100.2"]);
}

#[test]
fn a_service_that_lost_a_family_gives_that_address_back() {
    let mut world = World::default();
    put(
        &mut world,
        "a",
        json!({"type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"]}),
    );
    run(&mut world, &small());
    world.change::<Service>("n", "a", |s| s["spec"]["ipFamilies"] = json!(["IPv4"]));
    run(&mut world, &small());
    assert_eq!(ips(&world, "a"), ["198.51.100.1"]);
}

#[test]
fn a_service_that_is_being_deleted_gets_nothing_new_and_keeps_what_it_has() {
    let mut world = World::default();
    put(&mut world, "a", balancer());
    run(&mut world, &small());
    world.change::<Service>("n", "a", |s| {
        s["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    });
    world.put::<Service>(json!({
        "metadata": {"namespace": "n", "name": "b", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": balancer()}));
    run(&mut world, &small());
    assert_eq!(ips(&world, "a"), ["198.51.100.1"]);
    assert!(ips(&world, "b").is_empty());
}
