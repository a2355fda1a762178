//! EndpointSlices.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_plane_controllers::endpointslice::topology::{self, zone_of};
use control_plane_controllers::endpointslice::{
    self as planner, MANAGED_BY, MANAGER, Observed, SERVICE_NAME,
};
use control_plane_controllers::pod::node_name;
use control_plane_controllers::{pod, selector};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_client::Change;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;
use super::caches::BY_SERVICE;

pub(super) struct Slices {
    caches: Caches,
}

impl Slices {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }
}

pub(super) fn connect(_: &Arc<Slices>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches
        .services
        .on_change(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.slices.on_change(move |change| {
        change
            .versions()
            .filter_map(|s| service_of(s))
            .for_each(|key| to.add(key))
    });
    let (to, others) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        services_of(&others, change)
            .into_iter()
            .for_each(|key| to.add(key))
    });
    let (to, others) = (queue.clone(), caches.clone());
    caches.nodes.on_change(move |change| {
        if zone_changed(change) {
            others
                .services
                .list()
                .iter()
                .for_each(|service| to.add(Key::of(&service.metadata)));
        }
    });
}

fn is_managed(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY))
        .is_some_and(|manager| manager == MANAGER)
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref().filter(|_| is_managed(slice))?;
    Some(Key::new(
        slice.metadata.namespace.clone()?,
        labels.get(SERVICE_NAME)?,
    ))
}

/// Services whose endpoints a change of a pod may move.
fn services_of(caches: &Caches, change: &Change<Pod>) -> Vec<Key> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && looks_the_same(old, new)
    {
        return Vec::new();
    }
    let services = caches.services.in_namespace(&change.key.namespace);
    let selects = services.iter().filter(|service| {
        let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let takes =
            |pod: &Arc<Pod>| wanted.is_some_and(|w| selector::matches_all(w, pod.metadata.labels.as_ref()));
        change.versions().any(takes)
    });
    selects.map(|service| Key::of(&service.metadata)).collect()
}

/// Whether an endpoint made from either state would be the same.
fn looks_the_same(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.metadata.uid == new.metadata.uid
        && pod::is_terminating(old) == pod::is_terminating(new)
        && pod::is_terminal(old) == pod::is_terminal(new)
        && pod::is_ready(old) == pod::is_ready(new)
        && pod::addresses(old) == pod::addresses(new)
        && node_name(old) == node_name(new)
}

fn zone_changed(change: &Change<Node>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => {
            zone_of(old) != zone_of(new) || topology::share(old) != topology::share(new)
        }
        _ => true,
    }
}

impl Controller for Slices {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(service) = self
            .caches
            .services
            .get(key)
            .filter(|service| planner::is_ours(service))
        else {
            return Ok(None);
        };
        let wanted = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_default();
        let mut pods = self.caches.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selector::matches_all(&wanted, pod.metadata.labels.as_ref()));
        let mut slices = self.caches.slices.indexed(BY_SERVICE, &key.to_string());
        slices.retain(|slice| is_managed(slice));
        let mut zones = BTreeMap::new();
        for name in pods
            .iter()
            .map(|pod| node_name(pod))
            .filter(|name| !name.is_empty())
        {
            if let Some(node) = self.caches.nodes.get(&Key::new("", name)) {
                zones.insert(name.to_owned(), zone_of(&node).cloned().unwrap_or_default());
            }
        }
        let cpus = match topology::is_wanted(&service) {
            true => topology::cpus(&self.caches.nodes.list()),
            false => BTreeMap::new(),
        };
        Ok(Some(Observed {
            service,
            pods,
            slices,
            zones,
            cpus,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed))
            .unwrap_or_default()
    }
}
