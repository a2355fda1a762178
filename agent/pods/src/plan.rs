//! The next steps of a pod: a pure function of its object, the runtime's view, probe outcomes, memory and time.

use crate::memory::{Memory, Verdict};
use crate::model::{Member, PodModel, Role};
use crate::probe::Outcomes;
use crate::resize::{self, Change, Resized};
use crate::terminate;
use crate::view::{Instance, Sandbox, State, View};
use jiff::{SignedDuration, Timestamp};

/// First wait between two runs of a container that ends by itself.
const FIRST_BACKOFF: u32 = 10;
/// Longest wait.
const LONGEST_BACKOFF: u32 = 300;
/// A run of this length makes the next wait the first one again.
const BACKOFF_RESET: SignedDuration = SignedDuration::from_secs(600);

/// Everything the planner looks at.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The pod.
    pub pod: &'a PodModel,
    /// What the runtime has of it.
    pub view: &'a View,
    /// What its worker remembers.
    pub memory: &'a Memory,
    /// What the probes found.
    pub probes: &'a Outcomes,
    /// The time.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make a sandbox (and before it the pod's folders, cgroup and addresses).
    CreateSandbox {
        /// Its attempt number.
        attempt: u32,
    },
    /// Get the image, then create and start a container.
    Start {
        /// Container name.
        name: String,
        /// Number of this run.
        attempt: u32,
        /// The sandbox.
        sandbox: String,
        /// Seconds to wait after this run before the next.
        backoff: u32,
    },
    /// Give the pod and running containers the limits of the specification.
    Resize {
        /// The containers.
        containers: Vec<Resized>,
    },
    /// Run the preStop hook, then stop a container.
    Kill {
        /// The instance.
        id: String,
        /// Container name.
        name: String,
        /// Seconds until it is killed, hook included.
        grace: i64,
        /// For the event: why.
        why: String,
    },
    /// Remove a dead container.
    RemoveContainer {
        /// The instance.
        id: String,
    },
    /// Stop a sandbox and what is left in it.
    StopSandbox {
        /// The sandbox.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// The sandbox.
        id: String,
    },
    /// Remove volumes, cgroup and addresses.
    CleanUp,
    /// Delete the object for good: grace period 0, uid as precondition.
    DeleteObject,
}

/// What to do now and when to look again without being told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; after a failure the rest is dropped and planned again.
    pub steps: Vec<Step>,
    /// The next moment at which time alone changes the plan or the status.
    pub wake: Option<Timestamp>,
    /// A verdict that ends the pod, to be remembered.
    pub verdict: Option<Verdict>,
}

impl Plan {
    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// Plans the pod's next steps.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    deadline(o, &mut plan);
    if plan.verdict.is_some() || terminate::stopping(o) {
        terminate::plan(o, &mut plan);
        return plan;
    }
    match o.view.ready_sandbox() {
        Some(sandbox) => run(o, sandbox, &mut plan),
        None => sandbox(o, &mut plan),
    }
    collect_garbage(o, &mut plan);
    plan
}

/// `activeDeadlineSeconds` counts from the reported start.
fn deadline(o: &Observed, plan: &mut Plan) {
    let Some(limit) = o.pod.spec().active_deadline_seconds else {
        return;
    };
    let start = o
        .pod
        .reported()
        .and_then(|s| s.start_time.as_ref())
        .map(|t| t.0)
        .or(o.memory.seen);
    let Some(ends) = start.map(|s| s + SignedDuration::from_secs(limit)) else {
        return;
    };
    if o.memory.verdict.is_some() || terminate::finished(o) {
        return;
    }
    if o.now >= ends {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        plan.verdict = Some(Verdict {
            reason: "DeadlineExceeded",
            message,
        });
    } else {
        plan.wake_at(ends);
    }
}

/// Without a running sandbox: stop what is left of the old one, then make the next.
fn sandbox(o: &Observed, plan: &mut Plan) {
    let attempt = o
        .view
        .newest_sandbox()
        .map_or(0, |s| s.attempt + 1)
        .max(o.memory.next_sandbox_attempt);
    let left = o.view.containers.iter().filter(|c| c.running());
    let mut stop: Vec<&str> = left.map(|c| c.sandbox.as_str()).collect();
    stop.dedup();
    plan.steps
        .extend(stop.into_iter().map(|id| Step::StopSandbox { id: id.to_owned() }));
    match o
        .memory
        .sandbox_failure
        .as_ref()
        .map(|f| f.retry_at())
        .filter(|at| *at > o.now)
    {
        Some(at) => plan.wake_at(at),
        None => plan.steps.push(Step::CreateSandbox { attempt }),
    }
}

