//! What a deployment reports: counts, and how its rollout goes. `kubectl rollout status` reads nothing else.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use machinery_plan::{Action, Plan};

use super::conditions::{self, AVAILABLE, PROGRESSING, REPLICA_FAILURE};
use super::sets::{available, replicas};
use super::{View, sets};
use crate::time::{left, seconds};

/// The deadline for progress, if one is set: the largest number means none.
pub(crate) fn progress_deadline(deployment: &Deployment) -> Option<Duration> {
    let deadline = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (deadline != i32::MAX).then(|| seconds(deadline))
}

/// Reports the present state, and looks again when the deadline for progress would pass.
pub(crate) fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let old = view.deployment.status.clone().unwrap_or_default();
    let mut status = counts(view);
    let mut all = old.conditions.clone().unwrap_or_default();
    availability(view, &status, &mut all);
    if progress_deadline(view.deployment).is_some() {
        progress(view, &old, &status, &mut all);
    } else {
        conditions::remove(&mut all, PROGRESSING);
    }
    replica_failure(view, &mut all);
    if let Some(wait) = until_deadline(view, &status, &all) {
        plan.requeue(wait);
    }
    status.conditions = Some(all).filter(|all| !all.is_empty());
    if status != old {
        plan.then(Action::status(view.deployment, &status));
    }
    plan
}

/// Whether every pod is of the present template and available.
pub(crate) fn is_complete(view: &View<'_>) -> bool {
    is_complete_status(view, &counts(view))
}

fn is_complete_status(view: &View<'_>, status: &DeploymentStatus) -> bool {
    let wanted = Some(view.replicas()).filter(|wanted| *wanted != 0);
    status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted
}

fn counts(view: &View<'_>) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| view.all().map(|set| of(set)).sum::<i32>();
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    let total_available = sum(&available);
    let reported = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    };
    let going = |set: &ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|status| status.terminating_replicas)
            .unwrap_or(0)
    };
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: some(sum(&reported)),
        updated_replicas: some(view.new.as_ref().map_or(0, |new| reported(new))),
        ready_replicas: some(sum(&ready)),
        available_replicas: some(total_available),
        unavailable_replicas: some((sum(&replicas) - total_available).max(0)),
        terminating_replicas: Some(sum(&going)),
        collision_count: view
            .deployment
            .status
            .as_ref()
            .and_then(|status| status.collision_count),
        conditions: None,
    }
}

fn availability(view: &View<'_>, status: &DeploymentStatus, all: &mut Vec<DeploymentCondition>) {
    let enough = status.available_replicas.unwrap_or(0) >= view.replicas() - view.limits().unavailable;
    let condition = if enough {
        let message = "Deployment has minimum availability.";
        conditions::new(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            message.to_owned(),
            view.now,
        )
    } else {
        let message = "Deployment does not have minimum availability.";
        conditions::new(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            message.to_owned(),
            view.now,
        )
    };
    conditions::set(all, condition);
}

fn progress(
    view: &View<'_>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    all: &mut Vec<DeploymentCondition>,
) {
    let (name, now) = (subject(view), view.now);
    let paused = view.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    if paused {
        if !conditions::has_reason(all, conditions::TIMED_OUT)
            && !conditions::has_reason(all, conditions::PAUSED)
        {
            let message = "Deployment is paused".to_owned();
            conditions::set(
                all,
                conditions::progressing("Unknown", conditions::PAUSED, message, now),
            );
        }
        return;
    }
    if conditions::has_reason(all, conditions::PAUSED) {
        let message = "Deployment is resumed".to_owned();
        conditions::set(
            all,
            conditions::progressing("Unknown", conditions::RESUMED, message, now),
        );
    }
    if conditions::find(all, PROGRESSING).is_none() && view.new.is_some() {
        let message = format!("Found new replica set {name}");
        conditions::set(
            all,
            conditions::progressing("True", conditions::FOUND_NEW_SET, message, now),
        );
    }
    let was_complete = status.replicas == status.updated_replicas
        && conditions::has_reason(all, conditions::NEW_SET_AVAILABLE);
    if was_complete {
        return;
    }
    if is_complete_status(view, status) {
        let message = format!("{name} has successfully progressed.");
        conditions::set(
            all,
            conditions::progressing("True", conditions::NEW_SET_AVAILABLE, message, now),
        );
    } else if has_progressed(old, status) {
        let mut condition = conditions::progressing(
            "True",
            conditions::SET_UPDATED,
            format!("{name} is progressing."),
            now,
        );
        if let Some(held) = conditions::find(all, PROGRESSING).filter(|held| held.status == "True") {
            condition
                .last_transition_time
                .clone_from(&held.last_transition_time);
        }
        conditions::remove(all, PROGRESSING);
        conditions::set(all, condition);
    } else if has_timed_out(view, all) {
        let message = format!("{name} has timed out progressing.");
        conditions::set(
            all,
            conditions::progressing("False", conditions::TIMED_OUT, message, now),
        );
    }
}

/// What the messages are about: the new replica set, or the deployment if it has none yet.
fn subject(view: &View<'_>) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    match &view.new {
        Some(new) => format!("ReplicaSet \"{}\"", name(&new.metadata.name)),
        None => format!("Deployment \"{}\"", name(&view.deployment.metadata.name)),
    }
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |number: Option<i32>| number.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

fn has_timed_out(view: &View<'_>, all: &[DeploymentCondition]) -> bool {
    let Some(held) = conditions::find(all, PROGRESSING) else {
        return false;
    };
    if conditions::has_reason(all, conditions::TIMED_OUT) {
        return true;
    }
    let deadline = progress_deadline(view.deployment);
    let since = held.last_update_time.as_ref().map(|time| time.0);
    deadline
        .zip(since)
        .is_some_and(|(deadline, since)| left(since, deadline, view.now).is_none())
}

fn until_deadline(
    view: &View<'_>,
    status: &DeploymentStatus,
    all: &[DeploymentCondition],
) -> Option<Duration> {
    let held = conditions::find(all, PROGRESSING).filter(|held| held.status == "True")?;
    if is_complete_status(view, status) || conditions::has_reason(all, conditions::NEW_SET_AVAILABLE) {
        return None;
    }
    // One second more, as times in objects have whole seconds.
    let deadline = progress_deadline(view.deployment)? + Duration::from_secs(1);
    left(held.last_update_time.as_ref()?.0, deadline, view.now)
}

/// Passes on that a replica set cannot create pods.
fn replica_failure(view: &View<'_>, all: &mut Vec<DeploymentCondition>) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|c| c.type_ == REPLICA_FAILURE && c.status == "True")
            .cloned()
    };
    let failing = view.new.as_ref().and_then(|new| failure(new)).or_else(|| {
        view.old
            .iter()
            .filter(|set| sets::replicas(set) > 0)
            .find_map(|set| failure(set))
    });
    match failing {
        Some(failure) => {
            let reason = failure.reason.unwrap_or_default();
            let message = failure.message.unwrap_or_default();
            conditions::set(
                all,
                conditions::new(REPLICA_FAILURE, "True", &reason, message, view.now),
            );
        }
        None => conditions::remove(all, REPLICA_FAILURE),
    }
}
