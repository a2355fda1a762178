//! What the runner and the executor take care of, against a stand-in for the API server.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::Full;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::client::Body;
use kube::runtime::watcher::Event;
use machinery_client::{Cache, WriteBacks, in_process};
use machinery_plan::{Action, Key, Plan};
use machinery_reconcile::{Attempt, Controller, Executor, Failure, FailureKind, Queue, Runner};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

type Answer = (u16, Value);

/// An executor whose requests `answer` is asked about.
fn executor(
    caches: WriteBacks,
    answer: impl Fn(&Method, &str) -> Answer + Send + Sync + 'static,
) -> Executor {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (code, body) = answer(request.method(), request.uri().path());
        let body = Full::new(bytes::Bytes::from(body.to_string()));
        let response = Response::builder()
            .status(code)
            .body(body)
            .expect("a status and a body");
        std::future::ready(Ok::<_, Infallible>(response))
    });
    Executor::new(in_process(service), caches).0
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    (
        code,
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

fn map(name: &str, version: u64) -> ConfigMap {
    let text = |text: &str| Some(text.to_owned());
    let metadata = ObjectMeta {
        namespace: text("a"),
        name: text(name),
        uid: text(name),
        resource_version: Some(version.to_string()),
        ..ObjectMeta::default()
    };
    ConfigMap {
        metadata,
        ..ConfigMap::default()
    }
}

fn synced() -> Cache<ConfigMap> {
    let cache = Cache::default();
    cache.observe(Event::Init);
    cache.observe(Event::InitDone);
    cache
}

fn write_back(cache: &Cache<ConfigMap>) -> WriteBacks {
    let mut all = WriteBacks::default();
    all.add(cache);
    all
}

#[tokio::test]
async fn an_own_write_is_in_the_cache_when_the_plan_has_been_carried_out() {
    let cache = synced();
    let executor = executor(write_back(&cache), |_, _| {
        (201, serde_json::to_value(map("x", 7)).unwrap())
    });
    let mut plan = Plan::nothing();
    plan.then(Action::create(&map("x", 0)));
    executor.carry_out(&plan).await.unwrap();
    assert!(cache.get(&Key::new("a", "x")).is_some());
}

#[tokio::test]
async fn an_object_that_is_gone_already_counts_as_deleted() {
    let cache = synced();
    cache.observe(Event::Apply(map("x", 3)));
    let executor = executor(write_back(&cache), |_, _| status(404, "NotFound", "not found"));
    let mut plan = Plan::nothing();
    plan.then(Action::delete(&map("x", 3)));
    executor.carry_out(&plan).await.unwrap();
    assert!(cache.is_empty());
}

#[tokio::test]
async fn a_stage_that_cannot_succeed_costs_one_request_and_what_follows_is_left_out() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let executor = executor(WriteBacks::default(), move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        status(403, "Forbidden", "exceeded quota")
    });
    let mut plan = Plan::nothing();
    plan.together((0..50).map(|number| Action::create(&map(&format!("x{number}"), 0))));
    plan.then(Action::delete(&map("y", 1)));
    let failure = executor.carry_out(&plan).await.unwrap_err();
    assert_eq!(
        (failure.kind, count.load(Ordering::Relaxed)),
        (FailureKind::Refused, 1)
    );
    assert_eq!(
        failure.to_string(),
        "create ConfigMap a/x0 failed: exceeded quota"
    );
}

#[tokio::test]
async fn a_plan_that_is_out_of_date_is_told_from_other_refusals() {
    let executor = executor(WriteBacks::default(), |method, _| match *method {
        Method::POST => status(
            403,
            "Forbidden",
            "unable to create: forbidden because it is being terminated",
        ),
        _ => status(409, "Conflict", "the object has been modified"),
    });
    let kind = async |action: Action| {
        let mut plan = Plan::nothing();
        plan.then(action);
        executor.carry_out(&plan).await.unwrap_err().kind
    };
    assert_eq!(kind(Action::update(&map("x", 1))).await, FailureKind::Stale);
    assert_eq!(
        kind(Action::create(&map("x", 0))).await,
        FailureKind::NamespaceTerminating
    );
}

/// Deletes what its key names and notes when.
struct Deleter {
    planned: Arc<Mutex<Vec<(String, Instant, u32)>>>,
}

impl Controller for Deleter {
    type Key = String;
    type Observed = ();

    fn name(&self) -> &'static str {
        "deleter"
    }

    async fn observe(&self, _: &String) -> Result<(), Failure> {
        Ok(())
    }

    fn plan(&self, key: &String, (): (), attempt: &Attempt, _: Timestamp) -> Plan {
        self.planned
            .lock()
            .expect("no planner panics while it holds the lock")
            .push((key.clone(), Instant::now(), attempt.failures));
        assert!(key != "panics" || attempt.failures > 0, "a planner with a bug");
        let mut plan = Plan::nothing();
        plan.then(Action::delete(&map(key, 1)));
        plan
    }
}

/// Runs a deleter for `time` on the given keys; the answer is asked for each deletion.
async fn deleted(
    keys: &[&str],
    time: Duration,
    synced: impl Future<Output = ()>,
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> Vec<(String, Instant, u32)> {
    let planned = Arc::new(Mutex::new(Vec::new()));
    let executor = executor(WriteBacks::default(), move |_, path| answer(path));
    let queue = Queue::default();
    let runner = Runner::with_queue(
        Deleter {
            planned: Arc::clone(&planned),
        },
        &executor,
        queue.clone(),
    );
    keys.iter().for_each(|key| queue.add((*key).to_owned()));
    runner.run(synced, tokio::time::sleep(time)).await;
    std::mem::take(&mut *planned.lock().expect("no planner panics while it holds the lock"))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_planned_before_every_source_has_been_seen() {
    let never = Notify::new();
    let planned = deleted(&["x"], Duration::from_secs(60), never.notified(), |_| {
        (200, json!({"kind": "Status"}))
    })
    .await;
    assert!(planned.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failing_key_waits_longer_each_time_and_holds_up_no_other() {
    let planned = deleted(
        &["bad", "good"],
        Duration::from_secs(10),
        std::future::ready(()),
        |path| {
            if path.ends_with("bad") {
                status(500, "InternalError", "no")
            } else {
                (200, json!({"kind": "Status"}))
            }
        },
    )
    .await;
    assert_eq!(planned.iter().filter(|(key, ..)| key == "good").count(), 1);
    let bad: Vec<_> = planned.iter().filter(|(key, ..)| key == "bad").collect();
    assert!(
        (5..40).contains(&bad.len()),
        "{} attempts in ten seconds",
        bad.len()
    );
    let last = bad[bad.len() - 1].1 - bad[bad.len() - 2].1;
    assert!(last > Duration::from_secs(1), "the last wait was {last:?}");
    assert_eq!(bad[2].2, 2, "the planner is told how often it failed");
}

#[tokio::test(start_paused = true)]
async fn a_planner_that_panics_is_tried_again_and_the_runner_lives_on() {
    let done = (200, json!({"kind": "Status"}));
    let planned = deleted(
        &["panics"],
        Duration::from_secs(5),
        std::future::ready(()),
        move |_| done.clone(),
    )
    .await;
    assert_eq!(planned.len(), 2);
}
