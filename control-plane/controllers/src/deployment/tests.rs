//! A deployment with a stand-in for the replica set controller, driven until nothing changes any more.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn deployment(replicas: i32, strategy: &Value) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 600,
            "strategy": strategy,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
        },
    })
}

fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}})
}

fn world(replicas: i32, strategy: &Value) -> World {
    let mut world = World::default();
    world.put::<Deployment>(deployment(replicas, strategy));
    world
}

fn image(world: &mut World, image: &str) {
    world.change::<Deployment>("a", "web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image)
    });
}

fn look(world: &World) -> Observed {
    let deployment = world.get("a", "web").unwrap();
    Observed {
        deployment,
        sets: world.all(),
        pods: world.all::<Pod>(),
    }
}

fn step(world: &mut World, now: i64) -> bool {
    let plan = plan(&look(world), at(now));
    world.apply(&plan);
    !plan.is_empty()
}

/// Makes all pods of every replica set available at once; sets whose image is `broken` have none available.
fn replica_set_controller(world: &mut World) {
    for set in world.all::<ReplicaSet>() {
        let wanted = sets::replicas(&set);
        let template = set.spec.as_ref().unwrap().template.as_ref().unwrap();
        let works = template.spec.as_ref().unwrap().containers[0].image.as_deref() != Some("broken");
        let good = if works { wanted } else { 0 };
        let status = json!({
            "replicas": wanted, "readyReplicas": good, "availableReplicas": good,
            "observedGeneration": set.metadata.generation,
        });
        if serde_json::to_value(&set.status).unwrap() != status {
            let name = set.metadata.name.as_deref().unwrap();
            world.change::<ReplicaSet>("a", name, |set| set["status"] = status.clone());
        }
    }
}

fn sizes(world: &World) -> Vec<i32> {
    let mut sets = world.all::<ReplicaSet>();
    sets.sort_by(|one, other| sets::by_age(one, other));
    sets.iter().map(|set| sets::replicas(set)).collect()
}

/// Runs to the end, checking the limits of the rollout at each step.
fn settle(world: &mut World, least: i32, most: i32) {
    for round in 0..100 {
        while step(world, 1000 + round) {
            assert!(
                sizes(world).iter().sum::<i32>() <= most,
                "too many pods: {:?}",
                sizes(world)
            );
        }
        let before = world.all::<ReplicaSet>();
        replica_set_controller(world);
        let available: i32 = world
            .all::<ReplicaSet>()
            .iter()
            .map(|set| sets::available(set))
            .sum();
        assert!(available >= least, "too few pods available: {:?}", sizes(world));
        if before == world.all::<ReplicaSet>() {
            return;
        }
    }
    panic!("does not settle: {:?}", sizes(world));
}

fn status(world: &World) -> Value {
    serde_json::to_value(&world.get::<Deployment>("a", "web").unwrap().status).unwrap()
}

fn condition(world: &World, type_: &str) -> Value {
    let status = status(world);
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter()
        .find(|condition| condition["type"] == type_)
        .unwrap_or_default()
}

