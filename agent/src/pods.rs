//! Gives each of the node's pods a worker, tells workers what changed, and ends what the API knows nothing of.

use crate::worker::{Shared, Told, Worker};
use agent_pods::admit;
use agent_pods::memory::Verdict;
use agent_pods::names::{ANNOTATION_GRACE, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use k8s_cri::v1::PodSandbox;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_client::Cache;
use machinery_lifecycle::Shutdown;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// The runtime is listed at this pace whatever it tells: its event streams start late (see `agent_cri::events`) and
/// may lose events. Two calls of a few milliseconds.
const RELIST: Duration = Duration::from_secs(10);
/// After a hint the list waits for so long, since events come in bunches.
const SETTLE: Duration = Duration::from_millis(5);

/// What the runtime has of each pod, as a text that changes when anything does.
type Snapshot = HashMap<String, Vec<(String, i32)>>;

struct Assigned {
    told: watch::Sender<Told>,
    orphan: bool,
}

/// The node's pods.
pub struct Pods {
    shared: Arc<Shared>,
    cache: Cache<Pod>,
    assigned: BTreeMap<String, Assigned>,
    workers: JoinSet<String>,
    snapshot: Snapshot,
}

impl Pods {
    /// For the pods in `cache`, which someone else runs.
    #[must_use]
    pub fn new(shared: Arc<Shared>, cache: Cache<Pod>) -> Self {
        let (assigned, snapshot) = (BTreeMap::new(), Snapshot::new());
        Self {
            shared,
            cache,
            assigned,
            workers: JoinSet::new(),
            snapshot,
        }
    }

    /// Works until shutdown; workers are dropped then, and their containers run on.
    pub async fn run(mut self, mut hints: mpsc::Receiver<()>, shutdown: Shutdown) {
        let mut changes = self.cache.changes();
        tokio::select! {
            // Nothing is ended before the list of what is wanted is complete.
            () = self.cache.synced() => {}
            () = shutdown.requested() => return,
        }
        let mut relist = interval(RELIST);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.assign();
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                changed = changes.changed() => match changed {
                    Ok(()) => self.assign(),
                    Err(_) => return,
                },
                Some(()) = hints.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    // Hints of the same bunch.
                    while hints.try_recv().is_ok() {}
                    self.relist().await;
                }
                _ = relist.tick() => self.relist().await,
                Some(done) = self.workers.join_next() => self.ended(done),
            }
        }
    }

    /// Tells each worker the newest version of its pod, makes missing workers, tells those of gone pods.
    fn assign(&mut self) {
        let pods = self.cache.list();
        let mut there = HashSet::new();
        for pod in pods {
            let Some(uid) = pod.metadata.uid.clone() else {
                continue;
            };
            there.insert(uid.clone());
            match self.assigned.get(&uid) {
                Some(assigned) => tell(assigned, Some(pod)),
                None => self.hire(uid, &pod, false),
            }
        }
        for (uid, assigned) in &self.assigned {
            if !assigned.orphan && !there.contains(uid) {
                tell(assigned, None);
            }
        }
    }

    fn hire(&mut self, uid: String, pod: &Arc<Pod>, orphan: bool) {
        let pod_told = (!orphan).then(|| Arc::clone(pod));
        let (told, receiver) = watch::channel(Told {
            pod: pod_told,
            looks: 0,
        });
        let mut worker = Worker::new(Arc::clone(&self.shared), receiver, pod, orphan);
        if let Some(verdict) = self.refusal(pod) {
            worker.refuse(verdict);
        }
        let name = uid.clone();
        self.workers.spawn(async move {
            worker.run().await;
            name
        });
        self.assigned.insert(uid, Assigned { told, orphan });
    }

    /// Why a pod cannot be beside those that have workers.
    fn refusal(&self, pod: &Pod) -> Option<Verdict> {
        let has_worker = |other: &&Arc<Pod>| {
            let uid = other.metadata.uid.as_ref();
            uid.is_some_and(|uid| self.assigned.contains_key(uid))
        };
        let pods = self.cache.list();
        admit::refusal(pod, pods.iter().filter(has_worker).map(|other| other.as_ref()))
    }

    fn ended(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                self.assigned.remove(&uid);
                self.snapshot.remove(&uid);
            }
            Err(error) => {
                // A worker that panicked: the next list finds its pod without one.
                tracing::error!(%error, "a pod's worker ended unexpectedly, it will be replaced");
                self.assigned.retain(|_, a| a.told.receiver_count() > 0);
                self.assign();
            }
        }
    }

    /// Lists the runtime, tells workers whose pods changed, and takes care of orphans.
    async fn relist(&mut self) {
        let runtime = self.shared.executor.runtime();
        let (sandboxes, containers) =
            match tokio::try_join!(runtime.sandboxes(None), runtime.containers(None)) {
                Ok(lists) => lists,
                Err(error) => return tracing::debug!(%error, "the runtime cannot be listed"),
            };
        let mut now = Snapshot::new();
        for sandbox in &sandboxes {
            note(&mut now, &sandbox.labels, &sandbox.id, sandbox.state);
        }
        for container in &containers {
            note(&mut now, &container.labels, &container.id, container.state);
        }
        now.values_mut().for_each(|list| list.sort());
        for (uid, assigned) in &self.assigned {
            if now.get(uid) != self.snapshot.get(uid) {
                assigned.told.send_modify(|t| t.looks += 1);
            }
        }
        self.snapshot = now;
        for sandbox in sandboxes {
            self.adopt_orphan(&sandbox);
        }
    }

    /// A sandbox of a pod that the API does not know on this node is stopped and removed.
    fn adopt_orphan(&mut self, sandbox: &PodSandbox) {
        let label = |name: &str| sandbox.labels.get(name).cloned();
        let Some(uid) = label(LABEL_POD_UID).filter(|uid| !self.assigned.contains_key(uid)) else {
            return;
        };
        let grace = sandbox
            .annotations
            .get(ANNOTATION_GRACE)
            .and_then(|g| g.parse().ok());
        let metadata = ObjectMeta {
            name: label(LABEL_POD_NAME),
            namespace: label(LABEL_POD_NAMESPACE),
            uid: Some(uid.clone()),
            ..ObjectMeta::default()
        };
        let spec = PodSpec {
            termination_grace_period_seconds: grace,
            ..PodSpec::default()
        };
        tracing::info!(
            pod = metadata.name,
            uid,
            "the runtime runs a pod that is not assigned to this node; ending it"
        );
        let pod = Arc::new(Pod {
            metadata,
            spec: Some(spec),
            status: None,
        });
        self.hire(uid, &pod, true);
    }
}

fn tell(assigned: &Assigned, pod: Option<Arc<Pod>>) {
    let version = |p: &Option<Arc<Pod>>| p.as_ref().and_then(|p| p.metadata.resource_version.clone());
    assigned.told.send_if_modified(|told| {
        let changed = version(&told.pod) != version(&pod) || told.pod.is_some() != pod.is_some();
        if changed {
            told.pod = pod;
        }
        changed
    });
}

fn note(snapshot: &mut Snapshot, labels: &HashMap<String, String>, id: &str, state: i32) {
    if let Some(uid) = labels.get(LABEL_POD_UID) {
        snapshot
            .entry(uid.clone())
            .or_default()
            .push((id.to_owned(), state));
    }
}
