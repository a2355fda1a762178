//! Who owns what, over the published schemas.

use super::*;
use crate::catalog::{Resource, catalog};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

fn deployments() -> Arc<Resource> {
    catalog().lookup("apps", "v1", "deployments").unwrap()
}

fn now() -> Timestamp {
    "2024-01-02T03:04:05Z".parse().unwrap()
}

fn put(live: Option<&Value>, applied: &Value, manager: &str, force: bool) -> Result<Value, Conflicts> {
    apply(&deployments().schema, live, applied, manager, force, None, now())
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn entry<'a>(object: &'a Value, manager: &str) -> Option<&'a Value> {
    list(object, "metadata.managedFields")
        .iter()
        .find(|entry| entry["manager"] == manager)
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let applied = deployment(
        json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec":
        {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}),
    );
    let got = put(None, &applied, "me", false).unwrap();
    assert_eq!(
        *entry(&got, "me").unwrap(),
        json!({"manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": "2024-01-02T03:04:05Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec":
                {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports":
                    {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}})
    );
    assert_eq!(
        put(Some(&got), &applied, "me", false).unwrap(),
        got,
        "applying again changes nothing"
    );
}

#[test]
fn another_manager_needs_force_to_change_a_value() {
    let live = put(
        None,
        &deployment(json!({"replicas": 2, "paused": true})),
        "one",
        false,
    )
    .unwrap();
    let other = deployment(json!({"replicas": 3}));
    let conflicts = put(Some(&live), &other, "two", false).unwrap_err();
    let status = conflicts.status();
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
    assert_eq!(
        status.details.unwrap().causes[0].to_json(),
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.replicas"})
    );
    let forced = put(Some(&live), &other, "two", true).unwrap();
    assert_eq!(
        (&forced["spec"]["replicas"], &forced["spec"]["paused"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(
        entry(&forced, "one").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:paused": {}}})
    );
    let same = put(Some(&live), &deployment(json!({"replicas": 2})), "two", false).unwrap();
    assert_eq!(
        entry(&same, "two").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:replicas": {}}}),
        "shared"
    );
}

#[test]
fn a_field_left_out_is_removed_unless_another_owns_it() {
    let live = put(
        None,
        &deployment(json!({"replicas": 2, "paused": true})),
        "one",
        false,
    )
    .unwrap();
    let shared = put(Some(&live), &deployment(json!({"replicas": 2})), "two", false).unwrap();
    let less = put(Some(&shared), &deployment(json!({})), "one", false).unwrap();
    assert_eq!(less["spec"], json!({"replicas": 2}));
    assert!(entry(&less, "one").is_none_or(|entry| entry["fieldsV1"] == json!({"f:spec": {}})));
}

#[test]
fn list_items_come_and_go_by_their_keys() {
    let containers = |names: &[&str]| {
        let list: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "image": "i"}))
            .collect();
        deployment(json!({"template": {"spec": {"containers": list}}}))
    };
    let names = |object: &Value| -> Vec<String> {
        list(object, "spec.template.spec.containers")
            .iter()
            .map(|c| text(c, "name").to_owned())
            .collect()
    };
    let mut live = put(None, &containers(&["a", "b"]), "one", false).unwrap();
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    let both = put(Some(&live), &containers(&["z"]), "two", false).unwrap();
    assert_eq!(names(&both), ["a", "b", "z"]);
    let less = put(Some(&both), &containers(&["a"]), "one", false).unwrap();
    assert_eq!(
        names(&less),
        ["a", "z"],
        "the item goes with what the server filled in"
    );
}

#[test]
fn ordinary_updates_take_fields_over() {
    let live = put(
        None,
        &deployment(json!({"replicas": 2, "paused": true})),
        "one",
        false,
    )
    .unwrap();
    let mut new = live.clone();
    new["spec"]["replicas"] = 5.into();
    new["spec"].as_object_mut().unwrap().remove("paused");
    track_update(
        &deployments().schema,
        Some(&live),
        &mut new,
        "kubectl",
        "Update",
        None,
        now(),
    );
    assert!(entry(&new, "one").is_none(), "{new}");
    assert_eq!(
        entry(&new, "kubectl").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:replicas": {}}})
    );
    let conflicts = put(Some(&new), &deployment(json!({"replicas": 1})), "one", false).unwrap_err();
    assert_eq!(
        conflicts.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn creates_are_tracked_without_the_servers_metadata() {
    let mut new = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "uid": "u",
        "labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {"replicas": 0}});
    track_update(
        &deployments().schema,
        None,
        &mut new,
        "kubectl",
        "Update",
        None,
        now(),
    );
    assert_eq!(
        entry(&new, "kubectl").unwrap()["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:replicas": {}}})
    );
    let before = new.clone();
    track_update(
        &deployments().schema,
        Some(&before),
        &mut new,
        "kubectl",
        "Update",
        None,
        now(),
    );
    assert_eq!(new, before, "a write without a change leaves the owners alone");
}

