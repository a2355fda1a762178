//! A pod's worker between a runtime and an API server that are not real: what it does to the one, what it tells the
//! other.
#![allow(clippy::unwrap_used)]

mod fake;

use agent::objects::Objects;
use agent::recorder::Events;
use agent::worker::{Shared, Told, Worker};
use agent_cri::cgroups::Cgroups;
use agent_cri::dirs::Dirs;
use agent_cri::{Executor, Runtime, Settings};
use agent_pods::fields::Facts;
use agent_pods::status::Host;
use fake::FakeNetwork;
use fake::api::FakeApi;
use fake::runtime::FakeRuntime;
use machinery_client::Cache;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest any of these takes; the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(20);

struct Node {
    state: tempfile::TempDir,
    runtime: FakeRuntime,
    network: Arc<FakeNetwork>,
    api: FakeApi,
    told: watch::Sender<Told>,
}

impl Node {
    async fn new(spec: Value) -> Self {
        let metadata = json!({"name": "web", "namespace": "default", "uid": "u1"});
        let api =
            FakeApi::new(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
        let state = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::default();
        runtime.serve(&state.path().join("cri.sock"));
        let (told, _) = watch::channel(Told::default());
        Self {
            state,
            runtime,
            network: Arc::default(),
            api,
            told,
        }
    }

    /// A worker for the pod as the API has it now. What it is told follows the API.
    fn worker(&self) -> JoinHandle<()> {
        let runtime = Runtime::new(&self.state.path().join("cri.sock"));
        let cgroups = Cgroups::new(Vec::new(), "test");
        let executor = Executor::new(
            runtime,
            Dirs::new(self.state.path()),
            cgroups,
            Settings::default(),
        );
        let client = self.api.client();
        let shared = Shared {
            executor,
            client: client.clone(),
            network: Arc::clone(&self.network) as Arc<dyn agent::network::Network>,
            objects: Objects::new(client, Cache::default()),
            events: Events::new().0,
            host: Host {
                ips: vec!["10.89.0.11".parse().unwrap()],
                runtime: "fake".into(),
            },
            node: Facts::default(),
            user_namespaces: false,
        };
        self.tell();
        let pod = self.told.borrow().pod.clone().unwrap();
        let worker = Worker::new(Arc::new(shared), self.told.subscribe(), &pod, false);
        tokio::spawn(worker.run())
    }

    /// Tells the worker what the API has, as the node's watch does.
    fn tell(&self) {
        let pod = self
            .api
            .pod()
            .borrow()
            .clone()
            .map(|p| Arc::new(serde_json::from_value(p).unwrap()));
        self.told.send_modify(|t| t.pod = pod);
    }

    /// Tells the worker that something happened in the runtime.
    fn look(&self) {
        self.told.send_modify(|t| t.looks += 1);
    }

    /// The pod once `test` holds for it.
    async fn until(&self, test: impl Fn(&Value) -> bool) -> Value {
        let mut pod = self.api.pod();
        let found = tokio::time::timeout(DEADLINE, pod.wait_for(|p| p.as_ref().is_some_and(&test))).await;
        match found {
            Ok(pod) => pod.unwrap().clone().unwrap(),
            Err(_) => panic!("not within {DEADLINE:?}: {:?}", self.api.pod().borrow()),
        }
    }

    async fn gone(&self) {
        let mut pod = self.api.pod();
        tokio::time::timeout(DEADLINE, pod.wait_for(Option::is_none))
            .await
            .expect("the pod is deleted")
            .unwrap();
    }
}

fn simple() -> Value {
    json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a", "image": "img:1"}]})
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
}

#[tokio::test]
async fn a_pod_is_started_reported_and_removed_without_a_trace() {
    let node = Node::new(simple()).await;
    let worker = node.worker();
    let pod = node.until(ready).await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.244.0.9");
    assert_eq!(
        node.runtime.calls(),
        ["sandbox 0", "pull img:1", "create a 0", "start"]
    );
    assert_eq!(*node.network.0.lock().unwrap(), ["allocate u1", "attach u1"]);

    node.api.delete(7);
    node.tell();
    node.gone().await;
    node.tell();
    tokio::time::timeout(DEADLINE, worker)
        .await
        .expect("the worker ends")
        .unwrap();
    let calls = node.runtime.calls();
    assert_eq!(calls[4..], ["stop 7", "stop sandbox", "remove", "remove sandbox"]);
    assert_eq!(node.network.0.lock().unwrap().last().unwrap(), "release u1");
    assert!(!node.state.path().join("pods/u1").exists());
    assert_eq!(
        std::fs::read_dir(node.state.path().join("logs/pods"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_new_worker_adopts_what_runs_and_starts_nothing_again() {
    let node = Node::new(simple()).await;
    let first = node.worker();
    node.until(ready).await;
    let before = node.runtime.calls();
    first.abort();
    let version = node.api.pod().borrow().clone().unwrap()["metadata"]["resourceVersion"].clone();
    node.worker();
    node.api.delete(3);
    node.tell();
    node.gone().await;
    assert_eq!(
        node.runtime.calls()[before.len()],
        "stop 3",
        "the adopted container is the one that is stopped"
    );
    assert_ne!(version, Value::Null);
}

#[tokio::test]
async fn a_sandbox_that_fails_is_tried_again_under_the_next_number() {
    let node = Node::new(simple()).await;
    node.runtime.state().failing_sandboxes = 1;
    node.worker();
    node.until(ready).await;
    assert_eq!(node.runtime.calls()[..2], ["sandbox 0", "sandbox 1"]);
}

#[tokio::test]
async fn a_container_that_ends_is_restarted_at_once_and_then_backs_off() {
    let node = Node::new(simple()).await;
    node.worker();
    node.until(ready).await;
    node.runtime.exit_all(1);
    node.look();
    let again = node
        .until(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1 && ready(p))
        .await;
    assert_eq!(
        again["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        1
    );
    node.runtime.exit_all(2);
    node.look();
    let looping = node.until(|p| waiting(p) == "CrashLoopBackOff").await;
    assert_eq!(looping["status"]["phase"], "Running");
    assert!(!ready(&looping));
}

#[tokio::test]
async fn a_pod_that_never_restarts_succeeds_and_its_sandbox_is_stopped() {
    let mut spec = simple();
    spec["restartPolicy"] = json!("Never");
    let node = Node::new(spec).await;
    node.worker();
    node.until(ready).await;
    node.runtime.exit_all(0);
    node.look();
    let done = node.until(|p| p["status"]["phase"] == "Succeeded").await;
    assert_eq!(
        done["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(
        done["status"]["podIP"], "10.244.0.9",
        "a finished pod keeps its address in the status"
    );
}

#[tokio::test]
async fn an_image_that_is_missing_is_the_waiting_reason() {
    let spec = json!({"containers": [{"name": "a", "image": "none:1"}]});
    let node = Node::new(spec).await;
    node.worker();
    node.until(|p| waiting(p) == "ErrImagePull").await;
    node.until(|p| waiting(p) == "ImagePullBackOff").await;
    let spec = json!({"containers": [{"name": "a", "image": "here:1", "imagePullPolicy": "Never"}]});
    let never = Node::new(spec).await;
    never.worker();
    never.until(|p| waiting(p) == "ErrImageNeverPull").await;
}

#[tokio::test]
async fn while_the_api_is_away_the_pod_goes_on_and_its_status_comes_later() {
    let node = Node::new(simple()).await;
    node.api.set_down(true);
    node.worker();
    let started = async {
        while !node.runtime.calls().contains(&"start".to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, started)
        .await
        .expect("the container starts without the API");
    node.api.set_down(false);
    node.until(ready).await;
}

#[tokio::test]
async fn a_deletion_interrupts_the_wait_for_a_sandbox() {
    let node = Node::new(simple()).await;
    node.runtime.state().failing_sandboxes = 100;
    let worker = node.worker();
    node.until(|p| p["status"]["phase"] == "Pending").await;
    node.api.delete(30);
    node.tell();
    node.gone().await;
    node.tell();
    tokio::time::timeout(DEADLINE, worker)
        .await
        .expect("the worker ends")
        .unwrap();
}

#[tokio::test]
async fn a_user_namespace_is_refused_where_the_runtime_would_ignore_the_wish() {
    let mut spec = simple();
    spec["hostUsers"] = json!(false);
    let node = Node::new(spec).await;
    node.worker();
    node.until(|p| p["status"]["phase"] == "Pending").await;
    assert!(!node.runtime.calls().iter().any(|c| c.starts_with("sandbox")));
}
