//! Pod address ranges of nodes.

use std::sync::Arc;

use control_plane_controllers::ipam::{Pool, plan};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use machinery_plan::Plan;
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

/// The one key: all nodes are planned for together.
const NODES: &str = "nodes";

pub(super) struct Ranges {
    caches: Caches,
    pools: Vec<Pool>,
}

impl Ranges {
    pub(super) fn new(caches: &Caches, pools: Vec<Pool>) -> Self {
        Self {
            caches: caches.clone(),
            pools,
        }
    }
}

pub(super) fn connect(_: &Arc<Ranges>, caches: &Caches, queue: &Queue<&'static str>) {
    let to = queue.clone();
    caches.nodes.on_change(move |change| {
        let has_range = |node: &Arc<Node>| node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
        if !change.new.as_ref().is_some_and(has_range) {
            to.add(NODES);
        }
    });
}

impl Controller for Ranges {
    type Key = &'static str;
    type Observed = Vec<Arc<Node>>;

    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    async fn observe(&self, _: &Self::Key) -> Result<Self::Observed, Failure> {
        Ok(self.caches.nodes.list())
    }

    fn plan(&self, _: &Self::Key, nodes: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        plan(&nodes, &self.pools)
    }
}
