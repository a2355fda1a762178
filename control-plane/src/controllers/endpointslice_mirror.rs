//! Slices of Endpoints that somebody else wrote.

use std::sync::Arc;

use control_plane_controllers::endpointslice::mirror::{self as planner, MANAGER, Observed};
use control_plane_controllers::endpointslice::{MANAGED_BY, SERVICE_NAME};
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_SERVICE;

pub(super) struct Mirrors {
    caches: Caches,
}

impl Mirrors {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Mirrors>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .services
        .on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches
        .endpoints
        .on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.slices.on_change(move |change| {
        let services = change.versions().filter_map(|slice| service_of(slice));
        services.for_each(|key| to.add(key));
    });
}

/// The service of a slice that was written here.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    let name = labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(Key::new(slice.metadata.namespace.clone()?, name))
}

impl Controller for Mirrors {
    type Key = Key;
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let mut slices = self.caches.slices.indexed(BY_SERVICE, &key.to_string());
        slices.retain(|slice| service_of(slice).is_some());
        Ok(Observed {
            service: self.caches.services.get(key),
            endpoints: self.caches.endpoints.get(key),
            slices,
        })
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        planner::plan(&observed)
    }
}
