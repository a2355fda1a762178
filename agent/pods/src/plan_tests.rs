use super::*;
use crate::probe::{Failed, Outcome};
use crate::testing::*;
use serde_json::{Value, json};

fn plan_at(pod: &PodModel, view: &View, memory: &Memory, now: i64) -> Plan {
    let probes = Outcomes::default();
    plan(&Observed {
        pod,
        view,
        memory,
        probes: &probes,
        now: at(now),
    })
}

fn steps(spec: Value, view: &View, now: i64) -> Vec<Step> {
    plan_at(&pod(spec), view, &Memory::default(), now).steps
}

fn start_of(name: &str, attempt: u32, backoff: u32) -> Step {
    Step::Start {
        name: name.into(),
        attempt,
        sandbox: "s0".into(),
        backoff,
    }
}

#[test]
fn a_new_pod_gets_a_sandbox_first() {
    assert_eq!(
        steps(simple(), &View::default(), 0),
        [Step::CreateSandbox { attempt: 0 }]
    );
}

#[test]
fn with_a_sandbox_every_regular_container_is_started() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(
        steps(spec, &view(vec![]), 0),
        [start_of("a", 0, 0), start_of("b", 0, 0)]
    );
}

#[test]
fn a_running_pod_needs_nothing() {
    assert_eq!(
        plan_at(
            &pod(simple()),
            &view(vec![instance("a", 0, running(0))]),
            &Memory::default(),
            9
        ),
        Plan::default()
    );
}

#[test]
fn init_containers_run_one_after_the_other_and_before_the_regular_ones() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    assert_eq!(steps(spec.clone(), &view(vec![]), 0), [start_of("i", 0, 0)]);
    assert_eq!(
        steps(spec.clone(), &view(vec![instance("i", 0, running(0))]), 0),
        []
    );
    let one = vec![instance("i", 0, exited(1, 0))];
    assert_eq!(steps(spec.clone(), &view(one.clone()), 1), [start_of("j", 0, 0)]);
    let both = vec![one[0].clone(), instance("j", 0, exited(2, 0))];
    assert_eq!(steps(spec, &view(both), 2), [start_of("a", 0, 0)]);
}

#[test]
fn a_failed_init_container_is_run_again_under_restart_policy_always() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    assert_eq!(
        steps(spec, &view(vec![instance("i", 0, exited(1, 3))]), 1),
        [start_of("i", 1, 10)]
    );
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let got = steps(spec, &view(vec![instance("i", 0, exited(1, 3))]), 1);
    assert_eq!(got, [Step::StopSandbox { id: "s0".into() }]);
}

#[test]
fn a_sidecar_only_has_to_be_up_before_the_next_container_starts() {
    let spec = json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    assert_eq!(steps(spec.clone(), &view(vec![]), 0), [start_of("s", 0, 0)]);
    assert_eq!(
        steps(spec.clone(), &view(vec![instance("s", 0, running(0))]), 0),
        [start_of("a", 0, 0)]
    );
    let died = vec![instance("s", 0, exited(4, 0)), instance("a", 0, running(1))];
    assert_eq!(steps(spec, &view(died), 5), [start_of("s", 1, 10)]);
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_the_others_back_until_it_passes() {
    let spec = json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}],
        "containers": [{"name": "a"}]});
    let view = view(vec![instance("s", 0, running(0))]);
    assert_eq!(steps(spec.clone(), &view, 0), []);
    let mut probes = Outcomes::default();
    probes.set(
        "s0",
        Outcome {
            started: true,
            ready: true,
            failed: None,
        },
    );
    let pod = pod(spec);
    let memory = Memory::default();
    let got = plan(&Observed {
        pod: &pod,
        view: &view,
        memory: &memory,
        probes: &probes,
        now: at(0),
    });
    assert_eq!(got.steps, [start_of("a", 0, 0)]);
}

#[test]
fn restart_policies_decide_by_exit_code() {
    let spec = |policy| json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
    let after = |code| view(vec![instance("a", 0, exited(1, code))]);
    let restarts = |policy, code| steps(spec(policy), &after(code), 1) == [start_of("a", 1, 10)];
    assert!(restarts("Always", 0) && restarts("Always", 1));
    assert!(!restarts("OnFailure", 0) && restarts("OnFailure", 1));
    assert!(!restarts("Never", 0) && !restarts("Never", 1));
}

