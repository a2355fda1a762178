//! Which cache has to hear of which of our own writes.

use std::collections::HashMap;
use std::sync::Arc;

use machinery_plan::{Key, Kubernetes, ResourceType};

use crate::cache::{Cache, Cached};

/// A cache as the executor sees it: something that takes in answers to writes.
pub trait WriteBack: Send + Sync {
    /// The API server answered a write with this object (JSON).
    fn written(&self, object: &str);
    /// The object with this uid is gone.
    fn deleted(&self, key: &Key, uid: &str);
}

impl<K: Cached> WriteBack for Cache<K> {
    fn written(&self, object: &str) {
        match serde_json::from_str(object) {
            Ok(object) => self.observe_written(object),
            Err(error) => tracing::debug!(%error, "the answer to a write is no object; the watch will tell"),
        }
    }

    fn deleted(&self, key: &Key, uid: &str) {
        self.observe_deleted(key, uid);
    }
}

/// All caches of a process that hear of its writes.
#[derive(Clone, Default)]
pub struct WriteBacks(HashMap<ResourceType, Arc<dyn WriteBack>>);

impl WriteBacks {
    /// Lets `cache` hear of writes to its kind. Leave out caches that hold a selection only: an answer may not
    /// belong into it.
    pub fn add<K: Cached + Kubernetes>(&mut self, cache: &Cache<K>) {
        self.0.insert(ResourceType::of::<K>(), Arc::new(cache.clone()));
    }

    /// The cache of a resource, if there is one.
    #[must_use]
    pub fn of(&self, resource: &ResourceType) -> Option<&dyn WriteBack> {
        self.0.get(resource).map(AsRef::as_ref)
    }
}
