//! Deployment: replica sets that take over from each other
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>).
//!
//! One plan makes one step: claim replica sets, have the one for the present template, follow a change of the wanted
//! number, move pods from old to new, tidy up, report. Each step shows in the observed replica sets, so the next plan
//! takes the next one.

mod conditions;
mod rollout;
mod scaling;
mod sets;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use machinery_plan::Plan;

use crate::ownership::{Claim, claim};
use crate::selector::is_empty;

pub use rollout::{Limits, resolve};

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The deployment.
    pub deployment: Arc<Deployment>,
    /// All replica sets of its namespace.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Pods of its replica sets.
    pub pods: Vec<Arc<Pod>>,
}

/// A deployment with its replica sets sorted out.
pub(crate) struct View<'a> {
    pub deployment: &'a Deployment,
    /// The one for the present template.
    pub new: Option<Arc<ReplicaSet>>,
    /// All others, the oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
}

impl View<'_> {
    pub(crate) fn replicas(&self) -> i32 {
        self.deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::of(self.deployment)
    }

    pub(crate) fn is_recreate(&self) -> bool {
        let strategy = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }
}

/// What to do next for a deployment.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let deployment = observed.deployment.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = deployment.spec.as_ref().filter(|spec| !is_empty(&spec.selector)) else {
        return plan;
    };
    let Claim { owned, patches } = claim(deployment, &spec.selector, &observed.sets);
    if !patches.is_empty() {
        plan.together(patches);
        return plan;
    }
    let (new, old) = sets::sort_out(deployment, owned);
    let view = View {
        deployment,
        new,
        old,
        pods: &observed.pods,
        now,
    };
    let step = next_step(&view, &observed.sets);
    if step.is_empty() {
        return status::plan(&view);
    }
    step
}

/// The next change to replica sets; empty when there is none to make now.
fn next_step(view: &View<'_>, in_namespace: &[Arc<ReplicaSet>]) -> Plan {
    let deployment = view.deployment;
    if deployment.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let mut steps: Vec<&dyn Fn() -> Plan> = Vec::new();
    let annotate = || sets::annotate(view);
    let create = || {
        let wait = view.is_recreate() && sets::old_pods_run(view);
        if wait {
            Plan::nothing()
        } else {
            sets::create(view, in_namespace)
        }
    };
    let resize = || scaling::plan(view);
    let roll = || {
        if view.is_recreate() {
            rollout::recreate(view)
        } else {
            rollout::rolling(view)
        }
    };
    let tidy = || sets::clean_up(view);
    if paused {
        steps.extend([&annotate as &dyn Fn() -> Plan, &resize, &tidy]);
    } else if view.is_recreate() {
        steps.extend([&annotate as &dyn Fn() -> Plan, &resize, &roll, &create, &tidy]);
    } else {
        steps.extend([&annotate as &dyn Fn() -> Plan, &create, &resize, &roll, &tidy]);
    }
    steps
        .iter()
        .map(|step| step())
        .find(|plan| !plan.is_empty())
        .unwrap_or_default()
}
