//! A service and its pods, driven through changes.

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn world(pods: usize) -> World {
    let mut world = World::default();
    world.put::<Service>(json!({
        "metadata": {"name": "web", "namespace": "a", "labels": {"team": "x"}},
        "spec": {
            "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4", "IPv6"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }));
    for number in 0..pods {
        pod(&mut world, number);
    }
    world
}

fn pod(world: &mut World, number: usize) {
    let ips = json!([{"ip": format!("10.244.{}.{}", number / 200, number % 200 + 1)}, {"ip": format!("fd00::{:x}", number + 1)}]);
    world.put::<Pod>(json!({
        "metadata": {"name": format!("p{number}"), "namespace": "a", "uid": format!("p{number}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": ips, "conditions": [{"type": "Ready", "status": "True"}]},
    }));
}

fn look(world: &World) -> Observed {
    Observed {
        service: world.get("a", "web").unwrap(),
        pods: world.all(),
        slices: world.all(),
        zones: BTreeMap::from([("n1".to_owned(), "z1".to_owned())]),
        cpus: BTreeMap::new(),
    }
}

/// Applies plans until there is nothing to do; returns the number of writes.
fn settle(world: &mut World) -> usize {
    let first = plan(&look(world));
    let writes = first.actions().count();
    world.apply(&first);
    assert!(
        plan(&look(world)).is_empty(),
        "a second plan must have nothing to do"
    );
    writes
}

fn slices(world: &World, family: &str) -> Vec<Value> {
    let all = world.all::<EndpointSlice>();
    let of = all.iter().filter(|slice| slice.address_type == family);
    of.map(|slice| serde_json::to_value(slice.as_ref()).unwrap())
        .collect()
}

fn sizes(world: &World, family: &str) -> Vec<usize> {
    let mut sizes: Vec<_> = slices(world, family)
        .iter()
        .map(|slice| slice["endpoints"].as_array().unwrap().len())
        .collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn ready_pods_become_endpoints_of_both_families() {
    let mut world = world(1);
    settle(&mut world);
    let slice = &slices(&world, "IPv4")[0];
    let endpoint = &slice["endpoints"][0];
    assert_eq!(endpoint["addresses"], json!(["10.244.0.1"]));
    assert_eq!(
        endpoint["conditions"],
        json!({"ready": true, "serving": true, "terminating": false})
    );
    assert_eq!(
        (&endpoint["nodeName"], &endpoint["zone"]),
        (&json!("n1"), &json!("z1"))
    );
    assert_eq!(endpoint["targetRef"]["name"], "p0");
    assert_eq!(
        slice["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        slice["metadata"]["labels"],
        json!({SERVICE_NAME: "web", MANAGED_BY: MANAGER, "team": "x"})
    );
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
    assert_eq!(
        slices(&world, "IPv6")[0]["endpoints"][0]["addresses"],
        json!(["fd00::1"])
    );
}

#[test]
fn a_slice_holds_a_hundred_and_growth_writes_one_slice_of_each_family() {
    let mut world = world(250);
    settle(&mut world);
    assert_eq!(sizes(&world, "IPv4"), [50, 100, 100]);
    pod(&mut world, 250);
    assert_eq!(settle(&mut world), 2);
    assert_eq!(sizes(&world, "IPv4"), [51, 100, 100]);
}

#[test]
fn a_pod_that_becomes_unready_changes_one_slice_of_each_family() {
    let mut world = world(150);
    settle(&mut world);
    world.change::<Pod>("a", "p3", |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False")
    });
    assert_eq!(settle(&mut world), 2);
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready() {
    let mut world = world(1);
    world.change::<Pod>("a", "p0", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    });
    settle(&mut world);
    let conditions = &slices(&world, "IPv4")[0]["endpoints"][0]["conditions"];
    assert_eq!(
        *conditions,
        json!({"ready": false, "serving": true, "terminating": true})
    );
}

#[test]
fn not_ready_addresses_can_be_published() {
    let mut world = world(1);
    world.change::<Pod>("a", "p0", |pod| pod["status"]["conditions"] = json!([]));
    world.change::<Service>("a", "web", |service| {
        service["spec"]["publishNotReadyAddresses"] = json!(true)
    });
    settle(&mut world);
    let conditions = &slices(&world, "IPv4")[0]["endpoints"][0]["conditions"];
    assert_eq!(
        (&conditions["ready"], &conditions["serving"]),
        (&json!(true), &json!(false))
    );
}

#[test]
fn scaling_to_zero_empties_the_slice_in_place_and_scaling_up_fills_it_again() {
    let mut world = world(2);
    settle(&mut world);
    let name = slices(&world, "IPv4")[0]["metadata"]["name"].clone();
    for pod in ["p0", "p1"] {
        world.change::<Pod>("a", pod, |pod| pod["status"]["phase"] = json!("Succeeded"));
    }
    assert_eq!(settle(&mut world), 2);
    assert_eq!(sizes(&world, "IPv4"), [0]);
    assert_eq!(slices(&world, "IPv4")[0]["metadata"]["name"], name);
    pod(&mut world, 7);
    settle(&mut world);
    assert_eq!(sizes(&world, "IPv4"), [1]);
}

#[test]
fn pods_that_name_their_port_differently_get_slices_of_their_own() {
    let mut world = world(2);
    world.change::<Pod>("a", "p1", |pod| {
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090)
    });
    settle(&mut world);
    assert_eq!(sizes(&world, "IPv4"), [1, 1]);
}

#[test]
fn a_headless_service_is_labelled_and_its_pods_have_host_names() {
    let mut world = world(1);
    world.change::<Service>("a", "web", |service| service["spec"]["clusterIP"] = json!("None"));
    world.change::<Pod>("a", "p0", |pod| {
        pod["spec"]["hostname"] = json!("p0");
        pod["spec"]["subdomain"] = json!("web");
    });
    settle(&mut world);
    let slice = &slices(&world, "IPv4")[0];
    assert_eq!(slice["metadata"]["labels"][HEADLESS], "");
    assert_eq!(slice["endpoints"][0]["hostname"], "p0");
}

#[test]
fn a_pod_on_a_node_that_is_gone_is_left_out() {
    let mut world = world(1);
    let mut observed = look(&world);
    observed.zones.clear();
    world.apply(&plan(&observed));
    assert_eq!(sizes(&world, "IPv4"), [0]);
}

#[test]
fn traffic_kept_in_the_zone_gives_hints() {
    let mut world = world(1);
    world.change::<Service>("a", "web", |service| {
        service["spec"]["trafficDistribution"] = json!("PreferSameZone")
    });
    settle(&mut world);
    assert_eq!(
        slices(&world, "IPv4")[0]["endpoints"][0]["hints"],
        json!({"forZones": [{"name": "z1"}]})
    );
}

#[test]
fn a_service_that_asks_for_it_has_its_endpoints_spread_over_the_zones() {
    let mut world = world(2);
    world.change::<Service>("a", "web", |service| {
        service["metadata"]["annotations"] = json!({"service.kubernetes.io/topology-mode": "Auto"})
    });
    let mut observed = look(&world);
    observed.cpus = BTreeMap::from([("z1".to_owned(), 1000), ("z2".to_owned(), 1000)]);
    world.apply(&plan(&observed));
    let slice = &slices(&world, "IPv4")[0];
    let zones: Vec<_> = slice["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["hints"]["forZones"][0]["name"].as_str().unwrap())
        .collect();
    assert_eq!(zones, ["z2", "z1"]);
}

#[test]
fn a_family_that_the_service_gives_up_loses_its_slices() {
    let mut world = world(1);
    settle(&mut world);
    world.change::<Service>("a", "web", |service| {
        service["spec"]["ipFamilies"] = json!(["IPv4"])
    });
    settle(&mut world);
    assert!(slices(&world, "IPv6").is_empty());
}

#[test]
fn a_service_without_selector_or_with_an_alias_is_left_alone() {
    let mut world = world(1);
    world.change::<Service>("a", "web", |service| service["spec"]["selector"] = json!({}));
    assert_eq!(settle(&mut world), 0);
}
