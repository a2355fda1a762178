//! Resizing in place: what a container has against what its specification asks for now.
//!
//! The resources of a running container may change (Kubernetes documentation, "Resize CPU and Memory Resources assigned
//! to Containers"); `resizePolicy` says by resource whether the container must be started anew for that.

use crate::model::{Member, Role};
use crate::plan::Observed;
use crate::view::Instance;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What a container needs to have the resources of its specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has them.
    None,
    /// New limits for the processes that run.
    InPlace,
    /// A new start.
    Restart,
}

/// A container that gets new limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resized {
    /// The instance.
    pub id: String,
    /// Container name.
    pub name: String,
    /// Number of its run.
    pub attempt: u32,
}

/// The resources that a run has: those it was started or resized with, which after a restart of the agent only the
/// status tells. None when neither says so; then it is taken to have what is asked for.
#[must_use]
pub fn actual<'a>(o: &'a Observed, run: &Instance) -> Option<&'a ResourceRequirements> {
    let known = o.memory.resources.get(&run.name);
    if let Some((_, resources)) = known.filter(|(attempt, _)| *attempt == run.attempt) {
        return Some(resources);
    }
    let reported = crate::status::reported_container(o.pod, &run.name)?;
    let same = reported
        .container_id
        .as_ref()
        .is_some_and(|id| id.ends_with(&run.id));
    reported.resources.as_ref().filter(|_| same)
}

/// What `run` needs; nothing for kinds of containers that are not resized.
#[must_use]
pub fn change(o: &Observed, member: &Member, run: &Instance) -> Change {
    if !matches!(member.role, Role::Regular | Role::Sidecar) {
        return Change::None;
    }
    let empty = ResourceRequirements::default();
    let wanted = member.spec.resources.as_ref().unwrap_or(&empty);
    let Some(has) = actual(o, run) else {
        return Change::None;
    };
    let changed: Vec<&str> = ["cpu", "memory"]
        .into_iter()
        .filter(|name| {
            let differs = |a: &Option<List>, b: &Option<List>| of(a, name) != of(b, name);
            differs(&has.requests, &wanted.requests) || differs(&has.limits, &wanted.limits)
        })
        .collect();
    let restarts = |name: &&&str| {
        let mut policies = member.spec.resize_policy.iter().flatten();
        policies.any(|p| p.resource_name == **name && p.restart_policy == "RestartContainer")
    };
    match (changed.is_empty(), changed.iter().find(restarts)) {
        (true, _) => Change::None,
        (false, None) => Change::InPlace,
        (false, Some(_)) => Change::Restart,
    }
}

type List = BTreeMap<String, Quantity>;

fn of<'a>(list: &'a Option<List>, name: &str) -> Option<&'a str> {
    list.as_ref()?.get(name).map(|quantity| quantity.0.as_str())
}

/// The containers that run and get new limits as they are.
pub(crate) fn in_place(o: &Observed) -> Vec<Resized> {
    let runs = o.pod.members.iter().filter_map(|member| {
        let run = o.view.newest(&member.spec.name)?;
        (run.running() && change(o, member, run) == Change::InPlace).then(|| Resized {
            id: run.id.clone(),
            name: run.name.clone(),
            attempt: run.attempt,
        })
    });
    runs.collect()
}