fn run(o: &Observed, sandbox: &Sandbox, plan: &mut Plan) {
    let initialized = started_before(o, sandbox) || init(o, sandbox, plan);
    if initialized {
        for member in o.pod.with_role(Role::Sidecar) {
            keep_up(o, member, sandbox, plan);
        }
        for member in o.pod.with_role(Role::Regular) {
            keep_up(o, member, sandbox, plan);
        }
    }
    for member in o.pod.with_role(Role::Ephemeral) {
        keep_up(o, member, sandbox, plan);
    }
    resize(o, plan);
}

/// New limits for what runs, unless that failed a moment ago.
fn resize(o: &Observed, plan: &mut Plan) {
    let containers = resize::in_place(o);
    if containers.is_empty() {
        return;
    }
    let retry = o.memory.resize_failure.as_ref().map(|f| f.retry_at());
    match retry.filter(|at| *at > o.now) {
        Some(at) => plan.wake_at(at),
        None => plan.steps.push(Step::Resize { containers }),
    }
}

/// Whether a regular container ran in this sandbox: then the init containers are behind us.
fn started_before(o: &Observed, sandbox: &Sandbox) -> bool {
    let seen = |m: &Member| {
        o.view
            .containers
            .iter()
            .any(|c| c.name == m.spec.name && c.sandbox == sandbox.id)
    };
    o.pod.with_role(Role::Regular).any(seen)
}

/// Takes the init containers one step further; true when all are done and all sidecars are started.
fn init(o: &Observed, sandbox: &Sandbox, plan: &mut Plan) -> bool {
    for member in o
        .pod
        .members
        .iter()
        .filter(|m| matches!(m.role, Role::Init | Role::Sidecar))
    {
        keep_up(o, member, sandbox, plan);
        let run = o.view.newest_in(&member.spec.name, &sandbox.id);
        let passed = match member.role {
            Role::Sidecar => run.is_some_and(|r| r.running() && o.probes.started(member, r)),
            _ => run.and_then(Instance::exit).is_some_and(|e| e.code == 0),
        };
        if !passed {
            return false;
        }
    }
    true
}

/// Starts, restarts or replaces one container as it needs.
fn keep_up(o: &Observed, member: &Member, sandbox: &Sandbox, plan: &mut Plan) {
    let name = &member.spec.name;
    let Some(run) = o.view.newest_in(name, &sandbox.id) else {
        if !completed_elsewhere(o, member) {
            start(o, member, sandbox, plan);
        }
        return;
    };
    match &run.state {
        State::Running { .. } => check_running(o, member, run, plan),
        State::Exited(exit) if restarts(o, member, run, exit.code) => {
            let again = exit.finished + SignedDuration::from_secs(i64::from(run.backoff));
            if again > o.now {
                plan.wake_at(again);
            } else {
                start(o, member, sandbox, plan);
            }
        }
        State::Exited(_) => {}
        State::Created | State::Unknown => replace(o, member, run, sandbox, plan),
    }
}

/// Whether a regular container ended for good in an earlier sandbox; init containers run again in each.
fn completed_elsewhere(o: &Observed, member: &Member) -> bool {
    let last = o
        .view
        .newest(&member.spec.name)
        .filter(|_| member.role != Role::Init);
    last.is_some_and(|run| run.exit().is_some_and(|e| !restarts(o, member, run, e.code)))
}

/// An instance that was never started (the agent died in between) or is unknown makes way for the next.
fn replace(o: &Observed, member: &Member, run: &Instance, sandbox: &Sandbox, plan: &mut Plan) {
    if member.role == Role::Ephemeral {
        return;
    }
    plan.steps.push(Step::RemoveContainer { id: run.id.clone() });
    start(o, member, sandbox, plan);
}

/// Whether a container that ended is run again, also because its image was changed meanwhile.
pub(crate) fn restarts(o: &Observed, member: &Member, run: &Instance, code: i32) -> bool {
    if member.role == Role::Init && code == 0 {
        return false;
    }
    let failed_probe = o.probes.failure(run).is_some() && member.role != Role::Ephemeral;
    let resized = resize::change(o, member, run) == Change::Restart;
    let stale = (stale(member, run) && member.role == Role::Regular) || resized;
    o.pod.policy_of(member).restarts(code) || (stale && !failed_probe && code_allows(o, member))
}

