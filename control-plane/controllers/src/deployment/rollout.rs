//! How pods move from old replica sets to the new one.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_plan::{Action, Plan};

use super::View;
use super::sets::{available, old_pods_run, replicas, resize};

/// How far a rollout may go above and below the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pods above.
    pub surge: i32,
    /// Pods below.
    pub unavailable: i32,
}

impl Limits {
    /// The limits in whole pods: a share of surge rounds up, one of unavailability down, and if both come out as
    /// nothing one pod may be unavailable, as the rollout could not move otherwise.
    #[must_use]
    pub fn of(deployment: &Deployment) -> Self {
        let none = Self {
            surge: 0,
            unavailable: 0,
        };
        let Some(spec) = &deployment.spec else { return none };
        let Some(rolling) = spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref())
        else {
            return none;
        };
        let wanted = spec.replicas.unwrap_or(1);
        let quarter = IntOrString::String("25%".to_owned());
        let surge = resolve(rolling.max_surge.as_ref().unwrap_or(&quarter), wanted, true);
        let unavailable = resolve(
            rolling.max_unavailable.as_ref().unwrap_or(&quarter),
            wanted,
            false,
        );
        let unavailable = if surge == 0 && unavailable == 0 {
            1
        } else {
            unavailable
        };
        Self {
            surge,
            unavailable: unavailable.min(wanted.max(0)),
        }
    }
}

/// A number or a share of `total` as a number.
#[must_use]
pub fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let parts = percent.max(0) * i64::from(total.max(0)) + if round_up { 99 } else { 0 };
            i32::try_from(parts / 100).unwrap_or(i32::MAX)
        }
    }
}

/// How large the new replica set may be now, if it has `has` pods.
pub(crate) fn new_set_size(view: &View<'_>, has: i32) -> i32 {
    let wanted = view.replicas();
    if view.is_recreate() {
        return wanted;
    }
    let total: i32 = view.all().map(|set| replicas(set)).sum();
    let room = wanted + view.limits().surge - total;
    if room <= 0 {
        has.min(wanted)
    } else {
        has + room.min(wanted - has)
    }
}

/// The next step of a rolling update: grow the new set, or shrink old ones as far as enough pods stay available.
pub(crate) fn rolling(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let Some(new) = &view.new else { return plan };
    let size = new_set_size(view, replicas(new));
    if size != replicas(new) {
        plan.together(resize(view, new, size));
        return plan;
    }
    plan.together(shrink_old(view, new));
    plan
}

fn shrink_old(view: &View<'_>, new: &ReplicaSet) -> Vec<Action> {
    let active: Vec<_> = view.old.iter().filter(|set| replicas(set) > 0).collect();
    let total: i32 = view.all().map(|set| replicas(set)).sum();
    let least = view.replicas() - view.limits().unavailable;
    let missing = replicas(new) - available(new);
    let mut budget = total - least - missing;
    if active.is_empty() || budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = active.iter().map(|set| replicas(set)).collect();
    // Pods of old sets that serve nobody go first: they cost no availability.
    for (size, set) in sizes.iter_mut().zip(&active) {
        let unhealthy = (*size - available(set)).clamp(0, budget.max(0));
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let mut spare = view.all().map(|set| available(set)).sum::<i32>() - least;
    for size in &mut sizes {
        let fewer = spare.clamp(0, *size).min(budget.max(0));
        *size -= fewer;
        spare -= fewer;
        budget -= fewer;
    }
    let changed = active
        .iter()
        .zip(sizes)
        .filter(|(set, size)| replicas(set) != *size);
    changed.flat_map(|(set, size)| resize(view, set, size)).collect()
}

/// The next step of a replacement at once: all old pods go, and when none runs any more the new ones come.
pub(crate) fn recreate(view: &View<'_>) -> Plan {
    let mut plan = Plan::nothing();
    let active: Vec<&Arc<ReplicaSet>> = view.old.iter().filter(|set| replicas(set) > 0).collect();
    if !active.is_empty() {
        plan.together(active.into_iter().flat_map(|set| resize(view, set, 0)));
    } else if let Some(new) = view.new.as_ref().filter(|_| !old_pods_run(view)) {
        plan.together(resize(view, new, view.replicas()));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_rounds_up_or_down() {
        let share = IntOrString::String("25%".to_owned());
        assert_eq!((resolve(&share, 10, true), resolve(&share, 10, false)), (3, 2));
        assert_eq!(resolve(&IntOrString::Int(4), 10, true), 4);
    }
}
