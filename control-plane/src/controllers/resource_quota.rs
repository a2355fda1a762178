//! ResourceQuotas.

use std::sync::Arc;

use control_plane_controllers::pod::is_terminal;
use control_plane_controllers::resource_quota::{self as planner, Observed};
use jiff::Timestamp;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::{Caches, Metadata};

pub(super) struct Quotas {
    caches: Caches,
    metadata: Metadata,
}

impl Quotas {
    pub(super) fn new(caches: &Caches, metadata: &Metadata) -> Self {
        Self {
            caches: caches.clone(),
            metadata: metadata.clone(),
        }
    }
}

pub(super) fn connect(quotas: &Arc<Quotas>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.quotas.on_change(move |change| {
        // Charges by the API server are not answered by a count: the object that they are for may not be there yet.
        let limits = |quota: &k8s_openapi::api::core::v1::ResourceQuota| {
            let status = quota.status.as_ref().and_then(|status| status.hard.clone());
            (quota.spec.clone(), status)
        };
        let same = matches!((&change.old, &change.new), (Some(old), Some(new)) if limits(old) == limits(new));
        if !same {
            to.add(change.key.clone());
        }
    });
    let again = {
        let (quotas, to) = (caches.quotas.clone(), queue.clone());
        move |namespace: &str| {
            for quota in quotas.in_namespace(namespace) {
                to.add(Key::of(&quota.metadata));
            }
        }
    };
    let of_pods = again.clone();
    caches.pods.on_change(move |change| {
        let ended = change.new.as_ref().is_some_and(|pod| is_terminal(pod));
        if ended && !change.old.as_ref().is_some_and(|pod| is_terminal(pod)) {
            of_pods(&change.key.namespace);
        }
    });
    let of_services = again.clone();
    caches.services.on_change(move |change| {
        if change.old.is_some() {
            of_services(&change.key.namespace);
        }
    });
    quotas.metadata.on_removed(again);
}

impl Controller for Quotas {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        Ok(self.caches.quotas.get(key).map(|quota| Observed {
            quota,
            pods: self.caches.pods.in_namespace(&key.namespace),
            services: self.caches.services.in_namespace(&key.namespace),
            claims: self.caches.claims.in_namespace(&key.namespace),
            counts: self.metadata.graph().counts(&key.namespace).into_iter().collect(),
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        observed.as_ref().map_or_else(Plan::nothing, planner::plan)
    }
}
