//! Conditions of a deployment.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentCondition;

use crate::time::wire;

pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(crate) const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub(crate) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(crate) const FOUND_NEW_SET: &str = "FoundNewReplicaSet";
pub(crate) const SET_UPDATED: &str = "ReplicaSetUpdated";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(crate) const PAUSED: &str = "DeploymentPaused";
pub(crate) const RESUMED: &str = "DeploymentResumed";

/// A condition as of now.
pub(crate) fn new(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(wire(now)),
        last_update_time: Some(wire(now)),
    }
}

pub(crate) fn progressing(
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    new(PROGRESSING, status, reason, message, now)
}

pub(crate) fn find<'a>(all: &'a [DeploymentCondition], type_: &str) -> Option<&'a DeploymentCondition> {
    all.iter().find(|condition| condition.type_ == type_)
}

pub(crate) fn has_reason(all: &[DeploymentCondition], reason: &str) -> bool {
    find(all, PROGRESSING).is_some_and(|condition| condition.reason.as_deref() == Some(reason))
}

/// Sets a condition, unless it says the same already. The transition time moves only with the status.
pub(crate) fn set(all: &mut Vec<DeploymentCondition>, mut condition: DeploymentCondition) {
    if let Some(held) = all.iter_mut().find(|held| held.type_ == condition.type_) {
        if held.status == condition.status && held.reason == condition.reason {
            return;
        }
        if held.status == condition.status {
            condition
                .last_transition_time
                .clone_from(&held.last_transition_time);
        }
        *held = condition;
    } else {
        all.push(condition);
    }
}

pub(crate) fn remove(all: &mut Vec<DeploymentCondition>, type_: &str) {
    all.retain(|condition| condition.type_ != type_);
}
