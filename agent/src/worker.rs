//! One task per pod: looks, plans, acts, reports, until nothing of the pod is left.
//!
//! Everything long is beside it: stops and probe checks run as tasks of their own whose ends wake the worker; only
//! getting images, sandboxes and container starts hold it, and a deletion interrupts those.

mod objects;
mod probes;
mod report;
mod start;
mod stop;

use crate::network::Network;
use crate::objects::{Held, Key, Objects};
use crate::recorder::Events;
use agent_cri::view::Viewer;
use agent_cri::{Executor, Recorder, RuntimeError};
use agent_pods::fields::Facts;
use agent_pods::memory::{Memory, Verdict};
use agent_pods::model::PodModel;
use agent_pods::plan::{Observed, Plan, Step, plan};
use agent_pods::probe::{Found, Kind, Outcomes, Prober};
use agent_pods::status::Host;
use agent_pods::view::View;
use agent_pods::volumes::{Needs, Sources, needs};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

/// Pause before what failed outside the planner's own back-off (the runtime or the API away) is tried again.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// Volumes follow their sources at once when told; this also heals a change that was missed.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);

/// What all workers of a node share.
pub struct Shared {
    /// Carries steps out.
    pub executor: Executor,
    /// The API, as the node.
    pub client: Client,
    /// Addresses and data path.
    pub network: Arc<dyn Network>,
    /// Config maps, secrets, tokens, services.
    pub objects: Objects,
    /// Events.
    pub events: Events,
    /// The node's addresses and runtime name.
    pub host: Host,
    /// The node's facts for the downward API.
    pub node: Facts,
    /// Whether the runtime gives pods user namespaces of their own.
    pub user_namespaces: bool,
}

/// What a worker is told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The newest version of the object; none once it is gone.
    pub pod: Option<Arc<Pod>>,
    /// Counts the wishes to look at the runtime again.
    pub looks: u64,
}

struct Checked {
    instance: String,
    container: String,
    kind: Kind,
    found: Found,
}

/// The owner of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    told: watch::Receiver<Told>,
    changes: broadcast::Receiver<Key>,
    pod: PodModel,
    needs: Needs,
    memory: Memory,
    viewer: Viewer,
    view: View,
    probers: BTreeMap<String, Prober>,
    outcomes: Outcomes,
    checks: JoinSet<Checked>,
    stops: JoinSet<(String, Result<(), RuntimeError>)>,
    held: Held,
    sources: Option<Sources>,
    refreshed: Option<Timestamp>,
    attached: Option<String>,
    sent: Option<PodStatus>,
    frozen: bool,
}

/// Whether the worker goes on.
enum Next {
    /// Look again at this time, or when something happens.
    Wait(Option<Timestamp>),
    /// Nothing is left of the pod.
    Done,
}

/// How a round of steps ended.
enum Round {
    /// Something was done: look again at once.
    Changed,
    /// Nothing more to do now.
    Settled,
}

impl Worker {
    /// For `pod`; `orphan` when only the runtime knows of it.
    #[must_use]
    pub fn new(shared: Arc<Shared>, told: watch::Receiver<Told>, pod: &Pod, orphan: bool) -> Self {
        let changes = shared.objects.changes();
        let pod = PodModel::new(pod.clone());
        let memory = Memory {
            seen: Some(Timestamp::now()),
            gone: orphan,
            ..Memory::default()
        };
        Self {
            needs: needs(&pod),
            shared,
            told,
            changes,
            pod,
            memory,
            viewer: Viewer::default(),
            view: View::default(),
            probers: BTreeMap::new(),
            outcomes: Outcomes::default(),
            checks: JoinSet::new(),
            stops: JoinSet::new(),
            held: Held::default(),
            sources: None,
            refreshed: None,
            attached: None,
            sent: None,
            frozen: orphan,
        }
    }

    /// Ends the pod before it begins.
    pub fn refuse(&mut self, verdict: Verdict) {
        let events = &self.shared.events;
        events.warning(&self.pod, None, verdict.reason, verdict.message.clone());
        self.memory.verdict = Some(verdict);
    }

    /// Works until nothing is left of the pod.
    pub async fn run(mut self) {
        loop {
            match self.round().await {
                Next::Done => return,
                Next::Wait(wake) => self.wait(wake).await,
            }
        }
    }

    async fn wait(&mut self, wake: Option<Timestamp>) {
        let pause = wake.map(|at| at.duration_since(Timestamp::now()).try_into().unwrap_or_default());
        let sleep = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = self.told.changed() => {
                // The manager is gone: the agent stops, and pods go on without it.
                if told.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            key = self.changes.recv() => match key {
                Ok(key) if !self.held.concerns(self.pod.namespace(), &key) => {}
                _ => self.objects_changed(),
            },
            Some(done) = self.checks.join_next() => self.checked(done.ok()),
            Some(done) = self.stops.join_next() => self.stopped(done.ok()),
            () = sleep => {}
        }
    }

    async fn round(&mut self) -> Next {
        self.take();
        loop {
            match self
                .viewer
                .view(self.shared.executor.runtime(), self.pod.uid())
                .await
            {
                Ok(view) => self.view = view,
                Err(error) => {
                    tracing::debug!(pod = self.pod.name(), %error, "the runtime cannot be asked");
                    return Next::Wait(Some(Timestamp::now() + AGAIN));
                }
            }
            self.follow_instances();
            self.attach();
            let plan = self.plan();
            let reported = self.report().await;
            match self.carry_out(&plan, reported).await {
                Round::Changed => self.take(),
                Round::Settled if self.memory.gone && self.memory.cleaned => return Next::Done,
                Round::Settled => return Next::Wait(self.wake(&plan, reported)),
            }
        }
    }

