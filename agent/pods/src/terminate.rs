//! How a pod ends: regular containers first, then sidecars in reverse, then the sandbox, then every trace.

use crate::model::{PodModel, Role};
use crate::plan::{Observed, Plan, Step};
use crate::view::Instance;

/// Default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;
/// Sidecars get at least this long, however much the others took (upstream's `minimumGracePeriodInSeconds`).
const LEAST_GRACE: i64 = 2;

/// Whether the pod is to be stopped: deleted, gone, judged, or finished by itself.
#[must_use]
pub fn stopping(o: &Observed) -> bool {
    o.pod.deleting() || o.memory.gone || o.memory.verdict.is_some() || finished(o)
}

/// Whether the pod ended by itself or the API says so: no regular container runs or will run again.
#[must_use]
pub fn finished(o: &Observed) -> bool {
    if matches!(o.pod.reported_phase(), "Succeeded" | "Failed") {
        return true;
    }
    let mut regular = o.pod.with_role(Role::Regular).peekable();
    init_failed(o) || (regular.peek().is_some() && regular.all(|m| ended(o, m)))
}

/// Whether an init container failed for good.
#[must_use]
pub fn init_failed(o: &Observed) -> bool {
    o.pod
        .with_role(Role::Init)
        .any(|m| ended(o, m) && last_code(o, m).is_some_and(|code| code != 0))
}

fn ended(o: &Observed, member: &crate::model::Member) -> bool {
    let run = o.view.newest(&member.spec.name);
    run.is_some_and(|r| {
        r.exit()
            .is_some_and(|e| !crate::plan::restarts(o, member, r, e.code))
    })
}

fn last_code(o: &Observed, member: &crate::model::Member) -> Option<i32> {
    o.view.newest(&member.spec.name)?.exit().map(|e| e.code)
}

/// The grace period the specification asks for.
#[must_use]
pub fn spec_grace(pod: &PodModel) -> i64 {
    pod.spec()
        .termination_grace_period_seconds
        .unwrap_or(DEFAULT_GRACE)
        .max(1)
}

/// The grace period that holds now; a forced deletion still leaves one second, as upstream's kubelet does.
#[must_use]
pub fn grace(o: &Observed) -> i64 {
    let asked = o
        .pod
        .pod
        .metadata
        .deletion_grace_period_seconds
        .filter(|_| o.pod.deleting());
    asked.map_or_else(|| spec_grace(o.pod), |g| g.max(1))
}

pub(crate) fn plan(o: &Observed, plan: &mut Plan) {
    let running: Vec<&Instance> = o.view.containers.iter().filter(|c| c.running()).collect();
    if !running.is_empty() {
        return kill(o, &running, plan);
    }
    let up = o.view.sandboxes.iter().filter(|s| s.ready);
    plan.steps
        .extend(up.map(|s| Step::StopSandbox { id: s.id.clone() }));
    if plan.steps.is_empty() && (o.pod.deleting() || o.memory.gone) {
        remove(o, plan);
    }
}

/// Stops the regular containers together; once they are gone the sidecars, last one first.
fn kill(o: &Observed, running: &[&Instance], plan: &mut Plan) {
    let is_sidecar = |c: &&Instance| o.pod.member(&c.name).is_some_and(|m| m.role == Role::Sidecar);
    let (sidecars, others): (Vec<&Instance>, Vec<&Instance>) = running.iter().copied().partition(is_sidecar);
    let since = o.memory.stopping_since.unwrap_or(o.now);
    let left = (grace(o) - o.now.duration_since(since).as_secs()).max(0);
    if !others.is_empty() {
        others.iter().for_each(|c| kill_one(o, c, left.max(1), plan));
        return;
    }
    let order = |c: &&Instance| o.pod.members.iter().position(|m| m.spec.name == c.name);
    if let Some(last) = sidecars.into_iter().max_by_key(order) {
        kill_one(o, last, left.max(LEAST_GRACE), plan);
    }
}

/// Also shortens a stop that is under way when the deadline moved closer.
fn kill_one(o: &Observed, run: &Instance, grace: i64, plan: &mut Plan) {
    let by = o.now + jiff::SignedDuration::from_secs(grace);
    let under_way = o.memory.stopping.get(&run.id);
    if under_way.is_some_and(|known| *known <= by + jiff::SignedDuration::from_secs(1)) {
        return;
    }
    let why = format!("Stopping container {}", run.name);
    plan.steps.push(Step::Kill {
        id: run.id.clone(),
        name: run.name.clone(),
        grace,
        why,
    });
}