fn code_allows(o: &Observed, member: &Member) -> bool {
    o.pod.policy_of(member) != crate::model::RestartPolicy::Never
}

fn stale(member: &Member, run: &Instance) -> bool {
    run.hash.is_some_and(|h| h != member.hash)
}

fn check_running(o: &Observed, member: &Member, run: &Instance, plan: &mut Plan) {
    let name = &member.spec.name;
    let why = if stale(member, run) && member.role != Role::Ephemeral {
        format!("Container {name} definition changed, will be restarted")
    } else if resize::change(o, member, run) == Change::Restart {
        format!("Container {name} resize requires restart")
    } else if let Some(failure) = o.probes.failure(run) {
        let then = if o.pod.policy_of(member).restarts(137) {
            ", will be restarted"
        } else {
            ""
        };
        format!("Container {name} failed {} probe{then}", failure.probe)
    } else {
        return;
    };
    if o.memory.stopping.contains_key(&run.id) {
        return;
    }
    let own = o.probes.failure(run).and_then(|f| f.grace);
    let grace = own.unwrap_or_else(|| terminate::spec_grace(o.pod));
    plan.steps.push(Step::Kill {
        id: run.id.clone(),
        name: name.clone(),
        grace,
        why,
    });
}

fn start(o: &Observed, member: &Member, sandbox: &Sandbox, plan: &mut Plan) {
    let name = &member.spec.name;
    if let Some(failure) = o.memory.failures.get(name) {
        if let (_, _, Some(turns)) = failure.shown("", o.now) {
            plan.wake_at(turns);
        }
        if failure.retry_at() > o.now {
            return plan.wake_at(failure.retry_at());
        }
    }
    let last = o.view.newest(name);
    let attempt = next_attempt(o, name, last);
    let backoff = last.map_or(0, next_backoff);
    plan.steps.push(Step::Start {
        name: name.clone(),
        attempt,
        sandbox: sandbox.id.clone(),
        backoff,
    });
}

/// One more than the last run; when the runtime lost the runs, one more than the API knows of.
fn next_attempt(o: &Observed, name: &str, last: Option<&Instance>) -> u32 {
    let reported = || {
        let status = crate::status::reported_container(o.pod, name)?;
        status
            .container_id
            .as_ref()
            .map(|_| u32::try_from(status.restart_count).unwrap_or(0) + 1)
    };
    last.map(|l| l.attempt + 1).or_else(reported).unwrap_or(0)
}

/// The wait that will follow the next run: none after the very first, then 10 s doubling to 5 min, from the start
/// again after a run of ten minutes.
fn next_backoff(last: &Instance) -> u32 {
    let ran_long = last
        .exit()
        .is_some_and(|e| e.finished.duration_since(last.created) > BACKOFF_RESET);
    match last.backoff {
        0 => FIRST_BACKOFF,
        _ if ran_long => FIRST_BACKOFF,
        known => (known * 2).min(LONGEST_BACKOFF),
    }
}

/// Keeps the newest run and one dead one before it of each container, and sandboxes that still hold one of them.
fn collect_garbage(o: &Observed, plan: &mut Plan) {
    let removed = |plan: &Plan, id: &str| {
        plan.steps
            .iter()
            .any(|s| matches!(s, Step::RemoveContainer { id: i } if i == id))
    };
    for member in &o.pod.members {
        let dead = o
            .view
            .runs(&member.spec.name)
            .skip(1)
            .filter(|c| !c.running())
            .skip(1);
        for old in dead {
            if !removed(plan, &old.id) {
                plan.steps.push(Step::RemoveContainer { id: old.id.clone() });
            }
        }
    }
    let newest = o.view.newest_sandbox().map(|s| s.id.as_str());
    for old in o.view.sandboxes.iter().filter(|s| Some(s.id.as_str()) != newest) {
        let id = old.id.clone();
        if old.ready {
            plan.steps.push(Step::StopSandbox { id });
        } else if !o.view.containers.iter().any(|c| c.sandbox == old.id) {
            plan.steps.push(Step::RemoveSandbox { id });
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
