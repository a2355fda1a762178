//! What every namespace has from the start.

use std::sync::Arc;

use control_plane_controllers::namespace_defaults::{self as planner, Observed, ROOT_CA, SERVICE_ACCOUNT};
use jiff::Timestamp;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

pub(super) struct Defaults {
    caches: Caches,
    certificates: String,
}

impl Defaults {
    pub(super) fn new(caches: &Caches, certificates: String) -> Self {
        Self {
            caches: caches.clone(),
            certificates,
        }
    }
}

pub(super) fn connect(_: &Arc<Defaults>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.namespaces.on_change(move |change| {
        if change.new.is_some() {
            to.add(change.key.clone());
        }
    });
    let to = queue.clone();
    caches.service_accounts.on_change(move |change| {
        if change.new.is_none() && change.key.name == SERVICE_ACCOUNT {
            to.add(Key::new("", &change.key.namespace));
        }
    });
    let to = queue.clone();
    caches
        .root_certificates
        .on_change(move |change| to.add(Key::new("", &change.key.namespace)));
}

impl Controller for Defaults {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "namespace-defaults-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(namespace) = self.caches.namespaces.get(key) else {
            return Ok(None);
        };
        let account = self
            .caches
            .service_accounts
            .get(&Key::new(&key.name, SERVICE_ACCOUNT));
        let root_ca = self.caches.root_certificates.get(&Key::new(&key.name, ROOT_CA));
        let certificates = self.certificates.clone();
        Ok(Some(Observed {
            namespace,
            has_service_account: account.is_some(),
            root_ca,
            certificates,
        }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, _: Timestamp) -> Plan {
        observed
            .map(|observed| planner::plan(&observed))
            .unwrap_or_default()
    }
}
