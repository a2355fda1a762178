//! kube-proxy's health facts, replayed.
use super::*;
use k8s_openapi::api::discovery::v1::EndpointSlice;

fn facts() -> Value {
    serde_json::from_str(include_str!(
        "../../../tests/scenarios/data/kube-proxy-health.json"
    ))
    .unwrap()
}

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// The facts' times are seconds, and null for never.
fn with_times(mut body: Value) -> Value {
    let fix = |value: &mut Value| {
        *value = value.as_i64().map_or(json!(NEVER), |s| json!(at(s).to_string()));
    };
    fix(&mut body["lastUpdated"]);
    fix(&mut body["currentTime"]);
    for (_, family) in body["status"].as_object_mut().into_iter().flatten() {
        fix(&mut family["lastUpdated"]);
    }
    if body["status"].is_null() {
        body.as_object_mut().unwrap().shift_remove("status");
    }
    body
}

fn families(step: &Value, name: &str) -> Vec<Family> {
    let of = |text: &Value| if text == "IPv4" { Family::V4 } else { Family::V6 };
    list(step, name).iter().map(of).collect()
}

fn eligible(node: &Value) -> bool {
    let marked = list(node, "taints")
        .iter()
        .any(|t| t == "ToBeDeletedByClusterAutoscaler");
    node["exists"] != false && node["deleting"] != true && !marked
}

#[test]
fn the_node_answers_as_kube_proxy_would_at_every_moment_of_every_timeline() {
    let mut checks = 0;
    for scenario in list(&facts(), "proxy_health") {
        let mut health = ProxyHealth::new(Duration::from_secs(10));
        health.set_eligible(true);
        for step in list(scenario, "timeline") {
            let now = at(step["t"].as_i64().unwrap());
            for family in families(step, "updated") {
                health.written(family, now);
            }
            for family in families(step, "queued") {
                health.queued(family, now);
            }
            if step["node"].is_object() {
                health.set_eligible(eligible(&step["node"]));
            }
            for (path, report) in [("healthz", health.healthz(now)), ("livez", health.livez(now))] {
                let wanted = &step["expect"][path];
                if wanted.is_null() {
                    continue;
                }
                let about = format!("{} at {} {path}", scenario["id"], step["t"]);
                assert_eq!(json!(report.status), wanted["status"], "{about}");
                assert_eq!(report.body, with_times(wanted["body"].clone()), "{about}");
                checks += 1;
            }
        }
    }
    assert!(checks >= 40, "only {checks} checks");
}

#[test]
fn a_services_port_answers_as_kube_proxys() {
    let mut checks = 0;
    let all = facts();
    let with_checks = list(&all, "service_health").iter().chain(list(&all, "listeners"));
    for check in with_checks.flat_map(|scenario| list(scenario, "checks")) {
        let count = u32::try_from(check["local_ready_endpoints"].as_u64().unwrap()).unwrap();
        let service = &check["body"]["service"];
        let name = ObjectName::new(
            service["namespace"].as_str().unwrap(),
            service["name"].as_str().unwrap(),
        );
        let port = HealthPort {
            port: 1,
            families: [true, false],
            local: [count, 0],
        };
        let report = port.report(&name, Family::V4, check["proxy_healthy"] == true);
        assert_eq!(json!(report.status), check["status"], "{check}");
        assert_eq!(report.body, check["body"], "{check}");
        let weight = check["headers"]["X-Load-Balancing-Endpoint-Weight"]
            .as_str()
            .unwrap();
        assert_eq!(report.weight.unwrap().to_string(), weight);
        checks += 1;
    }
    assert!(checks >= 20, "only {checks} checks");
}

#[test]
fn only_ready_endpoints_of_this_node_count_and_each_address_once() {
    for scenario in list(&facts(), "endpoint_counts") {
        for state in list(scenario, "states") {
            let mut local = LocalEndpoints::default();
            for slice in list(state, "endpointslices") {
                let slice: EndpointSlice = serde_json::from_value(slice.clone()).unwrap();
                local.slice(&SliceView::of(&slice).unwrap(), "test-node");
            }
            let counted: serde_json::Map<String, Value> = local
                .counts()
                .into_iter()
                .map(|(name, [v4, v6])| (name.to_string(), json!(v4 + v6)))
                .collect();
            let (mine, wanted) = (json!(counted), &state["counts"]);
            assert_eq!(&mine, wanted, "{} {}", scenario["id"], state["when"]);
        }
    }
}

#[test]
fn a_service_has_a_port_only_if_it_is_a_load_balancer_with_local_policy() {
    let mut services = 0;
    for scenario in list(&facts(), "listeners") {
        let Some(service) = scenario.get("service").filter(|s| s.is_object()) else {
            continue;
        };
        let service: Service = serde_json::from_value(service.clone()).unwrap();
        let listens: Vec<Value> = HealthPort::of(&service).iter().map(|p| json!(p.port)).collect();
        assert_eq!(json!(listens), scenario["listens"], "{}", scenario["id"]);
        services += 1;
    }
    assert!(services >= 8);
}

#[test]
fn where_the_ports_listen_is_what_kube_proxy_says() {
    use crate::edge::settings::NodePortAddresses;
    for scenario in list(&facts(), "listeners") {
        let Some(ranges) = scenario["nodeport_addresses"].as_array() else {
            continue;
        };
        let ranges: Vec<_> = ranges
            .iter()
            .map(|r| r.as_str().unwrap().parse().unwrap())
            .collect();
        let chosen: Vec<IpAddr> = ranges.iter().map(|r: &agent_network::Prefix| r.base()).collect();
        let wanted: Vec<IpAddr> = ["IPv4", "IPv6"]
            .iter()
            .flat_map(|family| list(&scenario["addresses"], family))
            .map(|ip| ip.as_str().unwrap().parse().unwrap())
            .collect();
        if scenario["id"] == "address-loopback" {
            // Loopback addresses never serve node ports here: the data path has no use for them.
            continue;
        }
        assert_eq!(
            NodePortAddresses::Ranges(ranges).listen(&chosen),
            wanted,
            "{}",
            scenario["id"]
        );
    }
}

#[test]
fn a_service_that_no_slice_tells_of_counts_zero() {
    let name = ObjectName::new("a", "b");
    let port = HealthPort {
        port: 1,
        families: [true, true],
        local: [9, 9],
    };
    let ports = HealthPorts::from([(name.clone(), port)]);
    assert_eq!(counted(&ports, &LocalEndpoints::default())[&name].local, [0, 0]);
}
