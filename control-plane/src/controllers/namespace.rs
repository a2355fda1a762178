//! Deletion of namespaces.

use std::sync::Arc;

use control_plane_controllers::garbage::Object;
use control_plane_controllers::namespace::{self as planner, Observed, is_terminating};
use futures::future::join_all;
use jiff::Timestamp;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::{Caches, Metadata, discovery};

pub(super) struct Namespaces {
    caches: Caches,
    metadata: Metadata,
}

impl Namespaces {
    pub(super) fn new(caches: &Caches, metadata: &Metadata) -> Self {
        Self {
            caches: caches.clone(),
            metadata: metadata.clone(),
        }
    }

    /// Everything in the namespace as the API server has it, and what could not be listed.
    async fn ask(&self, namespace: &str) -> (Vec<Arc<Object>>, Option<String>) {
        let resources = self.metadata.resources();
        if resources.all().is_empty() {
            return (
                Vec::new(),
                Some("the resources of the API are not known yet".to_owned()),
            );
        }
        let namespaced = resources.all().iter().filter(|resource| resource.namespaced);
        let lists = namespaced.map(|resource| discovery::list(self.metadata.client(), resource, namespace));
        let (mut contents, mut unknown) = (Vec::new(), None);
        for list in join_all(lists).await {
            match list {
                Ok(objects) => contents.extend(objects.into_iter().map(Arc::new)),
                Err(failure) => unknown = Some(failure.to_string()),
            }
        }
        // Two resources may show the same objects, as events do.
        contents.sort_by(|one, other| one.uid.cmp(&other.uid));
        contents.dedup_by(|one, other| one.uid == other.uid);
        (contents, unknown)
    }
}

pub(super) fn connect(_: &Arc<Namespaces>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.namespaces.on_change(move |change| {
        if change
            .new
            .as_ref()
            .is_some_and(|namespace| is_terminating(namespace))
        {
            to.add(change.key.clone());
        }
    });
}

impl Controller for Namespaces {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(namespace) = self.caches.namespaces.get(key).filter(|n| is_terminating(n)) else {
            return Ok(None);
        };
        let contents = self.metadata.graph().in_namespace(&key.name);
        if !contents.is_empty() {
            return Ok(Some(Observed {
                namespace,
                contents,
                unknown: None,
                verified: false,
            }));
        }
        let (contents, unknown) = self.ask(&key.name).await;
        Ok(Some(Observed {
            namespace,
            contents,
            unknown,
            verified: true,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed, now))
            .unwrap_or_default()
    }
}
