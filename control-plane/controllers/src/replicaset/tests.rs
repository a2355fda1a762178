//! Plans for single situations.

use k8s_openapi::api::core::v1::ReplicationController;
use machinery_plan::{Operation, lint};
use serde_json::{Value, json};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn set(replicas: i32, extra: Value) -> Arc<ReplicaSet> {
    let mut json = json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "rs", "resourceVersion": "5", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
        },
    });
    for (key, value) in extra.as_object().unwrap() {
        json[key] = value.clone();
    }
    Arc::new(serde_json::from_value(json).unwrap())
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true});
    let mut json = json!({
        "metadata": {
            "name": name, "namespace": "a", "uid": name, "resourceVersion": "1",
            "labels": {"app": "web"}, "ownerReferences": [owner],
        },
        "spec": {"containers": [{"name": "c"}], "nodeName": "n1"},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"},
        ]},
    });
    change(&mut json);
    Arc::new(serde_json::from_value(json).unwrap())
}

fn planned(set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>) -> Plan {
    let plan = plan(
        &Observed {
            set,
            pods,
            last_failure: None,
        },
        at(200),
    );
    lint::assert_clean(&plan);
    plan
}

fn written_status(plan: &Plan) -> Option<Value> {
    plan.actions().find_map(|action| match &action.operation {
        Operation::Update {
            body,
            subresource: Some("status"),
        } => Some(body["status"].clone()),
        _ => None,
    })
}

#[test]
fn missing_pods_are_created_from_the_template_under_a_generated_name() {
    let plan = planned(set(3, json!({})), vec![pod("p1", |_| {})]);
    let created = plan.creations();
    assert_eq!(created.len(), 2);
    assert_eq!(created[0]["metadata"]["generateName"], "web-");
    assert_eq!(created[0]["metadata"]["ownerReferences"][0]["uid"], "rs");
    assert_eq!(created[0]["spec"]["containers"][0]["name"], "c");
}

#[test]
fn surplus_pods_go_worst_first() {
    let pods = vec![
        pod("ready", |_| {}),
        pod("unplaced", |p| {
            p["spec"]["nodeName"] = json!(null);
            p["status"] = json!({"phase": "Pending"});
        }),
        pod("unready", |p| {
            p["status"]["conditions"][0]["status"] = json!("False")
        }),
    ];
    let plan = planned(set(1, json!({})), pods);
    let names: Vec<_> = plan.deletions().iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["unplaced", "unready"]);
}

#[test]
fn a_lower_deletion_cost_goes_before_a_fuller_node() {
    let cost = |cost: &'static str| {
        move |p: &mut Value| {
            p["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": cost})
        }
    };
    let pods = vec![
        pod("dear", cost("10")),
        pod("cheap", cost("-5")),
        pod("plain", |_| {}),
    ];
    let plan = planned(set(2, json!({})), pods);
    assert_eq!(plan.deletions()[0].name, "cheap");
}

#[test]
fn ended_and_terminating_pods_are_replaced() {
    let pods = vec![
        pod("ended", |p| p["status"]["phase"] = json!("Failed")),
        pod("going", |p| {
            p["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:03:00Z")
        }),
    ];
    assert_eq!(planned(set(1, json!({})), pods).creations().len(), 1);
}

#[test]
fn an_orphan_that_matches_is_adopted_before_anything_is_created() {
    let orphan = pod("orphan", |p| p["metadata"]["ownerReferences"] = json!([]));
    let plan = planned(set(1, json!({})), vec![orphan]);
    assert!(plan.creations().is_empty());
    let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
        panic!("no patch")
    };
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "rs");
}

#[test]
fn an_own_pod_that_no_longer_matches_is_released() {
    let plan = planned(
        set(1, json!({})),
        vec![pod("other", |p| p["metadata"]["labels"] = json!({}))],
    );
    let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
        panic!("no patch")
    };
    assert_eq!(body["metadata"]["ownerReferences"][0]["$patch"], "delete");
}

#[test]
fn the_status_counts_and_is_written_once() {
    let pods = vec![
        pod("p1", |_| {}),
        pod("p2", |p| p["status"]["conditions"] = json!([])),
    ];
    let plan = planned(set(2, json!({})), pods.clone());
    let status = written_status(&plan).unwrap();
    assert_eq!(
        (
            &status["replicas"],
            &status["readyReplicas"],
            &status["availableReplicas"]
        ),
        (&json!(2), &json!(1), &json!(1))
    );
    let settled = planned(set(2, json!({"status": status})), pods);
    assert!(settled.is_empty());
}

#[test]
fn a_pod_is_available_only_after_min_ready_seconds_and_the_plan_looks_again_then() {
    let mut patient = set(1, json!({})).as_ref().clone();
    patient.spec.as_mut().unwrap().min_ready_seconds = Some(150);
    let plan = planned(Arc::new(patient), vec![pod("p1", |_| {})]);
    assert_eq!(written_status(&plan).unwrap()["availableReplicas"], Value::Null);
    assert_eq!(plan.requeue_after, Some(std::time::Duration::from_secs(50)));
}

#[test]
fn a_set_being_deleted_neither_creates_nor_adopts() {
    let mut going = set(3, json!({})).as_ref().clone();
    going.metadata.deletion_timestamp = Some(time::wire(at(190)));
    let plan = planned(
        Arc::new(going),
        vec![pod("o", |p| p["metadata"]["ownerReferences"] = json!([]))],
    );
    assert!(plan.creations().is_empty());
    assert!(
        plan.actions()
            .all(|action| action.subresource() == Some("status"))
    );
}

#[test]
fn a_refused_creation_shows_in_the_status() {
    let observed = Observed {
        set: set(1, json!({})),
        pods: vec![],
        last_failure: Some("quota".to_owned()),
    };
    let plan = plan(&observed, at(200));
    lint::assert_clean(&plan);
    let condition = &written_status(&plan).unwrap()["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("ReplicaFailure"), &json!("FailedCreate"))
    );
}

#[test]
fn a_replication_controller_keeps_its_pods_the_same_way() {
    let set = json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "rc", "resourceVersion": "5", "generation": 2},
        "spec": {
            "replicas": 2,
            "selector": {"app": "web"},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
        },
    });
    let set: Arc<ReplicationController> = Arc::new(serde_json::from_value(set).unwrap());
    let mut observed = Observed {
        set,
        pods: vec![],
        last_failure: Some("exceeded quota".to_owned()),
    };
    let refused = plan(&observed, at(200));
    lint::assert_clean(&refused);
    let owner = &refused.creations()[1]["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["apiVersion"]),
        (&json!("ReplicationController"), &json!("v1"))
    );
    let status = written_status(&refused).unwrap();
    assert_eq!(status["conditions"][0]["type"], "ReplicaFailure");
    let mut told = observed.set.as_ref().clone();
    told.status = serde_json::from_value(status).unwrap();
    observed.set = Arc::new(told);
    assert!(
        written_status(&plan(&observed, at(201))).is_none(),
        "the status is written once"
    );
}

#[test]
fn a_refusal_is_forgotten_as_soon_as_the_number_is_right() {
    let failed =
        json!({"status": {"replicas": 1, "conditions": [{"type": "ReplicaFailure", "status": "True"}]}});
    let observed = Observed {
        set: set(1, failed),
        pods: vec![pod("p1", |_| {})],
        last_failure: Some("quota".to_owned()),
    };
    let plan = plan(&observed, at(200));
    assert_eq!(written_status(&plan).unwrap()["conditions"], Value::Null);
}