fn revision_of(world: &World) -> String {
    let deployment = world.get::<Deployment>("a", "web").unwrap();
    sets::annotation(&deployment.metadata, sets::REVISION)
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_new_deployment_gets_a_replica_set_and_reports_completion() {
    let mut world = world(3, &rolling());
    settle(&mut world, 0, 4);
    assert_eq!(sizes(&world), [3]);
    assert_eq!(revision_of(&world), "1");
    let status = status(&world);
    assert_eq!(
        (
            &status["replicas"],
            &status["updatedReplicas"],
            &status["availableReplicas"]
        ),
        (&json!(3), &json!(3), &json!(3))
    );
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(condition(&world, "Available")["status"], "True");
    assert_eq!(
        condition(&world, "Progressing")["reason"],
        "NewReplicaSetAvailable"
    );
    let set = &world.all::<ReplicaSet>()[0];
    let hash = &set.metadata.labels.as_ref().unwrap()[crate::template::HASH_LABEL];
    assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
    assert_eq!(
        world.events,
        [format!(
            "ScalingReplicaSet: Scaled up replica set web-{hash} from 0 to 3"
        )]
    );
}

#[test]
fn a_rolling_update_keeps_to_its_limits_and_ends_with_the_new_set_only() {
    let mut world = world(10, &rolling());
    settle(&mut world, 0, 11);
    image(&mut world, "v2");
    settle(&mut world, 9, 11);
    assert_eq!(sizes(&world), [0, 10]);
    assert_eq!(revision_of(&world), "2");
}

#[test]
fn a_broken_version_stops_half_way_and_times_out() {
    let mut world = world(4, &rolling());
    settle(&mut world, 0, 5);
    image(&mut world, "broken");
    settle(&mut world, 3, 5);
    assert_eq!(sizes(&world), [3, 2]);
    assert_eq!(condition(&world, "Progressing")["status"], "True");
    let waiting = plan(&look(&world), at(1100));
    assert!(
        waiting.is_empty() && waiting.requeue_after.is_some(),
        "it looks again when the deadline passes"
    );
    step(&mut world, 3000);
    assert_eq!(
        condition(&world, "Progressing")["reason"],
        "ProgressDeadlineExceeded"
    );
    assert_eq!(condition(&world, "Available")["status"], "True");
}

#[test]
fn undoing_a_rollout_reuses_the_old_set_under_a_new_revision() {
    let mut world = world(2, &rolling());
    settle(&mut world, 0, 3);
    image(&mut world, "v2");
    settle(&mut world, 1, 3);
    image(&mut world, "v1");
    settle(&mut world, 1, 3);
    assert_eq!(sizes(&world), [2, 0]);
    assert_eq!(revision_of(&world), "3");
    let sets = world.all::<ReplicaSet>();
    let first = sets.iter().find(|set| sets::replicas(set) == 2).unwrap();
    assert_eq!(
        sets::annotation(&first.metadata, "deployment.kubernetes.io/revision-history"),
        Some("1")
    );
}

#[test]
fn empty_sets_beyond_the_history_limit_are_deleted() {
    let mut world = world(2, &rolling());
    for version in ["v1", "v2", "v3", "v4"] {
        image(&mut world, version);
        settle(&mut world, 0, 3);
    }
    assert_eq!(sizes(&world), [0, 2]);
}

#[test]
fn recreation_starts_new_pods_only_when_no_old_one_runs() {
    let mut world = world(2, &json!({"type": "Recreate"}));
    settle(&mut world, 0, 2);
    let owner = world.all::<ReplicaSet>()[0].metadata.uid.clone();
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": owner, "controller": true});
    world.put::<Pod>(json!({"metadata": {"name": "p", "namespace": "a", "ownerReferences": [owner]}, "status": {"phase": "Running"}}));
    image(&mut world, "v2");
    settle(&mut world, 0, 2);
    assert_eq!(sizes(&world), [0], "the old pod still runs");
    world.change::<Pod>("a", "p", |pod| pod["status"]["phase"] = json!("Failed"));
    settle(&mut world, 0, 2);
    assert_eq!(sizes(&world), [0, 2]);
}

#[test]
fn scaling_in_the_midst_of_a_rollout_is_in_proportion() {
    let mut world = world(
        10,
        &json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}),
    );
    settle(&mut world, 0, 13);
    image(&mut world, "broken");
    settle(&mut world, 8, 13);
    assert_eq!(sizes(&world), [8, 5]);
    world.change::<Deployment>("a", "web", |d| d["spec"]["replicas"] = json!(15));
    settle(&mut world, 8, 18);
    assert_eq!(sizes(&world), [11, 7]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = world(2, &rolling());
    settle(&mut world, 0, 3);
    world.change::<Deployment>("a", "web", |d| {
        d["spec"]["paused"] = json!(true);
        d["spec"]["replicas"] = json!(4);
    });
    image(&mut world, "v2");
    settle(&mut world, 2, 5);
    assert_eq!(sizes(&world), [4]);
    assert_eq!(condition(&world, "Progressing")["reason"], "DeploymentPaused");
    world.change::<Deployment>("a", "web", |d| d["spec"]["paused"] = json!(false));
    settle(&mut world, 3, 5);
    assert_eq!(sizes(&world), [0, 4]);
}

#[test]
fn a_name_that_is_taken_makes_another_hash() {
    let mut world = world(1, &rolling());
    let template = look(&world).deployment.spec.as_ref().unwrap().template.clone();
    let name = format!("web-{}", crate::template::hash(&template, None));
    world.put::<ReplicaSet>(json!({
        "metadata": {"name": name, "namespace": "a"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "other"}}, "template": {"spec": {"containers": [{"name": "c"}]}}},
    }));
    settle(&mut world, 0, 2);
    assert_eq!(status(&world)["collisionCount"], 1);
    assert_eq!(world.all::<ReplicaSet>().len(), 2);
}

#[test]
fn scaling_to_zero_completes() {
    let mut world = world(3, &rolling());
    settle(&mut world, 0, 4);
    world.change::<Deployment>("a", "web", |d| d["spec"]["replicas"] = json!(0));
    settle(&mut world, 0, 4);
    assert_eq!(sizes(&world), [0]);
    assert_eq!(status(&world)["replicas"], Value::Null);
}
