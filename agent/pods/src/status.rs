//! The status to report: phase, conditions, container statuses and addresses, as upstream's kubelet composes them.

use crate::memory::Verdict;
use crate::model::{Member, PodModel, Role};
use crate::plan::Observed;
use crate::terminate;
use crate::view::{Exit, Instance, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// What the status takes from outside the pod.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The node's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The runtime's name, the scheme of container identifiers (`containerd`).
    pub runtime: String,
}

/// Composes the status.
#[must_use]
pub fn status(o: &Observed, host: &Host) -> PodStatus {
    let old = o.pod.reported();
    let init = list(o, host, |r| matches!(r, Role::Init | Role::Sidecar));
    let regular = list(o, host, |r| r == Role::Regular);
    let ephemeral = list(o, host, |r| r == Role::Ephemeral);
    let phase = sticky(o, phase(o, &init, &regular));
    let verdict = o.memory.verdict.as_ref();
    let ips = pod_ips(o, host);
    let mut status = PodStatus {
        container_statuses: Some(regular),
        init_container_statuses: Some(init).filter(|l| !l.is_empty()),
        ephemeral_container_statuses: Some(ephemeral).filter(|l| !l.is_empty()),
        host_ip: host.ips.first().map(ToString::to_string),
        host_ips: Some(host.ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old
            .and_then(|s| s.start_time.clone())
            .or(Some(seconds(o.memory.seen.unwrap_or(o.now)))),
        qos_class: Some(crate::resources::qos(o.pod.spec()).to_owned()),
        reason: reason(verdict, old.and_then(|s| s.reason.clone())),
        message: verdict
            .map(|v| v.message.clone())
            .or_else(|| old.and_then(|s| s.message.clone())),
        observed_generation: o.pod.pod.metadata.generation,
        phase: Some(phase.to_owned()),
        ..old.cloned().unwrap_or_default()
    };
    status.conditions = Some(crate::status::conditions::all(o, &status));
    status
}

fn reason(verdict: Option<&Verdict>, old: Option<String>) -> Option<String> {
    verdict.map(|v| v.reason.to_owned()).or(old)
}

/// Kubernetes times in status carry whole seconds.
fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The status of container `name` as the API server has it.
#[must_use]
pub fn reported_container<'a>(pod: &'a PodModel, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.reported()?;
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().flatten().find(|c| c.name == name)
}

fn pod_ips(o: &Observed, host: &Host) -> Vec<String> {
    if o.pod.host_network() {
        return host.ips.iter().map(ToString::to_string).collect();
    }
    let live = o.view.newest_sandbox().filter(|s| !s.ips.is_empty());
    let known = || {
        o.pod
            .reported()
            .and_then(|s| s.pod_ips.clone())
            .unwrap_or_default()
    };
    match live {
        Some(sandbox) => sandbox.ips.iter().map(ToString::to_string).collect(),
        None if terminate::stopping(o) => known().into_iter().map(|p| p.ip).collect(),
        None => Vec::new(),
    }
}

fn list(o: &Observed, host: &Host, role: impl Fn(Role) -> bool) -> Vec<ContainerStatus> {
    o.pod
        .members
        .iter()
        .filter(|m| role(m.role))
        .map(|m| container(o, host, m))
        .collect()
}

fn container(o: &Observed, host: &Host, member: &Member) -> ContainerStatus {
    match o.view.newest(&member.spec.name) {
        Some(run) => present(o, host, member, run),
        None => absent(o, member),
    }
}

fn base(member: &Member) -> ContainerStatus {
    let requests = member.spec.resources.as_ref().and_then(|r| r.requests.clone());
    ContainerStatus {
        name: member.spec.name.clone(),
        image: member.spec.image.clone().unwrap_or_default(),
        allocated_resources: requests,
        resources: member.spec.resources.clone(),
        started: Some(false),
        ..ContainerStatus::default()
    }
}

