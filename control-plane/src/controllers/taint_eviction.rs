//! Eviction by taint.

use std::sync::Arc;

use control_plane_controllers::pod::node_name;
use control_plane_controllers::taint_eviction::{self as planner, Observed};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_NODE;

pub(super) struct Evictions {
    caches: Caches,
}

impl Evictions {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Evictions>, caches: &Caches, queue: &Queue<Key>) {
    let (to, others) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        let placed = change
            .old
            .as_ref()
            .is_none_or(|old| node_name(old) != node_name(pod) || old.spec != pod.spec);
        let node = others.nodes.get(&Key::new("", node_name(pod)));
        if placed && node.is_some_and(|node| evicts(&node).next().is_some()) {
            to.add(change.key.clone());
        }
    });
    let (to, others) = (queue.clone(), caches.clone());
    caches.nodes.on_change(move |change| {
        let taints =
            |node: &Option<Arc<Node>>| node.iter().flat_map(|n| evicts(n).cloned()).collect::<Vec<_>>();
        let now = taints(&change.new);
        if !now.is_empty() && now != taints(&change.old) {
            others
                .pods
                .indexed(BY_NODE, &change.key.name)
                .iter()
                .for_each(|pod| to.add(Key::of(&pod.metadata)));
        }
    });
}

fn evicts(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

impl Controller for Evictions {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(pod) = self.caches.pods.get(key) else {
            return Ok(None);
        };
        let node = self.caches.nodes.get(&Key::new("", node_name(&pod)));
        Ok(node.map(|node| Observed { pod, node }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
