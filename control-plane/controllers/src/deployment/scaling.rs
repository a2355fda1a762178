//! Following a change of the wanted number of pods in the midst of a rollout: every replica set grows or shrinks in
//! proportion, so that a bad new version does not take over by being scaled up.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use machinery_plan::Plan;

use super::View;
use super::sets::{DESIRED, MAXIMUM, annotation, available, by_age, replicas, resize};

/// Sizes after a change of the wanted number; empty if it has not changed, or for a paused deployment fits already.
pub(crate) fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let paused = view.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    if !paused && !wanted_number_changed(view) {
        return plan;
    }
    if let Some(only) = active_or_latest(view) {
        if replicas(&only) != view.replicas() || wanted_number_changed(view) {
            plan.together(resize(view, &only, view.replicas()));
        }
        return plan;
    }
    if is_saturated(view) {
        let active = view.old.iter().filter(|set| replicas(set) > 0);
        plan.together(active.flat_map(|set| resize(view, set, 0)));
    } else if !view.is_recreate() {
        plan.together(
            in_proportion(view)
                .into_iter()
                .flat_map(|(set, size)| resize(view, &set, size)),
        );
    }
    plan
}

fn wanted_number_changed(view: &View<'_>) -> bool {
    let wanted = view.replicas().to_string();
    let active = view.all().filter(|set| replicas(set) > 0);
    active
        .into_iter()
        .any(|set| annotation(&set.metadata, DESIRED).is_some_and(|desired| desired != wanted))
}

/// The only replica set with pods; or, if none has any, the one that would get them.
fn active_or_latest(view: &View<'_>) -> Option<Arc<ReplicaSet>> {
    let active: Vec<_> = view.all().filter(|set| replicas(set) > 0).collect();
    match active.as_slice() {
        [] => view.new.clone().or_else(|| view.old.last().cloned()),
        [only] => Some(Arc::clone(only)),
        _ => None,
    }
}

/// Whether the new replica set already has all pods, and all of them are available.
fn is_saturated(view: &View<'_>) -> bool {
    let wanted = view.replicas();
    view.new.as_ref().is_some_and(|new| {
        let desired = annotation(&new.metadata, DESIRED).and_then(|desired| desired.parse().ok());
        replicas(new) == wanted && desired == Some(wanted) && available(new) == wanted
    })
}

fn in_proportion(view: &View<'_>) -> Vec<(Arc<ReplicaSet>, i32)> {
    let mut sets: Vec<_> = view.all().filter(|set| replicas(set) > 0).cloned().collect();
    let wanted = view.replicas();
    let allowed = if wanted > 0 {
        wanted + view.limits().surge
    } else {
        0
    };
    let to_add = allowed - sets.iter().map(|set| replicas(set)).sum::<i32>();
    sets.sort_by(|one, other| {
        let age = if to_add > 0 {
            by_age(other, one)
        } else {
            by_age(one, other)
        };
        Reverse(replicas(one)).cmp(&Reverse(replicas(other))).then(age)
    });
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in sets {
        let share = share(view, &set, to_add, added);
        added += share;
        let size = replicas(&set) + share;
        sizes.push((set, size));
    }
    // What rounding left over goes to the largest.
    if let Some((_, size)) = sizes.first_mut() {
        *size = (*size + to_add - added).max(0);
    }
    sizes
}

fn share(view: &View<'_>, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(view, set);
    if to_add > 0 {
        fraction.min(to_add - added)
    } else {
        fraction.max(to_add - added)
    }
}

fn fraction(view: &View<'_>, set: &ReplicaSet) -> i32 {
    let has = replicas(set);
    if view.replicas() == 0 {
        return -has;
    }
    let annotated = annotation(&set.metadata, MAXIMUM).and_then(|most| most.parse::<i32>().ok());
    let reported = || view.deployment.status.as_ref().and_then(|status| status.replicas);
    let Some(before) = annotated.or_else(reported).filter(|before| *before != 0) else {
        return 0;
    };
    let now = view.replicas() + view.limits().surge;
    #[expect(clippy::cast_possible_truncation, reason = "a number of pods, far below 2^31")]
    let size = (f64::from(has) * f64::from(now) / f64::from(before)).round() as i32;
    size - has
}
