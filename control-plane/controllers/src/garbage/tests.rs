//! The graph and the decisions about it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, Operation, Plan, Propagation, ResourceType, lint};
use serde_json::json;

use super::*;

fn object(uid: &str, owners: &[(&str, bool)], finalizers: &[&str], deleting: bool) -> Object {
    let owners: Vec<_> = owners.iter().map(|(uid, blocks)| {
        json!({"apiVersion": "v1", "kind": "Pod", "name": uid, "uid": uid, "blockOwnerDeletion": blocks})
    }).collect();
    let meta: ObjectMeta = serde_json::from_value(json!({
        "name": uid, "namespace": "a", "uid": uid, "resourceVersion": "3", "ownerReferences": owners,
        "finalizers": finalizers, "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
    }))
    .unwrap();
    Object::of(&ResourceType::of::<Pod>(), &meta).unwrap()
}

/// Decides about `uid` with what the graph says; an owner it does not have is absent.
fn decided(graph: &Graph, uid: &str) -> Plan {
    let subject = graph.get(uid).map(|object| {
        let state = |owner: &Owner| match graph.get(&owner.uid) {
            None => OwnerState::Absent,
            Some(held) if held.waits_for_dependents() => OwnerState::Waiting,
            Some(_) => OwnerState::Present,
        };
        let owners = object
            .owners
            .iter()
            .map(|owner| (owner.clone(), state(owner)))
            .collect();
        Subject {
            object: Arc::clone(object),
            owners,
            dependents: graph.dependents(uid),
        }
    });
    let plan = plan(&subject);
    lint::assert_clean(&plan);
    plan
}

fn graph(objects: Vec<Object>) -> Graph {
    let mut graph = Graph::default();
    for object in objects {
        graph.observe(object);
    }
    graph
}

fn propagation(action: &Action) -> Option<Propagation> {
    if let Operation::Delete { propagation, .. } = &action.operation {
        *propagation
    } else {
        None
    }
}

#[test]
fn dependents_of_an_object_that_goes_are_looked_at_and_deleted() {
    let mut graph = graph(vec![
        object("owner", &[], &[], false),
        object("child", &[("owner", false)], &[], false),
    ]);
    assert!(decided(&graph, "child").is_empty());
    assert_eq!(graph.remove("owner"), ["child"]);
    let plan = decided(&graph, "child");
    let action = plan.actions().next().unwrap();
    assert_eq!(propagation(action), Some(Propagation::Background));
    assert_eq!(action.preconditions.resource_version.as_deref(), Some("3"));
}

#[test]
fn an_object_with_an_owner_that_remains_only_loses_the_reference() {
    let graph = graph(vec![
        object("one", &[], &[], false),
        object("child", &[("one", false), ("gone", false)], &[], false),
    ]);
    let plan = decided(&graph, "child");
    let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
        panic!("no patch")
    };
    assert_eq!(
        body["metadata"]["ownerReferences"],
        json!([{"$patch": "delete", "uid": "gone"}])
    );
}

#[test]
fn a_foreground_deletion_waits_for_those_that_block_and_for_no_others() {
    let owner = object("owner", &[], &[FOREGROUND], true);
    let mut graph = graph(vec![
        object("blocks", &[("owner", true)], &[], false),
        object("does not", &[("owner", false)], &[], false),
    ]);
    let mut affected = graph.observe(owner);
    affected.sort();
    assert_eq!(affected, ["blocks", "does not", "owner"]);
    assert!(decided(&graph, "owner").is_empty());
    assert_eq!(decided(&graph, "blocks").deletions().len(), 1);
    assert_eq!(graph.remove("blocks"), ["owner"]);
    let plan = decided(&graph, "owner");
    let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
        panic!("no patch")
    };
    assert_eq!(body["metadata"]["finalizers"], json!([]));
}

#[test]
fn a_foreground_deletion_goes_on_down_the_tree() {
    let graph = graph(vec![
        object("top", &[], &[FOREGROUND], true),
        object("middle", &[("top", true)], &[], false),
        object("leaf", &[("middle", true)], &[], false),
    ]);
    assert_eq!(
        propagation(decided(&graph, "middle").actions().next().unwrap()),
        Some(Propagation::Foreground)
    );
    assert!(decided(&graph, "leaf").is_empty());
}

#[test]
fn orphans_lose_their_owner_before_it_goes() {
    let graph = graph(vec![
        object("owner", &[], &[ORPHAN], true),
        object("child", &[("owner", true)], &[], false),
    ]);
    let plan = decided(&graph, "owner");
    let names: Vec<_> = plan
        .actions()
        .map(|action| action.object.key.name.as_str())
        .collect();
    assert_eq!(names, ["child", "owner"]);
    assert_eq!(plan.stages.len(), 2);
}

#[test]
fn an_owner_that_cannot_be_resolved_keeps_its_dependents() {
    let child = Arc::new(object("child", &[("odd", false)], &[], false));
    let owners = vec![(child.owners[0].clone(), OwnerState::Unresolvable)];
    let subject = Subject {
        object: child,
        owners,
        dependents: Vec::new(),
    };
    assert!(plan(&Some(subject)).is_empty());
}

#[test]
fn a_circle_of_owners_that_wait_is_broken() {
    let graph = graph(vec![
        object("a", &[("b", true)], &[FOREGROUND], true),
        object("b", &[("a", true)], &[], false),
    ]);
    let plan = decided(&graph, "b");
    let Operation::Patch { body, .. } = &plan.actions().next().unwrap().operation else {
        panic!("no patch")
    };
    assert_eq!(
        body["metadata"]["ownerReferences"][0]["blockOwnerDeletion"],
        false
    );
}

#[test]
fn an_object_that_is_only_changed_elsewhere_is_not_looked_at_again() {
    let mut graph = graph(vec![
        object("owner", &[], &[], false),
        object("child", &[("owner", false)], &[], false),
    ]);
    let mut child = object("child", &[("owner", false)], &[], false);
    child.resource_version = "4".to_owned();
    assert!(graph.observe(child).is_empty());
    assert_eq!(graph.in_namespace("a").len(), 2);
}