#[test]
fn status_writers_own_the_status_only() {
    let old = deployment(json!({"replicas": 1}));
    let mut new = old.clone();
    new["status"] = json!({"replicas": 1});
    track_update(
        &deployments().schema,
        Some(&old),
        &mut new,
        "controller",
        "Update",
        Some("status"),
        now(),
    );
    let entry = entry(&new, "controller").unwrap();
    assert_eq!(entry["fieldsV1"]["f:status"]["f:replicas"], json!({}));
    assert_eq!(entry["subresource"], "status");
}

#[test]
fn objects_from_before_belong_to_whoever_was_first() {
    let live = deployment(json!({"replicas": 2}));
    let conflicts = put(Some(&live), &deployment(json!({"replicas": 3})), "me", false).unwrap_err();
    assert!(
        conflicts
            .to_string()
            .contains("\"before-first-apply\" using apps/v1"),
        "{conflicts}"
    );
}

#[test]
fn many_updaters_are_put_together() {
    let mut object = deployment(json!({"replicas": 0}));
    for number in 0..15 {
        let old = object.clone();
        object["metadata"]["annotations"][format!("a{number}")] = "x".into();
        let at = now()
            .checked_add(jiff::SignedDuration::from_secs(number))
            .unwrap();
        track_update(
            &deployments().schema,
            Some(&old),
            &mut object,
            &format!("m{number}"),
            "Update",
            None,
            at,
        );
    }
    assert_eq!(list(&object, "metadata.managedFields").len(), 10);
    assert!(entry(&object, "ancient-changes").is_some());
}

/// A configuration from a small space: replicas, labels, containers with images.
fn configuration() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[a-c]", "[xy]", 0..3);
    let containers = prop::collection::btree_map("[a-c]", "[xy]", 0..3);
    (prop::option::of(0i64..3), labels, containers).prop_map(|(replicas, labels, containers)| {
        let list: Vec<Value> = containers
            .iter()
            .map(|(n, i)| json!({"name": n, "image": i}))
            .collect();
        let mut object =
            deployment(json!({"template": {"metadata": {"labels": labels}, "spec": {"containers": list}}}));
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        object
    })
}

fn without_owners(object: &Value) -> Value {
    let mut out = object.clone();
    metadata_mut(&mut out).shift_remove("managedFields");
    out
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in configuration(), second in configuration()) {
        let live = put(None, &first, "one", true).unwrap();
        let once = put(Some(&live), &second, "two", true).unwrap();
        prop_assert_eq!(put(Some(&once), &second, "two", false).unwrap(), once);
    }

    #[test]
    fn what_was_applied_is_there(first in configuration(), second in configuration()) {
        let live = put(None, &first, "one", true).unwrap();
        let got = put(Some(&live), &second, "two", true).unwrap();
        let changes = walk::compare(Some(&deployments().schema), &got, &second);
        prop_assert!(changes.added.is_empty() && changes.modified.is_empty(), "{:?}", changes);
    }

    #[test]
    fn one_manager_alone_gets_exactly_what_it_applies(first in configuration(), second in configuration()) {
        let live = put(None, &first, "one", false).unwrap();
        let got = put(Some(&live), &second, "one", false).unwrap();
        let fresh = put(None, &second, "one", false).unwrap();
        let leaves = |object: &Value| tracked(&deployments().schema, &without_owners(object), None).paths();
        let filled = |paths: Vec<String>| -> Vec<String> {
            paths.into_iter().filter(|p| !p.ends_with(".labels") && !p.ends_with(".containers")).collect()
        };
        prop_assert_eq!(filled(leaves(&got)), filled(leaves(&fresh)));
    }

    #[test]
    fn without_force_nobody_loses_a_value(first in configuration(), second in configuration()) {
        let live = put(None, &first, "one", false).unwrap();
        if let Ok(got) = put(Some(&live), &second, "two", false) {
            let changes = walk::compare(Some(&deployments().schema), &without_owners(&live), &without_owners(&got));
            prop_assert!(changes.modified.is_empty() && changes.removed.is_empty(), "{:?}", changes);
        }
    }
}