#[test]
fn a_crash_loop_waits_twice_as_long_each_time() {
    let mut run = instance("a", 3, exited(100, 1));
    run.backoff = 40;
    let waiting = plan_at(&pod(simple()), &view(vec![run.clone()]), &Memory::default(), 139);
    assert_eq!((waiting.steps, waiting.wake), (vec![], Some(at(140))));
    assert_eq!(steps(simple(), &view(vec![run]), 140), [start_of("a", 4, 80)]);
}

#[test]
fn the_back_off_stops_at_five_minutes_and_begins_anew_after_ten_good_ones() {
    let mut run = instance("a", 9, exited(60, 1));
    run.backoff = 200;
    assert_eq!(
        steps(simple(), &view(vec![run.clone()]), 900),
        [start_of("a", 10, 300)]
    );
    run.state = exited(9 + 601, 1);
    assert_eq!(steps(simple(), &view(vec![run]), 900), [start_of("a", 10, 10)]);
}

#[test]
fn a_dead_sandbox_is_replaced_and_what_still_runs_in_it_is_stopped() {
    let mut broken = view(vec![instance("a", 0, running(0))]);
    broken.sandboxes[0].ready = false;
    let expected = [
        Step::StopSandbox { id: "s0".into() },
        Step::CreateSandbox { attempt: 1 },
    ];
    assert_eq!(steps(simple(), &broken, 5), expected);
}

#[test]
fn a_failed_sandbox_is_tried_again_later_under_a_new_attempt_number() {
    let mut memory = Memory::default();
    memory.sandbox_failed(0, "no".into(), at(0));
    let waiting = plan_at(&pod(simple()), &View::default(), &memory, 0);
    assert_eq!((waiting.steps, waiting.wake), (vec![], Some(at(1))));
    let again = plan_at(&pod(simple()), &View::default(), &memory, 1);
    assert_eq!(again.steps, [Step::CreateSandbox { attempt: 1 }]);
}

#[test]
fn a_container_that_could_not_be_started_waits_for_its_pause() {
    let mut memory = Memory::default();
    memory.failed("a", "ErrImagePull", "no".into(), at(0));
    let waiting = plan_at(&pod(simple()), &view(vec![]), &memory, 5);
    assert_eq!((waiting.steps, waiting.wake), (vec![], Some(at(10))));
    assert_eq!(
        plan_at(&pod(simple()), &view(vec![]), &memory, 10).steps,
        [start_of("a", 0, 0)]
    );
}

#[test]
fn a_failed_liveness_probe_kills_with_the_probes_own_grace() {
    let view = view(vec![instance("a", 0, running(0))]);
    let mut probes = Outcomes::default();
    let failed = Some(Failed {
        probe: "liveness",
        grace: Some(3),
    });
    probes.set(
        "a0",
        Outcome {
            started: true,
            ready: false,
            failed,
        },
    );
    let (pod, memory) = (pod(simple()), Memory::default());
    let got = plan(&Observed {
        pod: &pod,
        view: &view,
        memory: &memory,
        probes: &probes,
        now: at(9),
    });
    let why = "Container a failed liveness probe, will be restarted".to_owned();
    assert_eq!(
        got.steps,
        [Step::Kill {
            id: "a0".into(),
            name: "a".into(),
            grace: 3,
            why
        }]
    );
}

#[test]
fn a_changed_image_replaces_the_running_container() {
    let mut run = instance("a", 0, running(0));
    run.hash = Some(1);
    let got = steps(simple(), &view(vec![run]), 0);
    assert!(
        matches!(&got[..], [Step::Kill { why, .. }] if why.contains("definition changed")),
        "{got:?}"
    );
}

#[test]
fn a_container_left_created_by_a_dead_agent_is_made_again() {
    let got = steps(simple(), &view(vec![instance("a", 0, State::Created)]), 0);
    assert_eq!(
        got,
        [Step::RemoveContainer { id: "a0".into() }, start_of("a", 1, 10)]
    );
}

