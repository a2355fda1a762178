//! DaemonSet: one pod on every node that it fits
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>).

mod revisions;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_plan::{Action, Plan};
use revisions::Current;

use crate::ownership::{Claim, claim, controller_ref};
use crate::pod::{Availability, availability, is_ready, is_terminal, is_terminating, node_name};
use crate::selector::is_empty;
use crate::{deployment, node_match, template, time};

/// Label that names the revision of a pod's template.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The daemon set.
    pub set: Arc<DaemonSet>,
    /// Pods of its namespace: at least its own and those without a controller.
    pub pods: Vec<Arc<Pod>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Revisions that it owns.
    pub revisions: Vec<Arc<ControllerRevision>>,
}

struct View<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    template: PodSpec,
    current: Current,
    /// Pods that are not ended by node name.
    on: BTreeMap<String, Vec<Arc<Pod>>>,
    nodes: &'a [Arc<Node>],
    now: Timestamp,
}

/// What to do next for a daemon set.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let set = observed.set.as_ref();
    let mut plan = Plan::nothing();
    let Some(spec) = set.spec.as_ref().filter(|spec| !is_empty(&spec.selector)) else {
        return plan;
    };
    let Claim { owned, patches } = claim(set, &spec.selector, &observed.pods);
    let deleting = set.metadata.deletion_timestamp.is_some();
    if !patches.is_empty() {
        plan.together(patches);
        return plan;
    }
    let current = revisions::current(set, spec, &observed.revisions);
    let mut on: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in &owned {
        on.entry(target(pod).to_owned())
            .or_default()
            .push(Arc::clone(pod));
    }
    let template = tolerant(spec.template.spec.clone().unwrap_or_default());
    let view = View {
        set,
        spec,
        template,
        current,
        on,
        nodes: &observed.nodes,
        now,
    };
    let (status, wait) = view.status();
    if !deleting {
        plan.extend(view.current.plan.clone());
        plan.extend(view.manage());
        plan.together(revisions::surplus(
            spec,
            &view.current,
            &owned,
            &observed.revisions,
        ));
    }
    if let Some(wait) = wait {
        plan.requeue(wait);
    }
    if status != set.status.clone().unwrap_or_default() {
        plan.then(Action::status(set, &status));
    }
    plan
}

/// The node a pod is on or made for.
fn target(pod: &Pod) -> &str {
    if !node_name(pod).is_empty() {
        return node_name(pod);
    }
    let affinity = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let mut fields = required
        .into_iter()
        .flat_map(|r| &r.node_selector_terms)
        .flat_map(|t| t.match_fields.iter().flatten());
    let named = fields.find(|field| field.key == "metadata.name");
    named
        .and_then(|field| field.values.as_ref()?.first())
        .map_or("", String::as_str)
}

/// Daemons stay through the troubles of a node that they are often there to mend.
fn tolerant(mut spec: PodSpec) -> PodSpec {
    let mut keys = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        keys.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let some = |text: &str| Some(text.to_owned());
    let all = keys.into_iter().map(|(key, effect)| Toleration {
        key: some(key),
        operator: some("Exists"),
        effect: some(effect),
        ..Toleration::default()
    });
    spec.tolerations.get_or_insert_default().extend(all);
    spec
}

