//! A cron job and its jobs through some minutes.

use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn at(text: &str) -> Timestamp {
    format!("2026-01-31T{text}Z").parse().unwrap()
}

fn world(spec: &Value) -> World {
    let mut world = World::default();
    let mut whole = json!({"schedule": "*/10 * * * *",
        "jobTemplate": {"metadata": {"labels": {"l": "1"}}, "spec": {"template": {"spec": {"containers": []}}}}});
    for (name, value) in spec.as_object().unwrap() {
        whole[name] = value.clone();
    }
    world.put::<CronJob>(json!({
        "metadata": {"name": "c", "namespace": "a", "creationTimestamp": "2026-01-31T10:01:00Z"}, "spec": whole,
    }));
    world
}

fn step(world: &mut World, now: &str) -> Plan {
    let observed = Observed {
        cron_job: world.get("a", "c").unwrap(),
        jobs: world.all(),
        zone: Some(TimeZone::UTC),
    };
    let plan = plan(&observed, at(now));
    world.apply(&plan);
    plan
}

/// Steps until nothing is left to do.
fn settle(world: &mut World, now: &str) -> Plan {
    for _ in 0..5 {
        let plan = step(world, now);
        if plan.is_empty() {
            return plan;
        }
    }
    panic!("does not settle");
}

fn finish(world: &mut World, name: &str, type_: &str, ended: &str) {
    world.change::<Job>("a", name, |job| {
        job["status"] = json!({"startTime": at(ended).to_string(), "completionTime": at(ended).to_string(),
            "conditions": [{"type": type_, "status": "True"}]});
    });
}

fn names(world: &World) -> Vec<String> {
    world
        .all::<Job>()
        .iter()
        .map(|job| job.metadata.name.clone().unwrap())
        .collect()
}

fn status(world: &World) -> CronJobStatus {
    world
        .get::<CronJob>("a", "c")
        .unwrap()
        .status
        .clone()
        .unwrap_or_default()
}

#[test]
fn a_job_starts_when_its_time_has_come_and_only_once() {
    let mut world = world(&json!({}));
    let early = settle(&mut world, "10:05:00");
    assert_eq!(early.requeue_after, Some(Duration::from_secs(300)));
    settle(&mut world, "10:10:02");
    assert_eq!(names(&world).len(), 1);
    let job = &world.all::<Job>()[0];
    assert_eq!(
        job.metadata.annotations.as_ref().unwrap()[SCHEDULED],
        "2026-01-31T10:10:00Z"
    );
    assert_eq!(job.metadata.labels.as_ref().unwrap()["l"], "1");
    assert_eq!(status(&world).active.unwrap().len(), 1);
    assert_eq!(status(&world).last_schedule_time.unwrap().0, at("10:10:00"));
    settle(&mut world, "10:10:30");
    assert_eq!(names(&world).len(), 1);
}

#[test]
fn after_a_pause_only_the_last_missed_time_is_made_up_for() {
    let mut world = world(&json!({}));
    settle(&mut world, "11:05:00");
    assert_eq!(names(&world), [format!("c-{}", at("11:00:00").as_second() / 60)]);
}

#[test]
fn a_suspended_one_starts_nothing_and_a_late_one_is_left_out() {
    let mut suspended = world(&json!({"suspend": true}));
    settle(&mut suspended, "11:00:00");
    assert!(names(&suspended).is_empty());
    let mut late = world(&json!({"startingDeadlineSeconds": 10}));
    settle(&mut late, "10:10:30");
    assert!(names(&late).is_empty());
}

#[test]
fn concurrency_is_allowed_forbidden_or_replaces() {
    for (policy, left) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
        let mut world = world(&json!({"concurrencyPolicy": policy}));
        settle(&mut world, "10:10:00");
        step(&mut world, "10:20:00");
        assert_eq!(names(&world).len(), left, "{policy}");
        let newest = format!("c-{}", at("10:20:00").as_second() / 60);
        assert_eq!(names(&world).contains(&newest), policy != "Forbid", "{policy}");
    }
}

#[test]
fn finished_jobs_beyond_the_history_go_the_oldest_first() {
    let mut world = world(&json!({"successfulJobsHistoryLimit": 1}));
    for time in ["10:10:00", "10:20:00"] {
        settle(&mut world, time);
        let name = format!("c-{}", at(time).as_second() / 60);
        finish(&mut world, &name, "Complete", time);
    }
    settle(&mut world, "10:21:00");
    assert_eq!(names(&world), [format!("c-{}", at("10:20:00").as_second() / 60)]);
    assert_eq!(status(&world).last_successful_time.unwrap().0, at("10:20:00"));
    assert!(status(&world).active.is_none());
}