fn remove(o: &Observed, plan: &mut Plan) {
    let containers = o
        .view
        .containers
        .iter()
        .map(|c| Step::RemoveContainer { id: c.id.clone() });
    plan.steps.extend(containers);
    let sandboxes = o
        .view
        .sandboxes
        .iter()
        .map(|s| Step::RemoveSandbox { id: s.id.clone() });
    plan.steps.extend(sandboxes);
    if !o.memory.cleaned {
        plan.steps.push(Step::CleanUp);
    }
    if !o.memory.gone {
        plan.steps.push(Step::DeleteObject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::probe::Outcomes;
    use crate::testing::*;
    use crate::view::View;
    use serde_json::json;

    fn steps(pod: &PodModel, view: &View, memory: &Memory, now: i64) -> Vec<Step> {
        let probes = Outcomes::default();
        crate::plan::plan(&Observed {
            pod,
            view,
            memory,
            probes: &probes,
            now: at(now),
        })
        .steps
    }

    fn deleting(grace: i64, spec: serde_json::Value) -> PodModel {
        let meta = json!({"deletionTimestamp": "2023-11-14T22:13:20Z", "deletionGracePeriodSeconds": grace});
        pod_with(meta, spec, json!({"phase": "Running"}))
    }

    fn killed(steps: &[Step]) -> Vec<(&str, i64)> {
        let pick = |s: &'_ Step| match s {
            Step::Kill { .. } => true,
            other => panic!("not a kill: {other:?}"),
        };
        let kills = steps.iter().filter(|s| pick(s));
        kills
            .filter_map(|s| match s {
                Step::Kill { name, grace, .. } => Some((name.as_str(), *grace)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_deleted_pod_is_killed_with_its_grace_period() {
        let view = view(vec![instance("a", 0, running(0))]);
        let got = steps(&deleting(7, simple()), &view, &Memory::default(), 0);
        assert_eq!(killed(&got), [("a", 7)]);
    }

    #[test]
    fn a_forced_deletion_still_leaves_one_second() {
        let view = view(vec![instance("a", 0, running(0))]);
        let got = steps(&deleting(0, simple()), &view, &Memory::default(), 0);
        assert_eq!(killed(&got), [("a", 1)]);
    }

    #[test]
    fn a_stop_under_way_is_not_repeated_but_shortened_when_the_grace_shrinks() {
        let view = view(vec![instance("a", 0, running(0))]);
        let mut memory = Memory {
            stopping_since: Some(at(0)),
            ..Memory::default()
        };
        memory.stopping.insert("a0".into(), at(30));
        assert_eq!(steps(&deleting(30, simple()), &view, &memory, 1), []);
        assert_eq!(
            killed(&steps(&deleting(0, simple()), &view, &memory, 1)),
            [("a", 1)]
        );
    }

    #[test]
    fn sidecars_stop_after_the_others_and_in_reverse_order() {
        let spec = json!({
            "initContainers": [
                {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]});
        let pod = deleting(30, spec);
        let all = ["s1", "s2", "a"].map(|n| instance(n, 0, running(0)));
        assert_eq!(
            killed(&steps(&pod, &view(all.to_vec()), &Memory::default(), 0)),
            [("a", 30)]
        );
        let both = vec![all[0].clone(), all[1].clone(), instance("a", 0, exited(1, 0))];
        assert_eq!(
            killed(&steps(&pod, &view(both), &Memory::default(), 0)),
            [("s2", 30)]
        );
    }

    #[test]
    fn a_stopped_pod_is_removed_cleaned_and_its_object_deleted_in_this_order() {
        let mut stopped = view(vec![instance("a", 0, exited(1, 0))]);
        let pod = deleting(30, simple());
        assert_eq!(
            steps(&pod, &stopped, &Memory::default(), 2),
            [Step::StopSandbox { id: "s0".into() }]
        );
        stopped.sandboxes[0].ready = false;
        let expected = [
            Step::RemoveContainer { id: "a0".into() },
            Step::RemoveSandbox { id: "s0".into() },
            Step::CleanUp,
            Step::DeleteObject,
        ];
        assert_eq!(steps(&pod, &stopped, &Memory::default(), 2), expected);
    }

    #[test]
    fn a_pod_whose_object_is_gone_is_removed_without_deleting_the_object_again() {
        let memory = Memory {
            gone: true,
            cleaned: true,
            ..Memory::default()
        };
        assert_eq!(steps(&pod(simple()), &View::default(), &memory, 0), []);
    }

    #[test]
    fn a_finished_pod_keeps_its_containers_until_it_is_deleted() {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
        let mut done = view(vec![instance("a", 0, exited(1, 0))]);
        assert_eq!(
            steps(&pod(spec.clone()), &done, &Memory::default(), 2),
            [Step::StopSandbox { id: "s0".into() }]
        );
        done.sandboxes[0].ready = false;
        assert_eq!(steps(&pod(spec), &done, &Memory::default(), 2), []);
    }
}
