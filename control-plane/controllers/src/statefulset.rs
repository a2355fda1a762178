//! StatefulSet: pods with names, places in an order, and storage of their own
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>).

mod identity;
mod revisions;
mod status;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use machinery_plan::{Action, Plan};

use crate::ownership::{Claim, claim};
use crate::pod::{Availability, availability, is_terminal, is_terminating, phase};
use crate::selector::is_empty;
use crate::time;
use revisions::Revisions;

/// Label that names the revision of a pod's template.
pub const REVISION: &str = "controller-revision-hash";

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The stateful set.
    pub set: Arc<StatefulSet>,
    /// Pods of its namespace: at least its own and those without a controller.
    pub pods: Vec<Arc<Pod>>,
    /// Revisions that it owns.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Claims of its namespace.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// What to do next for a stateful set.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let set = observed.set.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = set.spec.as_ref().filter(|spec| !is_empty(&spec.selector)) else {
        return plan;
    };
    // Only pods with a name of the set can be in it, whatever their labels.
    let named: Vec<_> = observed
        .pods
        .iter()
        .filter(|pod| identity::ordinal(set, pod).is_some())
        .cloned()
        .collect();
    let Claim { owned, patches } = claim(set, &spec.selector, &named);
    if !patches.is_empty() {
        plan.together(patches);
        return plan;
    }
    let revisions = Revisions::find(set, spec, &observed.revisions);
    let pods: BTreeMap<i32, Arc<Pod>> = owned
        .into_iter()
        .filter_map(|pod| Some((identity::ordinal(set, &pod)?, pod)))
        .collect();
    let mut view = View {
        set,
        spec,
        pods,
        revisions: &revisions,
        claims: &observed.claims,
        wait: None,
        now,
    };
    let status = view.status();
    if set.metadata.deletion_timestamp.is_none() {
        plan.extend(revisions.writes.clone());
        plan.extend(view.manage());
        plan.together(revisions.surplus(spec, &view.pods));
    }
    if let Some(wait) = view.wait {
        plan.requeue(wait);
    }
    if status != set.status.clone().unwrap_or_default() {
        plan.then(Action::status(set, &status));
    }
    plan
}

/// A stateful set with its pods by number.
struct View<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    pods: BTreeMap<i32, Arc<Pod>>,
    revisions: &'a Revisions,
    claims: &'a [Arc<PersistentVolumeClaim>],
    /// When to look again, as far as is known.
    wait: Option<Duration>,
    now: Timestamp,
}

impl View<'_> {
    /// The numbers that there should be pods of.
    fn wanted(&self) -> std::ops::Range<i32> {
        let first = self
            .spec
            .ordinals
            .as_ref()
            .and_then(|ordinals| ordinals.start)
            .unwrap_or(0);
        first..first.saturating_add(self.spec.replicas.unwrap_or(1))
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn is_available(&mut self, pod: &Pod) -> bool {
        let min_ready = time::seconds(self.spec.min_ready_seconds.unwrap_or(0));
        match availability(pod, min_ready, self.now) {
            Availability::Available => phase(pod) == "Running",
            Availability::NotReady => false,
            Availability::In(wait) => {
                self.wait = Some(self.wait.map_or(wait, |held| held.min(wait)));
                false
            }
        }
    }

    fn manage(&mut self) -> Plan {
        let mut plan = Plan::nothing();
        if self.fill(&mut plan) && self.shrink(&mut plan) {
            self.update(&mut plan);
        }
        plan
    }

    /// Makes pods that are missing and makes room for those that have failed. Whether to go on: in order, every pod waits
    /// for the one before it.
    fn fill(&mut self, plan: &mut Plan) -> bool {
        for ordinal in self.wanted() {
            let held = self.pods.get(&ordinal).cloned();
            match held {
                None => self.create(plan, ordinal),
                Some(pod) if is_terminal(&pod) && !is_terminating(&pod) => {
                    plan.then(Action::delete(pod.as_ref()))
                }
                Some(pod) if !self.in_order() || (!is_terminating(&pod) && self.is_available(&pod)) => {
                    continue;
                }
                Some(_) => {}
            }
            if self.in_order() {
                return false;
            }
        }
        true
    }

    fn create(&self, plan: &mut Plan, ordinal: i32) {
        let claims = identity::claims(self.set, self.spec, ordinal);
        let missing = claims.into_iter().filter(|claim| {
            !self
                .claims
                .iter()
                .any(|held| held.metadata.name == claim.metadata.name)
        });
        plan.together(missing.map(|claim| Action::create(&claim)).collect::<Vec<_>>());
        let revision = self.revision_of(ordinal);
        let template = self.revisions.template(revision, self.spec);
        plan.then(Action::create(&identity::pod(
            self.set, self.spec, &template, ordinal, revision,
        )));
    }

    /// The revision that a new pod of this number is made from: those that the update has not come to yet stay old.
    fn revision_of(&self, ordinal: i32) -> &str {
        let first = self.wanted().start;
        let old = match self.partition() {
            Some(partition) => ordinal < first.saturating_add(partition),
            None => {
                let of_old = |pod: &&Arc<Pod>| {
                    !is_terminating(pod) && identity::revision(pod) == Some(&self.revisions.current)
                };
                let held = i32::try_from(self.pods.values().filter(of_old).count()).unwrap_or(i32::MAX);
                ordinal < first.saturating_add(held)
            }
        };
        if old {
            &self.revisions.current
        } else {
            &self.revisions.update
        }
    }

    /// From which number on pods are updated; `None` if from the first.
    fn partition(&self) -> Option<i32> {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        rolling
            .and_then(|rolling| rolling.partition)
            .filter(|partition| *partition > 0)
    }

    /// Deletes pods beyond the wanted numbers, the last first; in order, one after the other.
    fn shrink(&mut self, plan: &mut Plan) -> bool {
        let wanted = self.wanted();
        let beyond: Vec<_> = self
            .pods
            .iter()
            .filter(|(ordinal, _)| !wanted.contains(ordinal))
            .map(|(_, pod)| Arc::clone(pod))
            .collect();
        let healthy: Vec<bool> = beyond
            .iter()
            .map(|pod| self.is_available(pod) && !is_terminating(pod))
            .collect();
        let first_unhealthy = healthy.iter().position(|healthy| !healthy);
        for (index, pod) in beyond.iter().enumerate().rev() {
            if is_terminating(pod) {
                if self.in_order() {
                    return false;
                }
                continue;
            }
            // A pod that is not well is waited for, unless all before it are well.
            if self.in_order() && !healthy[index] && first_unhealthy != Some(index) {
                return false;
            }
            plan.then(Action::delete(pod.as_ref()));
            if self.in_order() {
                return false;
            }
        }
        true
    }

    /// Replaces the last pod that is of another revision, once all after it are well.
    fn update(&mut self, plan: &mut Plan) {
        if self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|strategy| strategy.type_.as_deref())
            == Some("OnDelete")
        {
            return;
        }
        let wanted = self.wanted();
        let from = wanted.start.saturating_add(self.partition().unwrap_or(0));
        for ordinal in (from..wanted.end).rev() {
            let Some(pod) = self.pods.get(&ordinal).cloned() else {
                return;
            };
            if is_terminating(&pod) {
                return;
            }
            if identity::revision(&pod) != Some(&self.revisions.update) {
                plan.then(Action::delete(pod.as_ref()));
                return;
            }
            if !self.is_available(&pod) {
                return;
            }
        }
    }
}
