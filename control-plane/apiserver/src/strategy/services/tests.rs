use serde_json::json;

use super::*;

fn services() -> Services {
    let cidrs = ["10.96.0.0/24".parse().unwrap(), "fd00::/120".parse().unwrap()];
    Services {
        cidrs: cidrs.into(),
        node_ports: 30000..=30100,
        state: Arc::new(Mutex::new(State {
            addresses: cidrs.iter().map(|c| address_pool(*c)).collect(),
            ports: Pool::new(101, 16),
        })),
    }
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "s"}, "spec": spec})
}

fn create(services: &Services, spec: Value) -> Value {
    let mut object = service(spec);
    services.create(&mut object).unwrap().keep();
    object["spec"].clone()
}

fn refused(services: &Services, spec: Value) -> String {
    services
        .create(&mut service(spec))
        .err()
        .unwrap()
        .status
        .message
        .clone()
}

#[test]
fn a_plain_service_gets_one_address_of_the_primary_family() {
    let spec = create(&services(), json!({"type": "ClusterIP", "selector": {"a": "b"}}));
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("10.96.0."));
    assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
}

#[test]
fn dual_stack_policies_give_both_families_in_the_wanted_order() {
    let services = services();
    let spec = create(
        &services,
        json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
    );
    assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
    let asked =
        json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
    let spec = create(&services, asked);
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("fd00::"));
    assert_eq!(spec["clusterIPs"].as_array().unwrap().len(), 2);
}

#[test]
fn headless_services_have_families_and_no_address_and_external_names_have_neither() {
    let services = services();
    let spec = create(
        &services,
        json!({"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}}),
    );
    assert_eq!(
        (&spec["clusterIPs"], &spec["ipFamilies"]),
        (&json!(["None"]), &json!(["IPv4"]))
    );
    let spec = create(&services, json!({"type": "ClusterIP", "clusterIP": "None"}));
    assert_eq!(spec["ipFamilyPolicy"], "RequireDualStack");
    let spec = create(&services, json!({"type": "ExternalName", "externalName": "a.b"}));
    assert_eq!(spec.get("clusterIP"), None);
}

#[test]
fn an_address_can_be_asked_for_once_and_again_after_it_is_released() {
    let services = services();
    let asked = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"});
    create(&services, asked.clone());
    assert!(refused(&services, asked.clone()).contains("provided IP is already allocated"));
    let outside = json!({"type": "ClusterIP", "clusterIP": "10.97.0.10"});
    assert!(refused(&services, outside).contains("not in the valid range"));
    services.free(Item::Address("10.96.0.10".parse().unwrap()));
    create(&services, asked);
}

#[test]
fn a_write_that_fails_gives_back_what_it_took() {
    let services = services();
    let mut object = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
    drop(services.create(&mut object).unwrap());
    assert!(services.take(Item::Address("10.96.0.10".parse().unwrap())));
}

#[test]
fn node_ports_are_given_checked_kept_and_released() {
    let services = services();
    let spec = create(
        &services,
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    let port = spec["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=30100).contains(&port));
    let same = json!({"type": "NodePort", "ports": [{"port": 81, "protocol": "TCP", "nodePort": port}]});
    assert!(refused(&services, same).contains("provided port is already allocated"));
    let far = json!({"type": "NodePort", "ports": [{"port": 81, "protocol": "TCP", "nodePort": 1234}]});
    assert!(refused(&services, far).contains("The range of valid ports is 30000-30100"));

    let old = service(spec.clone());
    let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
    services.update(&old, &mut new).unwrap().keep();
    assert_eq!(new["spec"]["ports"][0]["nodePort"], port);
    assert_eq!(new["spec"]["clusterIP"], spec["clusterIP"]);

    let mut plain = service(json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}));
    services.update(&new, &mut plain).unwrap().keep();
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    assert!(services.take(Item::Port(u16::try_from(port).unwrap())));
}

#[test]
fn from_two_families_to_one_the_second_address_is_free_again() {
    let services = services();
    let old = service(create(
        &services,
        json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
    ));
    let second: IpAddr = old["spec"]["clusterIPs"][1].as_str().unwrap().parse().unwrap();
    let mut new = old.clone();
    new["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    services.update(&old, &mut new).unwrap().keep();
    assert_eq!(new["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
    assert!(services.take(Item::Address(second)));
}

#[test]
fn the_address_of_a_service_may_not_change() {
    let services = services();
    let old = service(create(&services, json!({"type": "ClusterIP"})));
    let mut new = old.clone();
    new["spec"]["clusterIP"] = "10.96.0.77".into();
    new["spec"]["clusterIPs"] = json!(["10.96.0.77"]);
    assert!(
        services
            .update(&old, &mut new)
            .err()
            .unwrap()
            .status
            .message
            .contains("may not change once set")
    );
}
