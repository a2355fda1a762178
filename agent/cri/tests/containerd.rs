//! The executor on a real containerd: a pod from its sandbox to its end. Needs root, containerd, runc, busybox.
#![allow(clippy::unwrap_used)]

mod support;

use agent_cri::cgroups::Cgroups;
use agent_cri::dirs::Dirs;
use agent_cri::view::Viewer;
use agent_cri::{Executor, Recorder, Runtime, Settings, StartInput};
use agent_pods::fields::Facts;
use agent_pods::model::PodModel;
use agent_pods::probe::Found;
use agent_pods::view::{Exit, View};
use agent_pods::volumes::Sources;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use support::{Containerd, IMAGE};
use tokio::sync::mpsc;

/// Longest anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Reasons(Mutex<Vec<&'static str>>);

impl Recorder for Reasons {
    fn normal(&self, _: &PodModel, _: Option<&str>, reason: &'static str, _: String) {
        self.0.lock().unwrap().push(reason);
    }

    fn warning(&self, _: &PodModel, _: Option<&str>, reason: &'static str, message: String) {
        panic!("{reason}: {message}");
    }
}

struct Node {
    containerd: Containerd,
    runtime: Runtime,
    executor: Executor,
    hints: mpsc::Receiver<()>,
}

impl Node {
    fn start() -> Self {
        let containerd = Containerd::start();
        let runtime = Runtime::new(&containerd.socket());
        let cgroups = Cgroups::open(&containerd.cgroup).unwrap();
        let dirs = Dirs::new(&containerd.dir.path().join("agent"));
        let executor = Executor::new(runtime.clone(), dirs, cgroups, Settings::default());
        let (sender, hints) = mpsc::channel(1);
        tokio::spawn(agent_cri::events::watch(runtime.clone(), sender));
        Self {
            containerd,
            runtime,
            executor,
            hints,
        }
    }

    async fn start_pod(&self, pod: &PodModel, sources: &Sources) -> View {
        let sandbox = self
            .executor
            .create_sandbox(pod, 0, &BTreeMap::new())
            .await
            .unwrap();
        let facts = Facts::default();
        self.executor.set_up_volumes(pod, sources, &facts).unwrap();
        let input = StartInput {
            member: &pod.members[0],
            attempt: 0,
            backoff: 0,
            sandbox: &sandbox,
            sandbox_attempt: 0,
            target: None,
            sources,
            facts: &facts,
        };
        let events = Reasons::default();
        self.executor.start(pod, &input, &events).await.unwrap();
        assert_eq!(*events.0.lock().unwrap(), ["Pulled", "Created", "Started"]);
        Viewer::default().view(&self.runtime, pod.uid()).await.unwrap()
    }

    /// The end of the pod's container, looked for at each hint of the runtime.
    async fn end(&mut self, pod: &PodModel) -> Exit {
        let mut viewer = Viewer::default();
        let ended = async {
            loop {
                let view = viewer.view(&self.runtime, pod.uid()).await.unwrap();
                if let Some(exit) = view.containers[0].exit() {
                    return exit.clone();
                }
                self.hints.recv().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, ended)
            .await
            .expect("a hint comes and the container has ended")
    }

    async fn remove(&self, pod: &PodModel) {
        let view = Viewer::default().view(&self.runtime, pod.uid()).await.unwrap();
        for sandbox in &view.sandboxes {
            self.runtime.stop_sandbox(&sandbox.id).await.unwrap();
            self.runtime.remove_sandbox(&sandbox.id).await.unwrap();
        }
        self.executor.clean_up(pod).await.unwrap();
    }
}

fn pod(uid: &str, command: &str, extra: Value) -> PodModel {
    let mut container = json!({"name": "a", "image": IMAGE, "command": ["sh", "-c", command]});
    for (key, value) in extra.as_object().unwrap() {
        container[key] = value.clone();
    }
    // The node's network: pod networks are another crate's business.
    let spec = json!({"hostNetwork": true, "containers": [container],
        "volumes": [{"name": "cm", "configMap": {"name": "cm"}}]});
    let object = json!({"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": spec});
    PodModel::new(serde_json::from_value(object).unwrap())
}

fn config_map(value: &str) -> Sources {
    let map = serde_json::from_value(json!({"data": {"k": value}})).unwrap();
    Sources {
        config_maps: [("cm".to_owned(), map)].into(),
        ..Sources::default()
    }
}

#[tokio::test]
async fn a_container_sees_its_environment_and_volumes_and_its_end_is_told() {
    let mut node = Node::start();
    // It lives long enough for the subscription to stand: what happens before is found by the agent's relist.
    let command = "echo $WHO; cat /cm/k; echo -n bye > /dev/termination-log; sleep 3; exit 5";
    let extra = json!({
        "env": [{"name": "WHO", "value": "me"}],
        "volumeMounts": [{"name": "cm", "mountPath": "/cm"}]});
    let pod = pod("u-end", command, extra);
    node.start_pod(&pod, &config_map("one")).await;
    let exit = node.end(&pod).await;
    assert_eq!(
        (exit.code, exit.message.as_str(), exit.reason.as_str()),
        (5, "bye", "Error")
    );
    let log = node
        .executor
        .dirs()
        .pod_logs("default", "u-end", "u-end")
        .join("a/0.log");
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.contains("stdout F me\n") && text.contains("one"), "{text}");
    node.remove(&pod).await;
}

#[tokio::test]
async fn limits_probes_updates_and_the_stop_of_a_running_container() {
    let node = Node::start();
    let extra = json!({
        "volumeMounts": [{"name": "cm", "mountPath": "/cm"}],
        "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}});
    let pod = pod("u-run", "trap 'exit 0' TERM; while :; do sleep 0.1; done", extra);
    let view = node.start_pod(&pod, &config_map("one")).await;
    let id = &view.containers[0].id;
    assert!(view.containers[0].running() && view.ready_sandbox().is_some());
    let probe = |command: Value| {
        serde_json::from_value(json!({"exec": {"command": command}, "timeoutSeconds": 10})).unwrap()
    };
    let check = async |command| {
        agent_cri::probes::check(&node.runtime, id, &pod.members[0], &probe(command), None).await
    };
    assert_eq!(check(json!(["true"])).await, Found::Pass);
    assert!(matches!(check(json!(["false"])).await, Found::Fail(_)));

    assert!(
        node.executor
            .refresh_volumes(&pod, &config_map("two"), &Facts::default())
            .unwrap()
    );
    let seen = node
        .runtime
        .exec_sync(id, vec!["cat".into(), "/cm/k".into()], 10)
        .await
        .unwrap();
    assert_eq!(seen.stdout, b"two", "a running container sees the new version");

    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder =
        |h: &agent_cri::cgroups::Hierarchy| h.mount.join(&node.containerd.cgroup).join("kubepods/podu-run");
    let hierarchies = agent_cri::cgroups::hierarchies(&table);
    assert!(
        hierarchies.iter().all(|h| folder(h).is_dir()),
        "the pod's cgroup is in every hierarchy"
    );
    node.executor
        .stop(&pod, None, id, 10, None, &Reasons::default())
        .await
        .unwrap();
    let after = Viewer::default().view(&node.runtime, pod.uid()).await.unwrap();
    assert_eq!(
        after.containers[0].exit().map(|e| e.code),
        Some(0),
        "it was asked before it would be killed"
    );
    node.remove(&pod).await;
    assert!(
        !hierarchies.iter().any(|h| folder(h).exists()),
        "and the pod's cgroup is gone from all of them"
    );
    assert!(!node.executor.dirs().pod("u-run").exists());
}
