//! ReplicationController in the words of ReplicaSet.

use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery_plan::Action;

use super::Replicating;

impl Replicating for ReplicationController {
    fn wanted(&self) -> Option<ReplicaSetSpec> {
        let spec = self.spec.clone()?;
        Some(ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: spec.selector,
                match_expressions: None,
            },
            template: spec.template,
        })
    }

    fn observed_status(&self) -> ReplicaSetStatus {
        let status = self.status.clone().unwrap_or_default();
        let conditions = status
            .conditions
            .into_iter()
            .flatten()
            .map(|held| ReplicaSetCondition {
                type_: held.type_,
                status: held.status,
                reason: held.reason,
                message: held.message,
                last_transition_time: held.last_transition_time,
            });
        ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: Some(conditions.collect()).filter(|all: &Vec<_>| !all.is_empty()),
        }
    }

    fn normal(status: &mut ReplicaSetStatus) {
        status.terminating_replicas = None;
    }

    fn write(&self, status: ReplicaSetStatus) -> Action {
        let conditions = status.conditions.map(|all| {
            let all = all.into_iter().map(|new| ReplicationControllerCondition {
                type_: new.type_,
                status: new.status,
                reason: new.reason,
                message: new.message,
                last_transition_time: new.last_transition_time,
            });
            all.collect()
        });
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        };
        Action::status(self, &status)
    }
}
