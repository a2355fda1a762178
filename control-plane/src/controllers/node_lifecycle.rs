//! Node lifecycle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use control_plane_controllers::node_lifecycle::{self as planner, Observed};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use machinery_client::Change;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_NODE;

pub(super) struct Nodes {
    caches: Caches,
    alive_at: Mutex<HashMap<String, Timestamp>>,
}

impl Nodes {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
            alive_at: Mutex::default(),
        }
    }

    fn alive(&self, node: &str) {
        self.alive_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.to_owned(), Timestamp::now());
    }

    fn forget(&self, node: &str) {
        self.alive_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }

    /// A node that has given no sign of life since we started has its grace from now on.
    fn alive_at(&self, node: &str) -> Timestamp {
        let mut all = self.alive_at.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(node.to_owned()).or_insert_with(Timestamp::now)
    }
}

pub(super) fn connect(nodes: &Arc<Nodes>, caches: &Caches, queue: &Queue<Key>) {
    let (to, seen) = (queue.clone(), Arc::clone(nodes));
    caches.nodes.on_change(move |change| {
        match &change.new {
            None => seen.forget(&change.key.name),
            Some(_) if has_reported(change) => seen.alive(&change.key.name),
            Some(_) => {}
        }
        to.add(change.key.clone());
    });
    let seen = Arc::clone(nodes);
    caches.node_leases.on_change(move |change| {
        if is_renewed(change) {
            seen.alive(&change.key.name);
        }
    });
}

fn is_renewed(change: &Change<Lease>) -> bool {
    let renewed = |lease: &Option<Arc<Lease>>| {
        lease
            .as_ref()
            .and_then(|lease| lease.spec.as_ref()?.renew_time.clone())
    };
    change.new.is_some() && renewed(&change.old) != renewed(&change.new)
}

/// Whether the node itself has written its status; our own writes leave the time of the heartbeat as it is.
fn has_reported(change: &Change<Node>) -> bool {
    let heartbeat = |node: &Option<Arc<Node>>| {
        let conditions = node.as_ref()?.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .filter_map(|condition| condition.last_heartbeat_time.clone())
            .max()
    };
    heartbeat(&change.old) != heartbeat(&change.new)
}

impl Controller for Nodes {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "node-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(node) = self.caches.nodes.get(key) else {
            return Ok(None);
        };
        let pods = self.caches.pods.indexed(BY_NODE, &key.name);
        Ok(Some(Observed {
            node,
            alive_at: self.alive_at(&key.name),
            pods,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
