//! Makes pods and views for the tests of this crate.

use crate::model::PodModel;
use crate::view::{Exit, Instance, Sandbox, State, View};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Second `n` of the tests' time line.
pub fn at(n: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + n).unwrap()
}

/// A pod with this `spec`.
pub fn pod(spec: Value) -> PodModel {
    pod_with(json!({}), spec, json!({}))
}

/// A pod with extra metadata and a status.
pub fn pod_with(meta: Value, spec: Value, status: Value) -> PodModel {
    let mut metadata = json!({"name": "web", "namespace": "default", "uid": "u1", "generation": 1});
    for (key, value) in meta.as_object().unwrap() {
        metadata[key] = value.clone();
    }
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    PodModel::new(serde_json::from_value(object).unwrap())
}

/// One container `a` without anything special.
pub fn simple() -> Value {
    json!({"containers": [{"name": "a", "image": "img:1"}]})
}

/// A ready sandbox.
pub fn sandbox(attempt: u32) -> Sandbox {
    let ips = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        ready: true,
        created: at(0),
        ips,
    }
}

/// An instance of `name` in sandbox `s0`.
pub fn instance(name: &str, attempt: u32, state: State) -> Instance {
    Instance {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        sandbox: "s0".into(),
        created: at(i64::from(attempt)),
        state,
        image: "img:1".into(),
        image_id: "sha256:1".into(),
        hash: None,
        backoff: if attempt == 0 { 0 } else { 10 },
    }
}

/// Running since second `n`.
pub fn running(n: i64) -> State {
    State::Running { started: at(n) }
}

/// Exited at second `n` with `code`.
pub fn exited(n: i64, code: i32) -> State {
    let reason = if code == 0 { "Completed" } else { "Error" };
    let exit = Exit {
        started: Some(at(0)),
        finished: at(n),
        code,
        reason: reason.into(),
        message: String::new(),
    };
    State::Exited(exit)
}

/// A ready sandbox with these containers.
pub fn view(containers: Vec<Instance>) -> View {
    View {
        sandboxes: vec![sandbox(0)],
        containers,
    }
    .sorted()
}
