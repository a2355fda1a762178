//! One task per pod: looks, plans, acts, reports, until nothing of the pod is left.
//!
//! Everything long is beside it: stops and probe checks run as tasks of their own whose ends wake the worker; only
//! getting images, sandboxes and container starts hold it, and a deletion interrupts those.

use crate::network::{Addresses, Network};
use crate::objects::{Held, Key, Objects};
use crate::recorder::Events;
use crate::report;
use agent_cri::view::Viewer;
use agent_cri::{Executor, Recorder, RuntimeError, StartError, StartInput};
use agent_pods::fields::Facts;
use agent_pods::memory::Memory;
use agent_pods::model::{PodModel, Role};
use agent_pods::plan::{Observed, Plan, Step, plan};
use agent_pods::probe::{Found, Kind, Outcomes, Prober};
use agent_pods::status::{Host, reported_container, status};
use agent_pods::view::{State, View};
use agent_pods::volumes::{Needs, Sources, needs};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

/// Pause before what failed outside the planner's own back-off (the runtime or the API away) is tried again.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait for an answer of the API.
const API: std::time::Duration = std::time::Duration::from_secs(10);
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

    /// What waits for an object that was missing is tried again now.
    fn objects_changed(&mut self) {
        self.refreshed = None;
        self.sources = None;
        self.memory
            .failures
            .retain(|_, f| f.reason != "CreateContainerConfigError" && f.reason != VOLUMES);
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

    async fn create_sandbox(&mut self, attempt: u32) -> Result<bool, ()> {
        match self.try_sandbox(attempt).await {
            Ok(()) => self.memory.sandbox_failure = None,
            Err(why) => {
                self.shared
                    .events
                    .warning(&self.pod, None, "FailedCreatePodSandBox", why.clone());
                self.memory.sandbox_failed(attempt, why, Timestamp::now());
            }
        }
        Ok(true)
    }

    async fn try_sandbox(&mut self, attempt: u32) -> Result<(), String> {
        if self.pod.spec().host_users == Some(false) && !self.shared.user_namespaces {
            return Err(
                "the pod asks for a user namespace of its own (hostUsers: false), which this container \
                runtime would silently ignore; use containerd 2.x"
                    .to_owned(),
            );
        }
        let addresses = match self.pod.host_network() {
            true => Addresses::default(),
            false => self.shared.network.allocate(self.pod.uid())?,
        };
        let shared = Arc::clone(&self.shared);
        let made = shared
            .executor
            .create_sandbox(&self.pod, attempt, &addresses.annotations);
        let mut told = self.told.clone();
        tokio::select! {
            made = made => made.map(|_| ()),
            () = deleted(&mut told) => Err("the pod was deleted meanwhile".to_owned()),
        }
    }

    /// Starts a container, unless the pod is deleted meanwhile. Whether something happened.
    async fn start(&mut self, name: &str, attempt: u32, sandbox: &str, backoff: u32) -> bool {
        match self.try_start(name, attempt, sandbox, backoff).await {
            Ok(()) => {
                self.memory.failures.remove(name);
            }
            Err(error) => {
                tracing::debug!(pod = self.pod.name(), container = name, %error, "container not started");
                self.memory
                    .failed(name, error.reason, error.message, Timestamp::now());
            }
        }
        true
    }

    async fn try_start(
        &mut self,
        name: &str,
        attempt: u32,
        sandbox: &str,
        backoff: u32,
    ) -> Result<(), StartError> {
        let sources = self.sources().await.map_err(|m| StartError {
            reason: VOLUMES,
            message: m,
        })?;
        let facts = self.facts();
        let shared = Arc::clone(&self.shared);
        if let Err(message) = shared.executor.set_up_volumes(&self.pod, &sources, &facts) {
            shared
                .events
                .warning(&self.pod, None, "FailedMount", message.clone());
            return Err(StartError {
                reason: VOLUMES,
                message,
            });
        }
        let Some(member) = self.pod.member(name) else {
            return Ok(());
        };
        let target = member
            .target
            .as_deref()
            .and_then(|t| self.view.newest(t))
            .map(|i| i.id.clone());
        let input = StartInput {
            member,
            attempt,
            backoff,
            sandbox,
            sandbox_attempt: self.view.newest_sandbox().map_or(0, |s| s.attempt),
            target: target.as_deref(),
            sources: &sources,
            facts: &facts,
        };
        self.announce_back_off(name);
        let mut told = self.told.clone();
        tokio::select! {
            done = shared.executor.start(&self.pod, &input, &shared.events) => done,
            () = deleted(&mut told) => Ok(()),
        }
    }

    fn announce_back_off(&self, name: &str) {
        let Some(failure) = self
            .memory
            .failures
            .get(name)
            .filter(|f| f.reason == "ErrImagePull")
        else {
            return;
        };
        let image = self
            .pod
            .member(name)
            .and_then(|m| m.spec.image.as_deref())
            .unwrap_or_default();
        let message = format!("Back-off pulling image {image:?}: {}", failure.message);
        self.shared
            .events
            .normal(&self.pod, Some(name), "BackOff", message);
    }

    /// The objects the pod refers to; the last known ones while the API does not answer.
    async fn sources(&mut self) -> Result<Sources, String> {
        let shared = Arc::clone(&self.shared);
        match shared
            .objects
            .sources(&self.pod, &self.needs, &mut self.held)
            .await
        {
            Ok(sources) => {
                self.sources = Some(sources.clone());
                Ok(sources)
            }
            Err(error) => self.sources.clone().ok_or_else(|| error.to_string()),
        }
    }

    fn facts(&self) -> Facts {
        let ips = match self.pod.host_network() {
            true => self.shared.host.ips.clone(),
            false => self
                .view
                .newest_sandbox()
                .map(|s| s.ips.clone())
                .unwrap_or_default(),
        };
        Facts {
            pod_ips: ips,
            ..self.shared.node.clone()
        }
    }

    /// Where the pod's containers are reached.
    fn ip(&self) -> Option<IpAddr> {
        self.facts().pod_ips.first().copied()
    }

    fn kill(&mut self, id: &str, name: &str, grace: i64, why: &str) {
        let by = Timestamp::now() + SignedDuration::from_secs(grace);
        // A shortened stop is the same stop to people.
        if self.memory.stopping.insert(id.to_owned(), by).is_none() {
            self.shared
                .events
                .normal(&self.pod, Some(name), "Killing", why.to_owned());
        }
        let (shared, pod, ip) = (Arc::clone(&self.shared), self.pod.clone(), self.ip());
        let (id, name) = (id.to_owned(), name.to_owned());
        self.stops.spawn(async move {
            let member = pod.member(&name);
            let done = shared
                .executor
                .stop(&pod, member, &id, grace, ip, &shared.events)
                .await;
            (id, done)
        });
    }

    fn stopped(&mut self, done: Option<(String, Result<(), RuntimeError>)>) {
        let Some((id, result)) = done else { return };
        if let Err(error) = result {
            tracing::warn!(pod = self.pod.name(), container = id, %error, "container not stopped, will be tried again");
        }
        self.memory.stopping.remove(&id);
    }

    async fn clean_up(&mut self) -> Result<(), String> {
        self.shared.executor.clean_up(&self.pod).await?;
        if !self.pod.host_network() {
            self.shared.network.release(self.pod.uid())?;
        }
        self.memory.cleaned = true;
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), String> {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), self.pod.namespace());
        let uid = Some(self.pod.uid().to_owned());
        let preconditions = Some(Preconditions {
            uid,
            resource_version: None,
        });
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions,
            ..DeleteParams::default()
        };
        match in_time(api.delete(self.pod.name(), &params)).await {
            Ok(_) => Ok(()),
            // Gone, or another pod by this name: either way it is not ours any more.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                self.memory.gone = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reports the status if it changed. False when the API did not take it.
    async fn report(&mut self) -> bool {
        if self.frozen || self.memory.gone {
            return true;
        }
        let observed = Observed {
            pod: &self.pod,
            view: &self.view,
            memory: &self.memory,
            probes: &self.outcomes,
            now: Timestamp::now(),
        };
        let new = status(&observed, &self.shared.host);
        if self.sent.as_ref() == Some(&new) {
            return true;
        }
        let Some(patch) = report::patch(self.pod.uid(), self.pod.reported(), &new) else {
            return true;
        };
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), self.pod.namespace());
        match api
            .patch_status(self.pod.name(), &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(pod) => self.took(pod, new),
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => true,
            Err(error) => {
                tracing::debug!(pod = self.pod.name(), %error, "status not reported, will be tried again");
                false
            }
        }
    }

    fn took(&mut self, pod: Pod, sent: PodStatus) -> bool {
        for name in crash_loops(&sent) {
            let before = reported_container(&self.pod, name).and_then(|s| s.state.as_ref()?.waiting.as_ref());
            if before.and_then(|w| w.reason.as_deref()) != Some(CRASH_LOOP) {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    self.pod.name()
                );
                self.shared
                    .events
                    .warning(&self.pod, Some(name), "BackOff", message);
            }
        }
        self.sent = Some(sent);
        self.pod = PodModel::new(pod);
        true
    }

    /// Probes follow the running instances; those of ended ones go.
    fn follow_instances(&mut self) {
        let running: Vec<_> = self.view.containers.iter().filter(|c| c.running()).collect();
        self.probers.retain(|id, _| running.iter().any(|c| c.id == *id));
        self.memory
            .stopping
            .retain(|id, _| running.iter().any(|c| c.id == *id));
        for run in running {
            let (State::Running { started }, Some(member)) = (&run.state, self.pod.member(&run.name)) else {
                continue;
            };
            if self.probers.contains_key(&run.id) || !matches!(member.role, Role::Regular | Role::Sidecar) {
                continue;
            }
            let old = reported_container(&self.pod, &run.name);
            let same = |id: &str| id.ends_with(&run.id);
            let was_ready = old.is_some_and(|s| s.ready && s.container_id.as_deref().is_some_and(same));
            let prober = Prober::new(member, *started, was_ready);
            self.outcomes.set(&run.id, prober.outcome().clone());
            self.probers.insert(run.id.clone(), prober);
        }
    }

    /// Starts the checks that are due.
    fn probe(&mut self) {
        let now = Timestamp::now();
        let ip = self.ip();
        let stopping = self.pod.deleting() || self.memory.gone;
        for (id, prober) in &mut self.probers {
            let Some(run) = self.view.containers.iter().find(|c| c.id == *id) else {
                continue;
            };
            let Some(member) = self.pod.member(&run.name).cloned() else {
                continue;
            };
            for (kind, probe) in prober.due(now) {
                // A pod that is being stopped is only asked whether it is still ready.
                if stopping && kind != Kind::Readiness {
                    continue;
                }
                let (runtime, id, member) =
                    (self.shared.executor.runtime().clone(), id.clone(), member.clone());
                self.checks.spawn(async move {
                    let found = agent_cri::probes::check(&runtime, &id, &member, &probe, ip).await;
                    Checked {
                        instance: id,
                        container: member.spec.name,
                        kind,
                        found,
                    }
                });
            }
        }
    }

    fn checked(&mut self, checked: Option<Checked>) {
        let Some(Checked {
            instance,
            container,
            kind,
            found,
        }) = checked
        else {
            return;
        };
        if let Found::Fail(why) = &found {
            let name = kind.name();
            let message = format!("{}{} probe failed: {why}", name[..1].to_uppercase(), &name[1..]);
            self.shared
                .events
                .warning(&self.pod, Some(&container), "Unhealthy", message);
        }
        if let Some(prober) = self.probers.get_mut(&instance) {
            prober.record(kind, &found, Timestamp::now());
            self.outcomes.set(&instance, prober.outcome().clone());
        }
    }

    /// Brings volumes made of files up to date after a change, for a new token, and now and then.
    async fn refresh(&mut self) {
        let now = Timestamp::now();
        let due = self.refreshed.is_none_or(|at| now >= at + REFRESH)
            || self.held.renew().is_some_and(|at| now >= at);
        if !due || !self.view.any_running() || self.memory.gone || self.pod.deleting() {
            return;
        }
        self.refreshed = Some(now);
        let Ok(sources) = self.sources().await else { return };
        let facts = self.facts();
        if let Err(message) = self.shared.executor.refresh_volumes(&self.pod, &sources, &facts) {
            self.shared
                .events
                .warning(&self.pod, None, "FailedMount", message);
        }
    }

    fn wants_device(&self) -> bool {
        !self.pod.host_network() && self.view.ready_sandbox().is_some() && !self.memory.gone
    }

    /// Connects a new sandbox to the data path before its containers start, and an adopted one again.
    fn attach(&mut self) {
        let Some(sandbox) = self.view.ready_sandbox().map(|s| s.id.clone()) else {
            return;
        };
        if !self.wants_device() || self.attached.as_ref() == Some(&sandbox) {
            return;
        }
        match self.shared.network.attach(self.pod.uid()) {
            Ok(()) => self.attached = Some(sandbox),
            Err(message) => {
                self.attached = None;
                self.shared
                    .events
                    .warning(&self.pod, None, "FailedAttachDatapath", message);
            }
        }
    }
}

/// The reason shown while a pod's volumes are not there.
const VOLUMES: &str = "ContainerCreating";

/// An answer of the API, which a pod's worker does not wait for without end.
async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = |_| kube::Error::Service("the API server does not answer".into());
    tokio::time::timeout(API, call).await.map_err(late)?
}

const CRASH_LOOP: &str = "CrashLoopBackOff";

/// Containers that wait for their next run.
fn crash_loops(status: &PodStatus) -> impl Iterator<Item = &str> {
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.filter(|s| {
        let waiting = s.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|w| w.reason.as_deref() == Some(CRASH_LOOP))
    })
    .map(|s| s.name.as_str())
}

/// Ready when the pod is to be stopped.
async fn deleted(told: &mut watch::Receiver<Told>) {
    let ending = |t: &Told| {
        t.pod
            .as_ref()
            .is_none_or(|p| p.metadata.deletion_timestamp.is_some())
    };
    if told.wait_for(ending).await.is_err() {
        std::future::pending().await
    }
}

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