/// A container the runtime has nothing of: ended long ago and removed, or not started yet.
fn absent(o: &Observed, member: &Member) -> ContainerStatus {
    let old = reported_container(o.pod, &member.spec.name);
    if let Some(old) = old.filter(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some())) {
        return old.clone();
    }
    let mut status = base(member);
    status.state = Some(ContainerState {
        waiting: Some(waiting(o, member)),
        ..ContainerState::default()
    });
    if let Some(old) = old {
        status.restart_count = old.restart_count;
        status.last_state = old.last_state.clone();
    }
    status
}

fn waiting(o: &Observed, member: &Member) -> ContainerStateWaiting {
    let image = member.spec.image.as_deref().unwrap_or_default();
    if let Some(failure) = o.memory.failures.get(&member.spec.name) {
        let (reason, message, _) = failure.shown(image, o.now);
        return ContainerStateWaiting {
            reason: Some(reason),
            message: Some(message),
        };
    }
    // As upstream: with init containers everything that has not started yet waits for the pod's initialization.
    let has_init = o
        .pod
        .members
        .iter()
        .any(|m| matches!(m.role, Role::Init | Role::Sidecar));
    let reason = if has_init && (member.role != Role::Regular || !initialized(o)) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: None,
    }
}

/// Whether all init containers are done and all sidecars started.
pub(crate) fn initialized(o: &Observed) -> bool {
    o.pod.members.iter().all(|m| match m.role {
        Role::Init => o.view.newest(&m.spec.name).map_or_else(
            || reported_container(o.pod, &m.spec.name).is_some_and(succeeded),
            |run| run.exit().is_some_and(|e| e.code == 0),
        ),
        Role::Sidecar => o.view.newest(&m.spec.name).is_some_and(|run| match &run.state {
            State::Running { .. } => o.probes.started(m, run),
            State::Exited(_) => regular_seen(o),
            _ => false,
        }),
        Role::Regular | Role::Ephemeral => true,
    })
}

fn regular_seen(o: &Observed) -> bool {
    o.pod
        .with_role(Role::Regular)
        .any(|m| o.view.newest(&m.spec.name).is_some())
}