impl View<'_> {
    fn tolerations(&self) -> &[Toleration] {
        self.template.tolerations.as_deref().unwrap_or_default()
    }

    fn fits(&self, node: &Node) -> bool {
        node_match::selects(&self.template, node)
            && node_match::tolerates_all(self.tolerations(), node, &["NoSchedule", "NoExecute"])
    }

    fn may_stay(&self, node: &Node) -> bool {
        node_match::selects(&self.template, node)
            && node_match::tolerates_all(self.tolerations(), node, &["NoExecute"])
    }

    fn pods_on(&self, node: &Node) -> &[Arc<Pod>] {
        self.on
            .get(node.metadata.name.as_deref().unwrap_or_default())
            .map_or(&[], Vec::as_slice)
    }

    fn is_current(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(REVISION_HASH))
            .is_some_and(|hash| self.current.is(hash))
    }

    fn min_ready(&self) -> Duration {
        time::seconds(self.spec.min_ready_seconds.unwrap_or(0))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        !is_terminating(pod) && availability(pod, self.min_ready(), self.now) == Availability::Available
    }

    /// Creates and deletes pods, then replaces those of older templates as far as the strategy allows.
    fn manage(&self) -> Plan {
        let mut plan = Plan::nothing();
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        for node in self.nodes {
            let (ended, mut live): (Vec<_>, Vec<_>) =
                self.pods_on(node).iter().partition(|pod| is_terminal(pod));
            surplus.extend(ended.into_iter().filter(|pod| !is_terminating(pod)));
            live.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
            let keep = usize::from(self.may_stay(node));
            surplus.extend(live.iter().skip(keep).filter(|pod| !is_terminating(pod)));
            if live.is_empty() && self.fits(node) {
                missing.push(Action::create(&self.pod(node)));
            }
        }
        let exists = |name: &str| {
            self.nodes
                .iter()
                .any(|node| node.metadata.name.as_deref() == Some(name))
        };
        let lost = self
            .on
            .iter()
            .filter(|(name, _)| !exists(name))
            .flat_map(|(_, pods)| pods);
        surplus.extend(lost.filter(|pod| node_name(pod).is_empty() && !is_terminating(pod)));
        plan.together(surplus.iter().map(|pod| Action::delete(pod.as_ref())));
        plan.together(missing);
        if plan.is_empty() {
            plan.together(self.outdated().iter().map(|pod| Action::delete(pod.as_ref())));
        }
        plan
    }

    /// Pods of older templates that may go now: all that serve nobody, and others within the limit.
    fn outdated(&self) -> Vec<Arc<Pod>> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return Vec::new();
        }
        let fitting: Vec<_> = self.nodes.iter().filter(|node| self.fits(node)).collect();
        let serves = |node: &&Arc<Node>| self.pods_on(node).iter().any(|pod| self.is_available(pod));
        let down = fitting.iter().filter(|node| !serves(node)).count();
        let mut room = self.max_unavailable(fitting.len()).saturating_sub(down);
        let mut going = Vec::new();
        for pod in fitting.iter().flat_map(|node| self.pods_on(node)) {
            if self.is_current(pod) || is_terminating(pod) {
                continue;
            }
            if !self.is_available(pod) {
                going.push(Arc::clone(pod));
            } else if room > 0 {
                room -= 1;
                going.push(Arc::clone(pod));
            }
        }
        going
    }

    fn max_unavailable(&self, nodes: usize) -> usize {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let limit = rolling
            .and_then(|rolling| rolling.max_unavailable.clone())
            .unwrap_or(IntOrString::Int(1));
        let limit = deployment::resolve(&limit, i32::try_from(nodes).unwrap_or(i32::MAX), true);
        // Pods are replaced in place also where a surge is asked for, so at least one has to go.
        usize::try_from(limit.max(1)).unwrap_or(1)
    }

    fn pod(&self, node: &Node) -> Pod {
        let meta = &self.set.metadata;
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let mut pod = template::pod(&self.spec.template, namespace, name, controller_ref(self.set));
        pod.metadata
            .labels
            .get_or_insert_default()
            .insert(REVISION_HASH.to_owned(), self.current.hash.clone());
        let mut spec = self.template.clone();
        let requirement = NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(node.metadata.name.iter().cloned().collect()),
        };
        let term = NodeSelectorTerm {
            match_fields: Some(vec![requirement]),
            match_expressions: None,
        };
        let affinity = spec
            .affinity
            .get_or_insert_default()
            .node_affinity
            .get_or_insert_default();
        affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
            node_selector_terms: vec![term],
        });
        pod.spec = Some(spec);
        pod
    }

    fn status(&self) -> (DaemonSetStatus, Option<Duration>) {
        let mut status = DaemonSetStatus {
            observed_generation: self.set.metadata.generation,
            collision_count: self.current.collisions,
            ..DaemonSetStatus::default()
        };
        let (mut available, mut updated, mut wait) = (0, 0, None::<Duration>);
        for node in self.nodes {
            let live: Vec<_> = self
                .pods_on(node)
                .iter()
                .filter(|pod| !is_terminal(pod) && !is_terminating(pod))
                .collect();
            if !self.fits(node) {
                status.number_misscheduled += i32::from(!live.is_empty() && !self.may_stay(node));
                continue;
            }
            status.desired_number_scheduled += 1;
            status.current_number_scheduled += i32::from(!live.is_empty());
            status.number_ready += i32::from(live.iter().any(|pod| is_ready(pod)));
            available += i32::from(live.iter().any(|pod| self.is_available(pod)));
            updated += i32::from(live.iter().any(|pod| self.is_current(pod)));
            for pod in live {
                if let Availability::In(time) = availability(pod, self.min_ready(), self.now) {
                    wait = Some(wait.map_or(time, |wait| wait.min(time)));
                }
            }
        }
        let some = |number: i32| Some(number).filter(|number| *number != 0);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        status.updated_number_scheduled = some(updated);
        (status, wait)
    }
}
