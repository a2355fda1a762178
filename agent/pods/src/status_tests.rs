use super::*;
use crate::memory::Memory;
use crate::probe::{Outcome, Outcomes};
use crate::testing::*;
use crate::view::View;
use k8s_openapi::api::core::v1::PodCondition;
use serde_json::{Value, json};

fn status_of(pod: &PodModel, view: &View, memory: &Memory, now: i64) -> PodStatus {
    let probes = Outcomes::default();
    let host = Host {
        ips: vec!["10.89.0.10".parse().unwrap()],
        runtime: "containerd".into(),
    };
    status(
        &Observed {
            pod,
            view,
            memory,
            probes: &probes,
            now: at(now),
        },
        &host,
    )
}

fn of(spec: Value, view: &View, now: i64) -> PodStatus {
    status_of(&pod(spec), view, &Memory::default(), now)
}

fn phase_of(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap()
}

/// Conditions as `Type=Status` or `Type=Status(Reason)`.
fn conditions_of(status: &PodStatus) -> Vec<String> {
    let print = |c: &PodCondition| match &c.reason {
        Some(reason) => format!("{}={}({reason})", c.type_, c.status),
        None => format!("{}={}", c.type_, c.status),
    };
    status.conditions.iter().flatten().map(print).collect()
}

fn state_of(status: &PodStatus, n: usize) -> Value {
    serde_json::to_value(&status.container_statuses.as_ref().unwrap()[n].state).unwrap()
}

#[test]
fn a_new_pod_is_pending_and_creating_its_container() {
    let status = of(simple(), &View::default(), 0);
    assert_eq!(phase_of(&status), "Pending");
    assert_eq!(
        state_of(&status, 0),
        json!({"waiting": {"reason": "ContainerCreating"}})
    );
    let expected = [
        "PodReadyToStartContainers=False",
        "Initialized=True",
        "Ready=False(ContainersNotReady)",
        "ContainersReady=False(ContainersNotReady)",
        "PodScheduled=True",
    ];
    assert_eq!(conditions_of(&status), expected);
}

#[test]
fn a_running_pod_is_ready_with_addresses_and_identifiers() {
    let status = of(simple(), &view(vec![instance("a", 0, running(2))]), 5);
    assert_eq!(phase_of(&status), "Running");
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.5"));
    assert_eq!(status.pod_ips.as_ref().unwrap().len(), 2);
    assert_eq!(status.host_ip.as_deref(), Some("10.89.0.10"));
    assert!(conditions_of(&status).contains(&"Ready=True".to_owned()));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.container_id.as_deref(), Some("containerd://a0"));
    assert_eq!(
        (container.ready, container.started, container.restart_count),
        (true, Some(true), 0)
    );
    assert_eq!(
        state_of(&status, 0),
        json!({"running": {"startedAt": "2023-11-14T22:13:22Z"}})
    );
}

#[test]
fn a_container_in_a_crash_loop_waits_and_shows_its_last_end() {
    let mut run = instance("a", 2, exited(100, 1));
    run.backoff = 80;
    let status = of(simple(), &view(vec![run]), 110);
    assert_eq!(phase_of(&status), "Running");
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.restart_count, 2);
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    let expected = "back-off 1m20s restarting failed container=a pod=web_default(u1)";
    assert_eq!(waiting.message.as_deref(), Some(expected));
    assert_eq!(
        container
            .last_state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        1
    );
}

#[test]
fn a_restarted_container_shows_its_previous_run() {
    let view = view(vec![instance("a", 1, running(9)), instance("a", 0, exited(5, 7))]);
    let status = of(simple(), &view, 10);
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        container
            .last_state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        7
    );
    assert_eq!(container.restart_count, 1);
}

#[test]
fn an_image_that_cannot_be_pulled_is_the_waiting_reason() {
    let mut memory = Memory::default();
    memory.failed("a", "ErrImagePull", "not found".into(), at(0));
    let early = status_of(&pod(simple()), &view(vec![]), &memory, 1);
    assert_eq!(
        state_of(&early, 0),
        json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    );
    let late = status_of(&pod(simple()), &view(vec![]), &memory, 3);
    assert_eq!(state_of(&late, 0)["waiting"]["reason"], "ImagePullBackOff");
}

#[test]
fn finished_pods_succeed_or_fail_by_their_exit_codes() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
    let both = |a, b| {
        view(vec![
            instance("a", 0, exited(5, a)),
            instance("b", 0, exited(6, b)),
        ])
    };
    let good = of(spec.clone(), &both(0, 0), 7);
    assert_eq!(phase_of(&good), "Succeeded");
    assert!(conditions_of(&good).contains(&"Ready=False(PodCompleted)".to_owned()));
    assert!(conditions_of(&good).contains(&"Initialized=True(PodCompleted)".to_owned()));
    let bad = of(spec.clone(), &both(0, 2), 7);
    assert_eq!(phase_of(&bad), "Failed");
    assert!(conditions_of(&bad).contains(&"Ready=False(PodFailed)".to_owned()));
    let half = view(vec![instance("a", 0, exited(5, 2)), instance("b", 0, running(1))]);
    assert_eq!(phase_of(&of(spec, &half, 7)), "Running");
}