#[test]
fn of_the_dead_runs_only_the_last_is_kept_besides_the_newest() {
    let runs = vec![
        instance("a", 3, running(9)),
        instance("a", 2, exited(8, 1)),
        instance("a", 1, exited(7, 1)),
        instance("a", 0, exited(6, 1)),
    ];
    let expected = [
        Step::RemoveContainer { id: "a1".into() },
        Step::RemoveContainer { id: "a0".into() },
    ];
    assert_eq!(steps(simple(), &view(runs), 10), expected);
}

#[test]
fn a_pod_over_its_active_deadline_is_judged_and_killed() {
    let spec = json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]});
    let status = json!({"phase": "Running", "startTime": at(0).to_string()});
    let pod = pod_with(json!({}), spec, status);
    let view = view(vec![instance("a", 0, running(0))]);
    assert_eq!(plan_at(&pod, &view, &Memory::default(), 4).wake, Some(at(5)));
    let late = plan_at(&pod, &view, &Memory::default(), 5);
    assert_eq!(late.verdict.unwrap().reason, "DeadlineExceeded");
    assert!(matches!(late.steps[..], [Step::Kill { .. }]));
}

#[test]
fn after_the_runtime_lost_everything_the_restart_count_goes_on_from_the_reported_one() {
    let status = json!({"containerStatuses": [{
        "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 4, "containerID": "containerd://x"}]});
    let pod = pod_with(json!({}), simple(), status);
    assert_eq!(
        plan_at(&pod, &view(vec![]), &Memory::default(), 0).steps,
        [start_of("a", 5, 0)]
    );
}

fn sized(cpu: &str, policy: &str) -> Value {
    json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}},
        "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]}]})
}

/// Memory of a run of `a` that was started with `cpu`.
fn started_with(cpu: &str) -> Memory {
    let resources = json!({"requests": {"cpu": cpu}});
    let resources = serde_json::from_value(resources).unwrap();
    let mut memory = Memory::default();
    memory.resources.insert("a".into(), (0, resources));
    memory
}

#[test]
fn a_running_container_gets_the_resources_that_its_specification_asks_for_now() {
    let (pod, view) = (
        pod(sized("2", "NotRequired")),
        view(vec![instance("a", 0, running(0))]),
    );
    let plan = plan_at(&pod, &view, &started_with("1"), 9);
    let a = Resized {
        id: "a0".into(),
        name: "a".into(),
        attempt: 0,
    };
    assert_eq!(plan.steps, [Step::Resize { containers: vec![a] }]);
    assert_eq!(plan_at(&pod, &view, &started_with("2"), 9), Plan::default());
}

#[test]
fn a_failed_resize_is_tried_again_after_a_pause() {
    let (pod, view) = (
        pod(sized("2", "NotRequired")),
        view(vec![instance("a", 0, running(0))]),
    );
    let mut memory = started_with("1");
    memory.resize_failed("busy".into(), at(9));
    let plan = plan_at(&pod, &view, &memory, 9);
    assert_eq!((plan.steps, plan.wake), (Vec::new(), Some(at(10))));
    assert_eq!(plan_at(&pod, &view, &memory, 10).steps.len(), 1);
}

#[test]
fn a_resource_whose_policy_wants_a_restart_gets_one() {
    let pod = pod(sized("2", "RestartContainer"));
    let running = view(vec![instance("a", 0, running(0))]);
    let steps = plan_at(&pod, &running, &started_with("1"), 9).steps;
    assert!(matches!(steps.as_slice(), [Step::Kill { .. }]), "{steps:?}");
    let ended = view(vec![instance("a", 0, exited(9, 0))]);
    let steps = plan_at(&pod, &ended, &started_with("1"), 9).steps;
    assert_eq!(steps, [start_of("a", 1, 10)]);
}

#[test]
fn after_a_restart_of_the_agent_the_status_tells_what_a_container_has() {
    let status = json!({"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true,
        "restartCount": 0, "containerID": "containerd://a0", "resources": {"requests": {"cpu": "1"}}}]});
    let pod = pod_with(json!({}), sized("2", "NotRequired"), status);
    let view = view(vec![instance("a", 0, running(0))]);
    let steps = plan_at(&pod, &view, &Memory::default(), 9).steps;
    assert!(matches!(steps.as_slice(), [Step::Resize { .. }]), "{steps:?}");
}
