//! PodDisruptionBudgets.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_plane_controllers::disruption::{self as planner, Observed};
use control_plane_controllers::ownership::controller_of;
use control_plane_controllers::selector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure, Queue};

use super::Caches;

pub(super) struct Budgets {
    caches: Caches,
}

impl Budgets {
    pub(super) fn new(caches: &Caches) -> Self {
        Self {
            caches: caches.clone(),
        }
    }

    /// How many pods the controller of a pod wants; for the replica set of a deployment, the deployment.
    fn scale(&self, namespace: &str, owner: &OwnerReference) -> Option<i32> {
        let key = Key::new(namespace, &owner.name);
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.caches.replica_sets.get(&key)?;
                let deployment = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
                match deployment {
                    Some(owner) => {
                        let deployment = self.caches.deployments.get(&Key::new(namespace, &owner.name))?;
                        Some(deployment.spec.as_ref()?.replicas.unwrap_or(1))
                    }
                    None => Some(set.spec.as_ref()?.replicas.unwrap_or(1)),
                }
            }
            "ReplicationController" => {
                let set = self.caches.replication_controllers.get(&key)?;
                Some(set.spec.as_ref()?.replicas.unwrap_or(1))
            }
            "StatefulSet" => {
                let set = self.caches.stateful_sets.get(&key)?;
                Some(set.spec.as_ref()?.replicas.unwrap_or(1))
            }
            _ => None,
        }
    }
}

fn takes(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, pod.metadata.labels.as_ref()))
}

pub(super) fn connect(_: &Arc<Budgets>, caches: &Caches, queue: &Queue<Key>) {
    let to = queue.clone();
    caches.budgets.on_change(move |change| to.add(change.key.clone()));
    let (to, budgets) = (queue.clone(), caches.budgets.clone());
    caches.pods.on_change(move |change| {
        for budget in budgets.in_namespace(&change.key.namespace) {
            if change.versions().any(|pod| takes(&budget, pod)) {
                to.add(Key::of(&budget.metadata));
            }
        }
    });
    let again = {
        let (to, budgets) = (queue.clone(), caches.budgets.clone());
        move |namespace: &str| {
            let here = budgets.in_namespace(namespace);
            here.iter().for_each(|budget| to.add(Key::of(&budget.metadata)));
        }
    };
    // The scale may have changed; pods follow, but a new scale counts at once.
    let tell = again.clone();
    caches
        .replica_sets
        .on_change(move |change| tell(&change.key.namespace));
    let tell = again.clone();
    caches
        .deployments
        .on_change(move |change| tell(&change.key.namespace));
    let tell = again.clone();
    caches
        .stateful_sets
        .on_change(move |change| tell(&change.key.namespace));
    caches
        .replication_controllers
        .on_change(move |change| again(&change.key.namespace));
}

impl Controller for Budgets {
    type Key = Key;
    type Observed = Option<Observed>;

    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    async fn observe(&self, key: &Key) -> Result<Self::Observed, Failure> {
        let Some(budget) = self.caches.budgets.get(key) else {
            return Ok(None);
        };
        let mut pods = self.caches.pods.in_namespace(&key.namespace);
        pods.retain(|pod| takes(&budget, pod));
        let owners = pods.iter().filter_map(|pod| controller_of(&pod.metadata));
        let scales: BTreeMap<_, _> = owners
            .filter_map(|owner| Some((owner.uid.clone(), self.scale(&key.namespace, owner)?)))
            .collect();
        Ok(Some(Observed { budget, pods, scales }))
    }

    fn plan(&self, _: &Key, observed: Self::Observed, _: &Attempt, now: Timestamp) -> Plan {
        observed.map_or_else(Plan::nothing, |observed| planner::plan(&observed, now))
    }
}
