//! A daemon set on changing nodes.

use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn world(nodes: &[&str]) -> World {
    let mut world = World::default();
    world.put::<DaemonSet>(json!({
        "metadata": {"name": "d", "namespace": "a"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "containers": [{"name": "c", "image": "v1"}], "nodeSelector": {"kind": "worker"},
            }},
        },
    }));
    for node in nodes {
        world.put::<Node>(json!({"metadata": {"name": node, "labels": {"kind": "worker"}}}));
    }
    world
}

fn look(world: &World) -> Observed {
    Observed {
        set: world.get("a", "d").unwrap(),
        pods: world.all(),
        nodes: world.all(),
        revisions: world.all(),
    }
}

/// Plans and lets all pods run until there is nothing to do; returns the largest number of pods missing at a time.
fn settle(world: &mut World) -> usize {
    let mut down = 0;
    for _ in 0..30 {
        let plan = plan(&look(world), at(1000));
        world.apply(&plan);
        if plan.is_empty() {
            return down;
        }
        down = down.max(world.all::<Node>().len().saturating_sub(world.all::<Pod>().len()));
        for pod in world.all::<Pod>() {
            let name = pod.metadata.name.clone().unwrap();
            let ready =
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
            let node = target(&pod).to_owned();
            world.change::<Pod>("a", &name, |pod| {
                pod["spec"]["nodeName"] = json!(node);
                pod["status"] = json!({"phase": "Running", "conditions": ready});
            });
        }
    }
    panic!("does not settle");
}

fn status(world: &World) -> Value {
    serde_json::to_value(&world.get::<DaemonSet>("a", "d").unwrap().status).unwrap()
}

#[test]
fn every_node_that_fits_gets_one_pod_for_that_node() {
    let mut world = world(&["n1", "n2"]);
    world.put::<Node>(json!({"metadata": {"name": "other"}}));
    settle(&mut world);
    let mut targets: Vec<_> = world
        .all::<Pod>()
        .iter()
        .map(|pod| target(pod).to_owned())
        .collect();
    targets.sort();
    assert_eq!(targets, ["n1", "n2"]);
    assert_eq!(
        (
            &status(&world)["desiredNumberScheduled"],
            &status(&world)["numberAvailable"]
        ),
        (&json!(2), &json!(2))
    );
    assert_eq!(world.all::<ControllerRevision>().len(), 1);
}

#[test]
fn a_tainted_node_gets_no_pod_and_one_already_there_stays_unless_the_taint_executes() {
    let mut world = world(&["n1", "n2"]);
    world.change::<Node>("", "n1", |n| {
        n["spec"] = json!({"taints": [{"key": "x", "effect": "NoSchedule"}]})
    });
    settle(&mut world);
    assert_eq!(world.all::<Pod>().len(), 1);
    world.change::<Node>("", "n2", |n| {
        n["spec"] = json!({"taints": [{"key": "x", "effect": "NoSchedule"}]})
    });
    settle(&mut world);
    assert_eq!(world.all::<Pod>().len(), 1);
    world.change::<Node>("", "n2", |n| {
        n["spec"] = json!({"taints": [{"key": "x", "effect": "NoExecute"}]})
    });
    settle(&mut world);
    assert!(world.all::<Pod>().is_empty());
}

#[test]
fn a_cordoned_or_unready_node_keeps_its_daemons() {
    let mut world = world(&["n1"]);
    let taints = json!([
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
    ]);
    world.change::<Node>("", "n1", |n| n["spec"] = json!({"taints": taints}));
    settle(&mut world);
    assert_eq!(world.all::<Pod>().len(), 1);
}

#[test]
fn an_update_replaces_pods_one_at_a_time_and_keeps_the_history() {
    let mut world = world(&["n1", "n2", "n3"]);
    settle(&mut world);
    world.change::<DaemonSet>("a", "d", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v2")
    });
    assert_eq!(settle(&mut world), 1);
    assert_eq!(status(&world)["updatedNumberScheduled"], 3);
    let revisions: Vec<_> = world
        .all::<ControllerRevision>()
        .iter()
        .map(|revision| revision.revision)
        .collect();
    assert_eq!(revisions.iter().max(), Some(&2));
    assert_eq!(revisions.len(), 2);
}

#[test]
fn a_revision_is_known_by_its_content_whatever_its_name() {
    let mut world = world(&["n1"]);
    settle(&mut world);
    let mut copy = serde_json::to_value(&*world.all::<ControllerRevision>()[0]).unwrap();
    let first = copy["metadata"]["name"].as_str().unwrap().to_owned();
    let pod = world.all::<Pod>()[0].metadata.uid.clone();
    copy["metadata"]["name"] = json!("d-other");
    copy["metadata"]["labels"][REVISION_HASH] = json!("other");
    copy["revision"] = json!(2);
    world.put::<ControllerRevision>(copy);
    settle(&mut world);
    assert_eq!(world.all::<ControllerRevision>().len(), 2);
    let key = machinery_plan::Key::new("a", &first);
    world.objects.retain(|object, _| object.key != key);
    settle(&mut world);
    let left = world.all::<ControllerRevision>();
    assert_eq!((left.len(), left[0].revision), (1, 2));
    assert_eq!(world.all::<Pod>()[0].metadata.uid, pod);
}

#[test]
fn a_revision_of_other_content_does_not_take_the_name_of_a_new_one() {
    let mut world = world(&["n1"]);
    let spec = world.get::<DaemonSet>("a", "d").unwrap().spec.clone().unwrap();
    let hash = template::hash(&spec.template, None);
    world.put::<ControllerRevision>(json!({
        "metadata": {"name": format!("d-{hash}"), "namespace": "a", "labels": {REVISION_HASH: hash}},
        "revision": 1, "data": {"spec": {"template": {"$patch": "replace"}}},
    }));
    settle(&mut world);
    assert_eq!(status(&world)["collisionCount"], 1);
    let revisions = world.all::<ControllerRevision>();
    assert_eq!(revisions.iter().map(|r| r.revision).max(), Some(2));
}
