//! kube-proxy's behaviour as data, on the layers that need no kernel; `tests/packets` runs the same flows through the loaded programs.
use serde_json::Value;
use tests_scenarios::{ByLogic, ByManifests, flows_of_kube_proxy, list, model_of, name, scenarios};

fn objects(scenario: &Value) -> Vec<&Value> {
    let (services, slices) = (list(scenario, "services"), list(scenario, "endpointslices"));
    services.iter().chain(slices).collect()
}

#[test]
fn services_behave_as_under_kube_proxy_but_for_what_is_listed() {
    flows_of_kube_proxy(&mut ByLogic);
}

#[test]
fn explanations_from_manifests_tell_what_kube_proxy_does_but_for_what_is_listed() {
    flows_of_kube_proxy(&mut ByManifests::default());
}

#[test]
fn ports_that_drop_by_policy_are_counted_as_under_kube_proxy() {
    let mut checked = 0;
    for scenario in scenarios() {
        let metrics = &scenario["metrics"]["kubeproxy_sync_proxy_rules_no_local_endpoints_total"];
        let (Some(internal), Some(external)) = (metrics["internal"].as_u64(), metrics["external"].as_u64())
        else {
            continue;
        };
        let mut model = model_of(&scenario);
        objects(&scenario).iter().for_each(|o| model.apply(o));
        model.sync();
        let got = model.planner.no_local_endpoints();
        assert_eq!(
            (got.internal as u64, got.external as u64),
            (internal, external),
            "{}",
            scenario["id"]
        );
        checked += 1;
    }
    assert_eq!(checked, 5);
}

#[test]
fn the_order_in_which_objects_are_seen_does_not_matter() {
    for scenario in scenarios() {
        let (mut forward, mut backward, mut singly) =
            (model_of(&scenario), model_of(&scenario), model_of(&scenario));
        let objects = objects(&scenario);
        for object in &objects {
            forward.apply(object);
            singly.apply(object);
            singly.sync();
        }
        for object in objects.iter().rev() {
            backward.apply(object);
        }
        forward.sync();
        backward.sync();
        assert_eq!(forward.dump(), backward.dump(), "{}", scenario["id"]);
        assert_eq!(forward.dump(), singly.dump(), "{}", scenario["id"]);
    }
}

#[test]
fn deleting_everything_leaves_nothing() {
    for scenario in scenarios() {
        let mut model = model_of(&scenario);
        let objects = objects(&scenario);
        for object in &objects {
            model.apply(object);
        }
        model.sync();
        for object in &objects {
            model.delete(object["kind"].as_str().expect("a kind"), &name(object));
            model.sync();
        }
        assert_eq!(
            model.maps,
            agent_services::Existing::default(),
            "{}",
            scenario["id"]
        );
        assert!(!model.planner.has_external_fronts());
    }
}