#[test]
fn under_on_failure_a_failed_container_keeps_the_pod_running() {
    let spec = json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}]});
    assert_eq!(
        phase_of(&of(spec.clone(), &view(vec![instance("a", 0, exited(5, 1))]), 6)),
        "Running"
    );
    assert_eq!(
        phase_of(&of(spec, &view(vec![instance("a", 0, exited(5, 0))]), 6)),
        "Succeeded"
    );
}

#[test]
fn while_init_containers_run_the_pod_is_pending_and_its_containers_initialize() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let status = of(spec.clone(), &view(vec![instance("i", 0, running(0))]), 1);
    assert_eq!(phase_of(&status), "Pending");
    assert_eq!(state_of(&status, 0)["waiting"]["reason"], "PodInitializing");
    let initialized = status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_ == "Initialized")
        .unwrap();
    assert_eq!(
        initialized.message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
    let done = of(
        spec,
        &view(vec![instance("i", 0, exited(1, 0)), instance("a", 0, running(2))]),
        3,
    );
    assert_eq!(phase_of(&done), "Running");
    assert!(done.init_container_statuses.as_ref().unwrap()[0].ready);
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    assert_eq!(
        phase_of(&of(spec, &view(vec![instance("i", 0, exited(1, 1))]), 2)),
        "Failed"
    );
}

#[test]
fn readiness_follows_the_probe_and_the_gates() {
    let spec = json!({"readinessGates": [{"conditionType": "x/y"}],
        "containers": [{"name": "a", "readinessProbe": {"exec": {}}}]});
    let view = view(vec![instance("a", 0, running(0))]);
    let pod = pod(spec);
    let memory = Memory::default();
    let unready = status_of(&pod, &view, &memory, 1);
    assert!(conditions_of(&unready).contains(&"Ready=False(ContainersNotReady)".to_owned()));
    let mut probes = Outcomes::default();
    probes.set(
        "a0",
        Outcome {
            started: true,
            ready: true,
            failed: None,
        },
    );
    let got = status(
        &Observed {
            pod: &pod,
            view: &view,
            memory: &memory,
            probes: &probes,
            now: at(1),
        },
        &Host::default(),
    );
    assert!(conditions_of(&got).contains(&"ContainersReady=True".to_owned()));
    assert!(conditions_of(&got).contains(&"Ready=False(ReadinessGatesNotReady)".to_owned()));
}

#[test]
fn conditions_keep_their_transition_time_and_foreign_ones_stay() {
    let view = view(vec![instance("a", 0, running(0))]);
    let mut object = pod(simple()).pod;
    object.status = Some(of(simple(), &view, 1));
    let foreign = PodCondition {
        type_: "x/y".into(),
        status: "True".into(),
        ..PodCondition::default()
    };
    object
        .status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap()
        .push(foreign);
    let again = status_of(&PodModel::new(object.clone()), &view, &Memory::default(), 50);
    assert_eq!(Some(again), object.status);
}

#[test]
fn a_deleted_pod_reports_a_final_phase_only_once_nothing_runs() {
    let meta = json!({"deletionTimestamp": "2023-11-14T22:13:20Z", "deletionGracePeriodSeconds": 30});
    let pod = pod_with(meta, simple(), json!({"phase": "Running"}));
    let running = status_of(
        &pod,
        &view(vec![instance("a", 0, running(0))]),
        &Memory::default(),
        1,
    );
    assert_eq!(phase_of(&running), "Running");
    let killed = status_of(
        &pod,
        &view(vec![instance("a", 0, exited(1, 137))]),
        &Memory::default(),
        2,
    );
    assert_eq!(phase_of(&killed), "Failed");
}

#[test]
fn a_verdict_fails_the_pod_with_its_reason() {
    let verdict = Some(Verdict {
        reason: "DeadlineExceeded",
        message: "late".into(),
    });
    let memory = Memory {
        verdict,
        ..Memory::default()
    };
    let status = status_of(
        &pod(simple()),
        &view(vec![instance("a", 0, exited(1, 137))]),
        &memory,
        2,
    );
    assert_eq!(
        (phase_of(&status), status.reason.as_deref()),
        ("Failed", Some("DeadlineExceeded"))
    );
}

#[test]
fn statuses_of_removed_containers_of_a_finished_pod_are_kept() {
    let done = json!({"phase": "Succeeded", "containerStatuses": [{
        "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 2,
        "state": {"terminated": {"exitCode": 0}}}]});
    let pod = pod_with(json!({}), simple(), done);
    let status = status_of(&pod, &View::default(), &Memory::default(), 9);
    assert_eq!(status.container_statuses.as_ref().unwrap()[0].restart_count, 2);
    assert_eq!(phase_of(&status), "Succeeded");
}

#[test]
fn pauses_read_like_go_durations() {
    assert_eq!([10, 80, 300].map(pause), ["10s", "1m20s", "5m0s"]);
}
