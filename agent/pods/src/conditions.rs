//! The pod's conditions. Conditions of others (readiness gates, `DisruptionTarget` …) are kept as they are.

use crate::model::Role;
use crate::plan::Observed;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const OURS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// True, or false with reason and message.
type Verdict = Result<Option<&'static str>, (&'static str, Option<String>)>;

pub(super) fn all(o: &Observed, status: &PodStatus) -> Vec<PodCondition> {
    let containers = containers_ready(o, status);
    let ready = ready(o, &containers);
    let sandbox = o
        .view
        .ready_sandbox()
        .is_some_and(|s| o.pod.host_network() || !s.ips.is_empty());
    let verdicts: [(&str, Verdict); 5] = [
        (OURS[0], if sandbox { Ok(None) } else { Err(("", None)) }),
        (OURS[1], initialized(o, status)),
        (OURS[2], ready),
        (OURS[3], containers),
        (OURS[4], Ok(None)),
    ];
    let ours = verdicts
        .into_iter()
        .map(|(type_, verdict)| condition(o, type_, verdict));
    ours.chain(others(o)).collect()
}

fn others(o: &Observed) -> Vec<PodCondition> {
    let old = o
        .pod
        .reported()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    old.into_iter()
        .filter(|c| !OURS.contains(&c.type_.as_str()))
        .collect()
}

fn condition(o: &Observed, type_: &str, verdict: Verdict) -> PodCondition {
    let (status, reason, message) = match verdict {
        Ok(reason) => ("True", reason.unwrap_or_default(), None),
        Err((reason, message)) => ("False", reason, message),
    };
    let old = o
        .pod
        .reported()
        .and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == type_));
    let since = old
        .filter(|c| c.status == status)
        .and_then(|c| c.last_transition_time.clone());
    let now = Time(Timestamp::from_second(o.now.as_second()).unwrap_or(o.now));
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
        message,
        last_transition_time: Some(since.unwrap_or(now)),
        last_probe_time: None,
        observed_generation: o.pod.pod.metadata.generation,
    }
}

fn initialized(o: &Observed, status: &PodStatus) -> Verdict {
    if status.phase.as_deref() == Some("Succeeded") {
        return Ok(Some("PodCompleted"));
    }
    if super::initialized(o) {
        return Ok(None);
    }
    let lists = status.init_container_statuses.iter().flatten();
    let unfinished: Vec<&str> = lists.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let message = format!("containers with incomplete status: [{}]", unfinished.join(" "));
    Err(("ContainersNotInitialized", Some(message)))
}

fn containers_ready(o: &Observed, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Err(("PodCompleted", None)),
        Some("Failed") => return Err(("PodFailed", None)),
        _ => {}
    }
    let regular = status.container_statuses.iter().flatten();
    let sidecar = |s: &&ContainerStatus| o.pod.member(&s.name).is_some_and(|m| m.role == Role::Sidecar);
    let all = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(sidecar)
        .chain(regular);
    let unready: Vec<&str> = all.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return Ok(None);
    }
    Err((
        "ContainersNotReady",
        Some(format!("containers with unready status: [{}]", unready.join(" "))),
    ))
}

fn ready(o: &Observed, containers: &Verdict) -> Verdict {
    containers.clone()?;
    let old = o.pod.reported().and_then(|s| s.conditions.as_ref());
    let holds = |type_: &str| old.is_some_and(|l| l.iter().any(|c| c.type_ == type_ && c.status == "True"));
    let gates = o.pod.spec().readiness_gates.iter().flatten();
    let missing: Vec<String> = gates
        .filter(|g| !holds(&g.condition_type))
        .map(|g| {
            format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                g.condition_type
            )
        })
        .collect();
    match missing.is_empty() {
        true => Ok(None),
        false => Err(("ReadinessGatesNotReady", Some(missing.join(" ")))),
    }
}
