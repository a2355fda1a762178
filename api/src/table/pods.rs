//! The row of a Pod: one word for how it is doing.

use super::{View, or};
use crate::kinds::access::{at, flag, has, list, text};
use jiff::Timestamp;
use serde_json::Value;

/// What the statuses of the containers come to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn cells(view: &View<'_>) -> Vec<Value> {
    let pod = view.object;
    let summary = summary(pod);
    let restarts = match summary.last_restart.filter(|_| summary.restarts != 0) {
        Some(at) => format!(
            "{} ({} ago)",
            summary.restarts,
            super::human(view.now.duration_since(at))
        ),
        None => summary.restarts.to_string(),
    };
    let ip = list(pod, "status.podIPs")
        .first()
        .map(|ip| text(ip, "ip"))
        .unwrap_or_default();
    vec![
        view.name(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        view.age(),
        or(ip, "<none>"),
        view.text_or("spec.nodeName", "<none>"),
        view.text_or("status.nominatedNodeName", "<none>"),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let conditions = list(pod, "status.conditions");
    let holds = |gate: &&Value| {
        let condition = conditions
            .iter()
            .find(|c| text(c, "type") == text(gate, "conditionType"));
        condition.is_some_and(|c| text(c, "status") == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}

fn condition(pod: &Value, kind: &str) -> bool {
    list(pod, "status.conditions")
        .iter()
        .any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let own = text(pod, "status.reason");
    let mut summary = Summary {
        reason: if own.is_empty() { phase } else { own }.to_owned(),
        ready: 0,
        total: list(pod, "spec.containers").len() + sidecars(pod).count(),
        restarts: 0,
        last_restart: None,
    };
    let gated = |c: &Value| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated";
    if list(pod, "status.conditions").iter().any(gated) {
        summary.reason = "SchedulingGated".into();
    }
    let initializing = init_containers(pod, &mut summary);
    if !initializing || condition(pod, "Initialized") {
        main_containers(pod, &mut summary);
    }
    if has(pod, "metadata.deletionTimestamp") {
        if own == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Init containers that keep running beside the others.
fn sidecars(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "spec.initContainers")
        .iter()
        .filter(|c| text(c, "restartPolicy") == "Always")
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    sidecars(pod).any(|container| text(container, "name") == name)
}

fn count_restarts(status: &Value, summary: &mut Summary) {
    summary.restarts += at(status, "restartCount").as_i64().unwrap_or(0);
    let ended = text(status, "lastState.terminated.finishedAt")
        .parse::<Timestamp>()
        .ok();
    summary.last_restart = summary.last_restart.max(ended);
}

/// Follows the init containers to the one that is at work; tells whether there is one. Restarts stay counted only while
/// initializing, those of sidecars always.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let total = list(pod, "spec.initContainers").len();
    let mut initializing = false;
    for (index, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        count_restarts(status, summary);
        let sidecar = is_sidecar(pod, text(status, "name"));
        let (terminated, waiting) = (
            at(status, "state.terminated"),
            text(status, "state.waiting.reason"),
        );
        if terminated["exitCode"] == 0 {
            continue;
        }
        if sidecar && flag(status, "started") {
            summary.ready += usize::from(flag(status, "ready"));
            continue;
        }
        summary.reason = if !terminated.is_null() {
            format!("Init:{}", how_it_ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{total}")
        };
        initializing = true;
        break;
    }
    initializing
}

fn how_it_ended(terminated: &Value) -> String {
    let reason = text(terminated, "reason");
    let number = |field: &str| at(terminated, field).as_i64().unwrap_or(0);
    match (reason, number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    (summary.restarts, summary.last_restart) = (0, None);
    for status in list(pod, "status.initContainerStatuses")
        .iter()
        .filter(|s| is_sidecar(pod, text(s, "name")))
    {
        count_restarts(status, summary);
    }
    let (mut running, mut failure) = (false, None);
    for status in list(pod, "status.containerStatuses").iter().rev() {
        count_restarts(status, summary);
        let (terminated, waiting) = (
            at(status, "state.terminated"),
            text(status, "state.waiting.reason"),
        );
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            summary.reason = how_it_ended(terminated);
            if at(terminated, "exitCode").as_i64().unwrap_or(0) != 0 {
                failure = Some(summary.reason.clone());
            }
        } else if flag(status, "ready") && has(status, "state.running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        if running && condition(pod, "Ready") {
            summary.reason = "Running".into();
        } else if let Some(failure) = failure {
            summary.reason = failure;
        } else if running {
            summary.reason = "NotReady".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: Value) -> [String; 3] {
        let view = View {
            object: &pod,
            now: "2024-01-02T00:00:00Z".parse().unwrap(),
        };
        let cells = cells(&view);
        [1, 2, 3].map(|index| cells[index].as_str().unwrap().to_owned())
    }

    fn pod(phase: &str, statuses: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": phase, "containerStatuses": statuses}})
    }

    #[test]
    fn the_status_is_what_matters_most() {
        let run = json!({"ready": true, "state": {"running": {}}});
        let crash = json!({"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2024-01-01T23:58:00Z"}}});
        let done = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        assert_eq!(shown(pod("Running", json!([run, run]))), ["2/2", "Running", "0"]);
        assert_eq!(
            shown(pod("Running", json!([run, crash]))),
            ["1/2", "CrashLoopBackOff", "4 (2m ago)"]
        );
        assert_eq!(
            shown(pod("Succeeded", json!([done, done]))),
            ["0/2", "Completed", "0"]
        );
        assert_eq!(
            shown(pod("Running", json!([done, run]))),
            ["1/2", "NotReady", "0"]
        );
        assert_eq!(shown(pod("Pending", json!([]))), ["0/2", "Pending", "0"]);
        let killed = json!({"state": {"terminated": {"signal": 9, "exitCode": 137}}});
        assert_eq!(shown(pod("Failed", json!([killed]))), ["0/2", "Signal:9", "0"]);
    }

    #[test]
    fn terminating_pods_say_so_until_they_have_ended() {
        let mut going = pod("Running", json!([]));
        going["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
        assert_eq!(shown(going.clone())[1], "Terminating");
        going["status"]["phase"] = "Failed".into();
        assert_eq!(shown(going)[1], "Failed");
    }

    #[test]
    fn init_containers_show_how_far_they_are() {
        let mut starting = pod("Pending", json!([]));
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        starting["status"]["initContainerStatuses"] = json!([done, {"name": "j", "state": {"running": {}}}]);
        assert_eq!(shown(starting.clone())[1], "Init:1/2");
        starting["status"]["initContainerStatuses"] =
            json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        assert_eq!(shown(starting), ["0/2", "Init:CrashLoopBackOff", "2"]);
    }
}