    /// Takes the newest version of the object in.
    fn take(&mut self) {
        let told = self.told.borrow_and_update().clone();
        let Some(pod) = told.pod else {
            self.memory.gone = true;
            return;
        };
        if older(&pod, &self.pod.pod) {
            return;
        }
        if pod.status != self.pod.pod.status {
            self.sent = None;
        }
        if pod.metadata.resource_version != self.pod.pod.metadata.resource_version {
            self.pod = PodModel::new((*pod).clone());
            self.needs = needs(&self.pod);
        }
    }

    fn plan(&mut self) -> Plan {
        let now = Timestamp::now();
        let plan = plan(&Observed {
            pod: &self.pod,
            view: &self.view,
            memory: &self.memory,
            probes: &self.outcomes,
            now,
        });
        if let Some(verdict) = &plan.verdict {
            self.shared
                .events
                .normal(&self.pod, None, verdict.reason, verdict.message.clone());
            self.memory.verdict = Some(verdict.clone());
        }
        let kills = plan.steps.iter().any(|s| matches!(s, Step::Kill { .. }));
        if kills && (self.pod.deleting() || self.memory.gone || self.memory.verdict.is_some()) {
            self.memory.stopping_since.get_or_insert(now);
        }
        plan
    }

    fn wake(&self, plan: &Plan, reported: bool) -> Option<Timestamp> {
        let now = Timestamp::now();
        let probes = self.probers.values().filter_map(Prober::next).min();
        let files = (self.view.any_running() && self.refreshed.is_some())
            .then(|| {
                self.refreshed
                    .map(|at| at + REFRESH)
                    .into_iter()
                    .chain(self.held.renew())
                    .min()
            })
            .flatten();
        let again = (!reported || (self.attached.is_none() && self.wants_device())).then(|| now + AGAIN);
        [plan.wake, probes, files, again].into_iter().flatten().min()
    }

    async fn carry_out(&mut self, plan: &Plan, reported: bool) -> Round {
        let mut changed = false;
        for step in &plan.steps {
            // The last status must be known before what it is made from is removed.
            let removes = matches!(
                step,
                Step::RemoveContainer { .. } | Step::RemoveSandbox { .. } | Step::CleanUp
            );
            let ending = self.pod.deleting() && !self.memory.gone;
            if removes && ending && !reported {
                return Round::Settled;
            }
            self.frozen |= removes && (ending || self.memory.gone);
            // No container runs before its pod's device is served by the data path.
            if matches!(step, Step::Start { .. }) && self.wants_device() && self.attached.is_none() {
                continue;
            }
            match self.step(step).await {
                Ok(done) => changed |= done,
                Err(()) => return Round::Settled,
            }
        }
        self.refresh().await;
        self.probe();
        if changed { Round::Changed } else { Round::Settled }
    }

    /// Carries one step out. Whether the runtime has to be looked at again, or an error that ends this round.
    async fn step(&mut self, step: &Step) -> Result<bool, ()> {
        let runtime = self.shared.executor.runtime().clone();
        let failed = match step {
            Step::CreateSandbox { attempt } => return self.create_sandbox(*attempt).await,
            Step::Start {
                name,
                attempt,
                sandbox,
                backoff,
            } => {
                return Ok(self.start(name, *attempt, sandbox, *backoff).await);
            }
            Step::Resize { containers } => {
                self.resize(containers).await;
                return Ok(true);
            }
            Step::Kill { id, name, grace, why } => {
                self.kill(id, name, *grace, why);
                return Ok(false);
            }
            Step::RemoveContainer { id } => runtime.remove(id).await.err().map(|e| e.to_string()),
            Step::StopSandbox { id } => runtime.stop_sandbox(id).await.err().map(|e| e.to_string()),
            Step::RemoveSandbox { id } => runtime.remove_sandbox(id).await.err().map(|e| e.to_string()),
            Step::CleanUp => self.clean_up().await.err(),
            Step::DeleteObject => self.delete().await.err(),
        };
        match failed {
            None => Ok(!matches!(step, Step::DeleteObject)),
            Some(error) => {
                tracing::warn!(
                    pod = self.pod.name(),
                    ?step,
                    error,
                    "step failed, will be tried again"
                );
                self.pause().await;
                Ok(true)
            }
        }
    }

    /// A stop or removal that fails is tried again: the runtime has races there.
    async fn pause(&self) {
        tokio::time::sleep(AGAIN.try_into().unwrap_or_default()).await;
    }
}

/// The reason shown while a pod's volumes are not there.
const VOLUMES: &str = "ContainerCreating";

/// Whether `pod` is an older version than `known`: the watch may lag behind our own writes.
fn older(pod: &Pod, known: &Pod) -> bool {
    let version = |p: &Pod| {
        p.metadata
            .resource_version
            .as_deref()
            .and_then(|v| v.parse::<u64>().ok())
    };
    matches!((version(pod), version(known)), (Some(a), Some(b)) if a < b)
}
