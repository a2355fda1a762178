//! A job and its pods, driven to the end.

use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn world(spec: &Value) -> World {
    let mut world = World::default();
    let mut whole = json!({
        "selector": {"matchLabels": {"job": "j"}},
        "template": {"metadata": {"labels": {"job": "j"}}, "spec": {"containers": [{"name": "c"}]}},
    });
    for (name, value) in spec.as_object().unwrap() {
        whole[name] = value.clone();
    }
    world.put::<Job>(json!({"metadata": {"name": "j", "namespace": "a"}, "spec": whole}));
    world
}

fn look(world: &World) -> Observed {
    Observed {
        job: world.get("a", "j").unwrap(),
        pods: world.all(),
    }
}

/// Plans until there is nothing to do; returns the last plan.
fn settle(world: &mut World, now: i64) -> Plan {
    for _ in 0..20 {
        let plan = plan(&look(world), at(now));
        world.apply(&plan);
        if plan.is_empty() {
            return plan;
        }
    }
    panic!("does not settle");
}

fn running(world: &World) -> Vec<Arc<Pod>> {
    world
        .all::<Pod>()
        .into_iter()
        .filter(|pod| is_active(pod))
        .collect()
}

fn end(world: &mut World, pod: &Pod, phase: &str) {
    world.change::<Pod>("a", pod.metadata.name.as_deref().unwrap(), |pod| {
        pod["status"]["phase"] = json!(phase)
    });
}

fn status(world: &World) -> Value {
    serde_json::to_value(&world.get::<Job>("a", "j").unwrap().status).unwrap()
}

fn has(world: &World, type_: &str) -> bool {
    status::condition(&world.get::<Job>("a", "j").unwrap(), type_).is_some()
}

#[test]
fn pods_run_in_parallel_until_enough_have_succeeded() {
    let mut world = world(&json!({"parallelism": 2, "completions": 3}));
    settle(&mut world, 100);
    assert_eq!(running(&world).len(), 2);
    assert!(pods::has_finalizer(&running(&world)[0]));
    for _ in 0..3 {
        let pod = running(&world)[0].clone();
        end(&mut world, &pod, "Succeeded");
        settle(&mut world, 200);
    }
    assert_eq!(status(&world)["succeeded"], 3);
    assert!(has(&world, "SuccessCriteriaMet") && has(&world, "Complete"));
    assert_eq!(status(&world)["completionTime"], "1970-01-01T00:03:20Z");
    assert!(
        world.all::<Pod>().iter().all(|pod| !pods::has_finalizer(pod)),
        "every pod may go"
    );
}

#[test]
fn a_pod_that_vanishes_after_it_was_recorded_is_counted_once() {
    let mut world = world(&json!({"parallelism": 1, "completions": 2}));
    settle(&mut world, 100);
    let pod = running(&world)[0].clone();
    end(&mut world, &pod, "Succeeded");
    settle(&mut world, 200);
    settle(&mut world, 300);
    assert_eq!(
        (
            status(&world)["succeeded"].clone(),
            status(&world)["active"].clone()
        ),
        (json!(1), json!(1))
    );
}

#[test]
fn failures_wait_before_they_are_replaced_and_end_the_job_beyond_the_limit() {
    let mut world = world(&json!({"backoffLimit": 1, "completions": 1}));
    settle(&mut world, 0);
    let pod = running(&world)[0].clone();
    let born = pod.metadata.creation_timestamp.as_ref().unwrap().0.as_second();
    end(&mut world, &pod, "Failed");
    let waiting = settle(&mut world, born + 1);
    assert!(running(&world).is_empty());
    assert!(waiting.requeue_after.is_some());
    settle(&mut world, born + 11);
    let pod = running(&world)[0].clone();
    end(&mut world, &pod, "Failed");
    settle(&mut world, born + 12);
    assert!(has(&world, "FailureTarget") && has(&world, "Failed"));
    assert_eq!(status(&world)["failed"], 2);
}

#[test]
fn every_index_succeeds_once() {
    let mut world = world(&json!({"completionMode": "Indexed", "parallelism": 2, "completions": 3}));
    settle(&mut world, 100);
    let indexes: Vec<_> = running(&world)
        .iter()
        .map(|pod| pods::index_of(pod).unwrap())
        .collect();
    assert_eq!(indexes, [0, 1]);
    let first = running(&world)[0].clone();
    assert_eq!(first.spec.as_ref().unwrap().hostname.as_deref(), Some("j-0"));
    end(&mut world, &first, "Succeeded");
    settle(&mut world, 200);
    assert_eq!(status(&world)["completedIndexes"], "0");
    for _ in 0..2 {
        let pod = running(&world)[0].clone();
        end(&mut world, &pod, "Succeeded");
        settle(&mut world, 300);
    }
    assert_eq!(status(&world)["completedIndexes"], "0-2");
    assert!(has(&world, "Complete"));
}

#[test]
fn a_suspended_job_has_no_pods_and_those_deleted_are_no_failures() {
    let mut world = world(&json!({"parallelism": 2}));
    settle(&mut world, 100);
    world.change::<Job>("a", "j", |job| job["spec"]["suspend"] = json!(true));
    settle(&mut world, 200);
    assert!(world.all::<Pod>().is_empty());
    assert!(has(&world, "Suspended"));
    assert_eq!(status(&world)["failed"], Value::Null);
    world.change::<Job>("a", "j", |job| job["spec"]["suspend"] = json!(false));
    settle(&mut world, 300);
    assert_eq!(running(&world).len(), 2);
    assert!(!has(&world, "Suspended"));
}

#[test]
fn a_job_beyond_its_deadline_fails_and_its_pods_go() {
    let mut world = world(&json!({"activeDeadlineSeconds": 30}));
    let plan = settle(&mut world, 100);
    assert_eq!(plan.requeue_after, Some(time::seconds(30)));
    settle(&mut world, 130);
    assert!(has(&world, "Failed"));
    assert!(world.all::<Pod>().is_empty());
}

#[test]
fn a_finished_job_goes_when_its_time_to_live_is_over() {
    let mut world = world(&json!({"completions": 1, "ttlSecondsAfterFinished": 60}));
    settle(&mut world, 100);
    let pod = running(&world)[0].clone();
    end(&mut world, &pod, "Succeeded");
    let waiting = settle(&mut world, 200);
    assert_eq!(waiting.requeue_after, Some(time::seconds(60)));
    let plan = plan(&look(&world), at(260));
    assert_eq!(plan.deletions()[0].name, "j");
}
