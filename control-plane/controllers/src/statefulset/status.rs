//! The status of a stateful set.

use k8s_openapi::api::apps::v1::StatefulSetStatus;

use super::{View, identity};
use crate::pod::{is_ready, is_terminating, phase};

impl View<'_> {
    /// What the pods that are there amount to.
    pub(super) fn status(&mut self) -> StatefulSetStatus {
        let old = self.set.status.clone().unwrap_or_default();
        let pods: Vec<_> = self
            .pods
            .values()
            .filter(|pod| !phase(pod).is_empty())
            .cloned()
            .collect();
        let of = |revision: &String| {
            count(
                pods.iter()
                    .filter(|pod| !is_terminating(pod) && identity::revision(pod) == Some(revision)),
            )
        };
        let (current, updated) = (of(&self.revisions.current), of(&self.revisions.update));
        let ready = count(pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)));
        let available = count(pods.iter().filter(|pod| self.is_available(pod)));
        let mut status = StatefulSetStatus {
            replicas: count(pods.iter()),
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(current),
            updated_replicas: some(updated),
            current_revision: Some(self.revisions.current.clone()),
            update_revision: Some(self.revisions.update.clone()),
            observed_generation: self.set.metadata.generation,
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
        let wanted = self.spec.replicas.unwrap_or(1);
        // The update is over when all pods are new and well, however far it was meant to go.
        if self.partition().is_none() && updated == wanted && ready == wanted && status.replicas == wanted {
            status.current_revision.clone_from(&status.update_revision);
            status.current_replicas = status.updated_replicas;
        }
        status
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

/// The API leaves zeros out.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}