fn present(o: &Observed, host: &Host, member: &Member, run: &Instance) -> ContainerStatus {
    let mut status = base(member);
    if let Some(has) = crate::resize::actual(o, run) {
        status.resources = Some(has.clone());
    }
    status.restart_count = i32::try_from(run.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(format!("{}://{}", host.runtime, run.id));
    status.image_id.clone_from(&run.image_id);
    if !run.image.is_empty() {
        status.image.clone_from(&run.image);
    }
    status.last_state = previous(o, host, member, run);
    let mut state = ContainerState::default();
    match &run.state {
        State::Running { started } => {
            state.running = Some(ContainerStateRunning {
                started_at: Some(seconds(*started)),
            });
            status.started = Some(o.probes.started(member, run));
            let serves = matches!(member.role, Role::Regular | Role::Sidecar);
            status.ready = serves && o.probes.ready(member, run) && status.started == Some(true);
        }
        State::Exited(exit) => {
            let ended = terminated(host, run, exit);
            match crash_loop(o, member, run, exit) {
                Some(waiting) => {
                    state.waiting = Some(waiting);
                    status.last_state = Some(ContainerState {
                        terminated: Some(ended),
                        ..ContainerState::default()
                    });
                }
                None => {
                    status.ready = member.role == Role::Init && exit.code == 0;
                    state.terminated = Some(ended);
                }
            }
        }
        State::Created | State::Unknown => {
            let reason = Some("ContainerCreating".to_owned());
            state.waiting = Some(ContainerStateWaiting {
                reason,
                message: None,
            });
        }
    }
    status.state = Some(state);
    status
}

/// Why an ended container that will run again does not yet.
fn crash_loop(o: &Observed, member: &Member, run: &Instance, exit: &Exit) -> Option<ContainerStateWaiting> {
    if terminate::stopping(o) || !crate::plan::restarts(o, member, run, exit.code) {
        return None;
    }
    if let Some(failure) = o.memory.failures.get(&member.spec.name) {
        let (reason, message, _) = failure.shown(member.spec.image.as_deref().unwrap_or_default(), o.now);
        return Some(ContainerStateWaiting {
            reason: Some(reason),
            message: Some(message),
        });
    }
    let again = exit.finished + jiff::SignedDuration::from_secs(i64::from(run.backoff));
    (again > o.now).then(|| ContainerStateWaiting {
        reason: Some("CrashLoopBackOff".to_owned()),
        message: Some(format!(
            "back-off {} restarting failed container={} pod={}_{}({})",
            pause(run.backoff),
            member.spec.name,
            o.pod.name(),
            o.pod.namespace(),
            o.pod.uid(),
        )),
    })
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn pause(seconds: u32) -> String {
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

fn previous(o: &Observed, host: &Host, member: &Member, run: &Instance) -> Option<ContainerState> {
    let older = o
        .view
        .runs(&member.spec.name)
        .filter(|c| (c.attempt, c.created) < (run.attempt, run.created));
    let last = older.max_by_key(|c| (c.attempt, c.created));
    match last.and_then(|l| l.exit().map(|e| terminated(host, l, e))) {
        Some(ended) => Some(ContainerState {
            terminated: Some(ended),
            ..ContainerState::default()
        }),
        None => reported_container(o.pod, &member.spec.name).and_then(|s| s.last_state.clone()),
    }
}

fn terminated(host: &Host, run: &Instance, exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("{}://{}", host.runtime, run.id)),
        exit_code: exit.code,
        finished_at: Some(seconds(exit.finished)),
        message: Some(exit.message.clone()).filter(|m| !m.is_empty()),
        reason: Some(exit.reason.clone()).filter(|r| !r.is_empty()),
        signal: None,
        started_at: exit.started.map(seconds),
    }
}

fn succeeded(status: &ContainerStatus) -> bool {
    ended(status).is_some_and(|t| t.exit_code == 0)
}

fn ended(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref().and_then(|s| s.terminated.as_ref())
}

fn runs(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// Ended once, and not waiting for its first start.
fn ended_before(status: &ContainerStatus) -> bool {
    ended(status).is_some() || status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
}

/// A final phase never changes again, and none is reported while a container still runs.
fn sticky<'a>(o: &'a Observed, computed: &'a str) -> &'a str {
    match o.pod.reported_phase() {
        done @ ("Succeeded" | "Failed") => done,
        old => match computed {
            "Succeeded" | "Failed" if o.view.any_running() => {
                if old.is_empty() {
                    "Pending"
                } else {
                    old
                }
            }
            now => now,
        },
    }
}

fn phase(o: &Observed, init: &[ContainerStatus], regular: &[ContainerStatus]) -> &'static str {
    if o.memory.verdict.is_some() || terminate::init_failed(o) {
        return "Failed";
    }
    let ending = terminate::stopping(o) && !o.view.any_running();
    let all = |test: fn(&ContainerStatus) -> bool| !regular.is_empty() && regular.iter().all(test);
    let never_ran = regular.iter().any(|s| !runs(s) && !ended_before(s));
    let behind_init = !initialized(o) && !regular.iter().any(|s| runs(s) || ended_before(s));
    if ending && !init.is_empty() && behind_init {
        return "Failed";
    }
    if ending {
        // What never ran can no longer succeed.
        return if all(succeeded) { "Succeeded" } else { "Failed" };
    }
    if behind_init || never_ran {
        return "Pending";
    }
    if terminate::finished(o) {
        return if all(succeeded) { "Succeeded" } else { "Failed" };
    }
    "Running"
}

#[path = "conditions.rs"]
mod conditions;

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
