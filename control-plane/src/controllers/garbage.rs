//! The garbage collector.

use control_plane_controllers::garbage::{self as planner, Object, Observed, Owner, OwnerState, Subject};
use jiff::Timestamp;
use machinery_plan::{Key, Plan};
use machinery_reconcile::{Attempt, Controller, Failure};

use super::Metadata;
use super::discovery::{self, Resources};

pub(super) struct Garbage {
    metadata: Metadata,
}

impl Garbage {
    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            metadata: metadata.clone(),
        }
    }

    /// How an owner stands. What the graph does not have is asked for: it may only be late.
    async fn state(
        &self,
        object: &Object,
        owner: &Owner,
        resources: &Resources,
    ) -> Result<OwnerState, Failure> {
        let namespace = object.object.key.namespace.as_str();
        let held = self.metadata.graph().get(&owner.uid).cloned();
        if let Some(held) = held.filter(|held| is_reachable(held, namespace)) {
            return Ok(state_of(&held));
        }
        let Some(resource) = resources.of_kind(&owner.api_version, &owner.kind) else {
            return Ok(OwnerState::Unresolvable);
        };
        if resource.namespaced && namespace.is_empty() {
            return Ok(OwnerState::Unresolvable);
        }
        let key = Key::new(if resource.namespaced { namespace } else { "" }, &owner.name);
        let found = discovery::get(self.metadata.client(), resource, &key).await?;
        let same = found.filter(|found| found.uid == owner.uid);
        Ok(same.map_or(OwnerState::Absent, |found| state_of(&found)))
    }
}

fn state_of(owner: &Object) -> OwnerState {
    if owner.waits_for_dependents() {
        OwnerState::Waiting
    } else {
        OwnerState::Present
    }
}

/// Owners are cluster-wide or in the dependent's own namespace.
fn is_reachable(owner: &Object, namespace: &str) -> bool {
    let at = owner.object.key.namespace.as_str();
    at.is_empty() || at == namespace
}

impl Controller for Garbage {
    type Key = String;
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    async fn observe(&self, uid: &String) -> Result<Observed, Failure> {
        let (object, dependents) = {
            let graph = self.metadata.graph();
            let Some(object) = graph.get(uid).cloned() else {
                return Ok(None);
            };
            (object, graph.dependents(uid))
        };
        let resources = self.metadata.resources();
        let mut owners = Vec::new();
        for owner in &object.owners {
            owners.push((owner.clone(), self.state(&object, owner, &resources).await?));
        }
        Ok(Some(Subject {
            object,
            owners,
            dependents,
        }))
    }

    fn plan(&self, _: &String, observed: Observed, _: &Attempt, _: Timestamp) -> Plan {
        planner::plan(&observed)
    }
}
