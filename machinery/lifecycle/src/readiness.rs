//! Is the process ready: a set of named conditions that all have to hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Named conditions. Ready when every one holds; clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<String, bool>>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

/// One condition; it does not hold at first.
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    all: Readiness,
}

impl Condition {
    /// Sets whether the condition holds.
    pub fn set(&self, holds: bool) {
        self.all
            .0
            .send_if_modified(|all| all.insert(self.name.clone(), holds) != Some(holds));
    }
}

impl Readiness {
    /// No conditions yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that does not hold yet.
    #[must_use]
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let condition = Condition {
            name: name.into(),
            all: self.clone(),
        };
        condition.set(false);
        condition
    }

    /// Whether every condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().values().all(|holds| *holds)
    }

    /// Each condition and whether it holds.
    #[must_use]
    pub fn conditions(&self) -> BTreeMap<String, bool> {
        self.0.borrow().clone()
    }

    /// Waits until every condition holds.
    pub async fn ready(&self) {
        let mut all = self.0.subscribe();
        // The sender lives as long as this handle, so waiting cannot fail.
        let _ = all.wait_for(|all| all.values().all(|holds| *holds)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_means_every_condition_holds_and_can_be_lost_again() {
        let readiness = Readiness::new();
        let (store, caches) = (readiness.condition("store"), readiness.condition("caches"));
        store.set(true);
        assert!(!readiness.is_ready());
        caches.set(true);
        readiness.ready().await;
        store.set(false);
        assert!(!readiness.is_ready());
    }
}
