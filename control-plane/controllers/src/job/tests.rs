//! A job and its pods, driven to the end.

use serde_json::{Value, json};

use super::*;
use crate::pod::is_active;
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

fn exit(world: &mut World, pod: &Pod, code: i32) {
    let name = pod.metadata.name.clone().unwrap();
    world.change::<Pod>("a", &name, |pod| {
        let ended = json!({"exitCode": code, "finishedAt": "1970-01-01T00:00:10Z"});
        pod["status"] = json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": ended}},
        ]});
    });
}

fn of_index(world: &World, index: i32) -> Arc<Pod> {
    let mut running = running(world).into_iter();
    running.find(|pod| pods::index_of(pod) == Some(index)).unwrap()
}

fn rules(rules: &Value) -> Value {
    json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3, "backoffLimit": 6,
        "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": rules}})
}

#[test]
fn an_exit_code_that_is_fatal_fails_the_job_early_and_its_pods_go() {
    let codes = json!({"operator": "In", "values": [42]});
    let mut world = world(&rules(&json!([{"action": "FailJob", "onExitCodes": codes}])));
    settle(&mut world, 100);
    let pod = of_index(&world, 1);
    exit(&mut world, &pod, 42);
    settle(&mut world, 101);
    assert!(has(&world, "FailureTarget") && has(&world, "Failed"));
    let reason = status(&world)["conditions"][0]["reason"].clone();
    assert_eq!(reason, "PodFailurePolicy");
    assert!(running(&world).is_empty());
}

#[test]
fn an_ignored_failure_is_replaced_at_once_and_not_counted() {
    let disrupted = json!([{"type": "DisruptionTarget", "status": "True"}]);
    let mut world = world(&rules(
        &json!([{"action": "Ignore", "onPodConditions": disrupted}]),
    ));
    settle(&mut world, 100);
    let pod = of_index(&world, 0);
    world.change::<Pod>("a", pod.metadata.name.as_deref().unwrap(), |pod| {
        pod["status"] = json!({"phase": "Failed", "conditions": disrupted});
    });
    settle(&mut world, 101);
    assert_eq!(running(&world).len(), 3);
    assert_eq!(status(&world)["failed"], Value::Null);
    assert!(!pods::has_finalizer(
        &world.get("a", pod.metadata.name.as_deref().unwrap()).unwrap()
    ));
}

#[test]
fn each_index_has_its_own_limit_and_the_job_fails_when_all_others_are_done() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2,
        "backoffLimit": 100, "backoffLimitPerIndex": 1});
    let mut world = world(&spec);
    settle(&mut world, 9);
    let pod = of_index(&world, 0);
    exit(&mut world, &pod, 1);
    let waiting = settle(&mut world, 11);
    assert_eq!(
        waiting.requeue_after,
        Some(time::seconds(9)),
        "the index waits, ten seconds from its end"
    );
    assert_eq!(status(&world)["failedIndexes"], "");
    settle(&mut world, 21);
    let again = of_index(&world, 0);
    assert_eq!(
        again.metadata.annotations.as_ref().unwrap()[failures::INDEX_FAILURES],
        "1"
    );
    exit(&mut world, &again, 1);
    settle(&mut world, 22);
    assert_eq!(status(&world)["failedIndexes"], "0");
    assert_eq!(running(&world).len(), 1, "the other index goes on");
    let pod = of_index(&world, 1);
    exit(&mut world, &pod, 0);
    settle(&mut world, 30);
    assert!(has(&world, "Failed"));
    assert_eq!(
        (&status(&world)["failed"], &status(&world)["completedIndexes"]),
        (&json!(2), &json!("1"))
    );
    assert!(world.all::<Pod>().iter().all(|pod| !pods::has_finalizer(pod)));
}

#[test]
fn too_many_failed_indexes_end_the_job() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3,
        "backoffLimit": 100, "backoffLimitPerIndex": 0, "maxFailedIndexes": 0});
    let mut world = world(&spec);
    settle(&mut world, 9);
    let pod = of_index(&world, 2);
    exit(&mut world, &pod, 1);
    settle(&mut world, 10);
    assert_eq!(
        status(&world)["conditions"][0]["reason"],
        "MaxFailedIndexesExceeded"
    );
    assert!(has(&world, "Failed") && running(&world).is_empty());
}

#[test]
fn a_success_policy_ends_the_job_while_indexes_still_run() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]}});
    let mut world = world(&spec);
    settle(&mut world, 9);
    let pod = of_index(&world, 0);
    exit(&mut world, &pod, 0);
    settle(&mut world, 10);
    assert!(!has(&world, "SuccessCriteriaMet"));
    let pod = of_index(&world, 2);
    exit(&mut world, &pod, 0);
    settle(&mut world, 11);
    assert_eq!(status(&world)["conditions"][0]["reason"], "SuccessPolicy");
    assert!(has(&world, "Complete") && running(&world).is_empty());
}

#[test]
fn pods_of_a_job_that_is_gone_may_go() {
    let mut world = world(&json!({"parallelism": 2}));
    settle(&mut world, 100);
    let orphans = world.all::<Pod>();
    world.apply(&release(&orphans));
    assert!(world.all::<Pod>().iter().all(|pod| !pods::has_finalizer(pod)));
    assert!(release(&world.all()).is_empty());
}

#[test]
fn a_pod_that_lost_its_owner_is_taken_back_and_one_that_lost_its_labels_is_let_go() {
    let mut world = world(&json!({"parallelism": 1}));
    settle(&mut world, 10);
    let name = running(&world)[0].metadata.name.clone().unwrap();
    world.change::<Pod>("a", &name, |pod| pod["metadata"]["ownerReferences"] = json!([]));
    settle(&mut world, 11);
    let pods = world.all::<Pod>();
    assert_eq!(pods.len(), 1, "none was made in its place");
    assert!(crate::ownership::controller_of(&pods[0].metadata).is_some());
    world.change::<Pod>("a", &name, |pod| pod["metadata"]["labels"] = json!({}));
    settle(&mut world, 12);
    let owned = |pod: &Arc<Pod>| crate::ownership::controller_of(&pod.metadata).is_some();
    assert_eq!(world.all::<Pod>().iter().filter(|pod| owned(pod)).count(), 1);
    assert_eq!(world.all::<Pod>().len(), 2);
}
