//! Collection of pods that nobody else collects.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_plane_controllers::pod::{is_terminal, is_terminating, node_name};
use control_plane_controllers::pod_gc::{self as planner, ENDED_KEPT, NodeState, Observed};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_NODE;

/// How long after a pod has ended the number of ended pods is looked at: many end together.
const ENDED_DELAY: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    Pod(Key),
    Ended,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Ended => f.write_str("ended pods"),
        }
    }
}

pub(super) enum Seen {
    Nothing,
    Pod(Observed),
    Ended(Vec<Arc<Pod>>),
}

pub(super) struct Collector {
    caches: Caches,
    missing: Mutex<HashMap<String, Timestamp>>,
}

impl Collector {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
            missing: Mutex::default(),
        }
    }

    fn missing_since(&self, node: &str) -> Timestamp {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing.entry(node.to_owned()).or_insert_with(Timestamp::now)
    }

    fn is_back(&self, node: &str) {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }

    fn node_of(&self, pod: &Pod) -> NodeState {
        let name = node_name(pod);
        if name.is_empty() {
            NodeState::Unplaced
        } else if self.caches.nodes.get(&Key::new("", name)).is_some() {
            NodeState::Exists
        } else {
            NodeState::MissingSince(self.missing_since(name))
        }
    }
}

pub(super) fn connect(collector: &Arc<Collector>, caches: &Caches, queue: &Queue<Work>) {
    let (to, others) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        if is_terminal(pod) && !change.old.as_ref().is_some_and(|old| is_terminal(old)) {
            to.add_after(Work::Ended, ENDED_DELAY);
        }
        let unplaced = node_name(pod).is_empty();
        let lost = !unplaced && others.nodes.get(&Key::new("", node_name(pod))).is_none();
        if lost || (unplaced && is_terminating(pod)) {
            to.add(Work::Pod(change.key.clone()));
        }
    });
    let (to, others, collector) = (queue.clone(), caches.clone(), Arc::clone(collector));
    caches.nodes.on_change(move |change| match &change.new {
        Some(_) => collector.is_back(&change.key.name),
        None => {
            collector.missing_since(&change.key.name);
            let pods = others.pods.indexed(BY_NODE, &change.key.name);
            pods.iter()
                .for_each(|pod| to.add(Work::Pod(Key::of(&pod.metadata))));
        }
    });
}

impl Controller for Collector {
    type Key = Work;
    type Observed = Seen;

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    async fn observe(&self, work: &Work) -> Result<Seen, Failure> {
        Ok(match work {
            Work::Ended => Seen::Ended(self.caches.pods.list()),
            Work::Pod(key) => match self.caches.pods.get(key) {
                Some(pod) => Seen::Pod(Observed {
                    node: self.node_of(&pod),
                    pod,
                }),
                None => Seen::Nothing,
            },
        })
    }

    fn plan(&self, _: &Work, seen: Seen, _: &Attempt, now: Timestamp) -> Plan {
        match seen {
            Seen::Nothing => Plan::nothing(),
            Seen::Pod(observed) => planner::plan(&observed, now),
            Seen::Ended(pods) => planner::plan_ended(&pods, ENDED_KEPT),
        }
    }
}
