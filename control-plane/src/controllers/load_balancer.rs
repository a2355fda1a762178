//! Addresses of services of type LoadBalancer.

use std::sync::Arc;

use control_plane_controllers::ipam::Range;
use control_plane_controllers::load_balancer::plan;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use machinery_client::Change;
use machinery_plan::Plan;
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

/// The one key: all services are planned for together.
const SERVICES: &str = "services";

pub(super) struct Addresses {
    caches: Caches,
    pools: Vec<Range>,
}

impl Addresses {
    pub(super) fn new(caches: &Caches, pools: Vec<Range>) -> Self {
        Self {
            caches: caches.clone(),
            pools,
        }
    }
}

pub(super) fn connect(_: &Arc<Addresses>, caches: &Caches, queue: &Queue<&'static str>) {
    let to = queue.clone();
    caches.services.on_change(move |change| {
        if matters(change) {
            to.add(SERVICES);
        }
    });
}

/// Most services have nothing to do with balancers, and most changes change nothing about them.
fn matters(change: &Change<Service>) -> bool {
    let part = |service: &Arc<Service>| (service.spec.clone(), service.status.clone());
    let balancer = |service: &Arc<Service>| {
        let spec = service.spec.as_ref();
        let external = spec.is_some_and(|s| s.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()));
        spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer") || external
    };
    change.versions().any(balancer) && change.old.as_ref().map(part) != change.new.as_ref().map(part)
}

impl Controller for Addresses {
    type Key = &'static str;
    type Observed = Vec<Arc<Service>>;

    fn name(&self) -> &'static str {
        "service-controller"
    }

    async fn observe(&self, _: &Self::Key) -> Result<Self::Observed, Failure> {
        Ok(self.caches.services.list())
    }

    fn plan(&self, _: &Self::Key, services: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        plan(&services, &self.pools)
    }
}
