//! Probes of running containers.

use super::{Checked, Worker};
use agent_cri::Recorder;
use agent_pods::model::Role;
use agent_pods::probe::{Found, Kind, Prober};
use agent_pods::status::reported_container;
use agent_pods::view::State;
use jiff::Timestamp;

impl Worker {
    /// Probes follow the running instances; those of ended ones go.
    pub(super) fn follow_instances(&mut self) {
        let running: Vec<_> = self.view.containers.iter().filter(|c| c.running()).collect();
        self.probers.retain(|id, _| running.iter().any(|c| c.id == *id));
        self.memory
            .stopping
            .retain(|id, _| running.iter().any(|c| c.id == *id));
        for run in running {
            let (State::Running { started }, Some(member)) = (&run.state, self.pod.member(&run.name)) else {
                continue;
            };
            if self.probers.contains_key(&run.id) || !matches!(member.role, Role::Regular | Role::Sidecar) {
                continue;
            }
            let old = reported_container(&self.pod, &run.name);
            let same = |id: &str| id.ends_with(&run.id);
            let was_ready = old.is_some_and(|s| s.ready && s.container_id.as_deref().is_some_and(same));
            let prober = Prober::new(member, *started, was_ready);
            self.outcomes.set(&run.id, prober.outcome().clone());
            self.probers.insert(run.id.clone(), prober);
        }
    }

    /// Starts the checks that are due.
    pub(super) fn probe(&mut self) {
        let now = Timestamp::now();
        let ip = self.ip();
        let stopping = self.pod.deleting() || self.memory.gone;
        for (id, prober) in &mut self.probers {
            let Some(run) = self.view.containers.iter().find(|c| c.id == *id) else {
                continue;
            };
            let Some(member) = self.pod.member(&run.name).cloned() else {
                continue;
            };
            for (kind, probe) in prober.due(now) {
                // A pod that is being stopped is only asked whether it is still ready.
                if stopping && kind != Kind::Readiness {
                    continue;
                }
                let (runtime, id, member) =
                    (self.shared.executor.runtime().clone(), id.clone(), member.clone());
                self.checks.spawn(async move {
                    let found = agent_cri::probes::check(&runtime, &id, &member, &probe, ip).await;
                    Checked {
                        instance: id,
                        container: member.spec.name,
                        kind,
                        found,
                    }
                });
            }
        }
    }

    pub(super) fn checked(&mut self, checked: Option<Checked>) {
        let Some(Checked {
            instance,
            container,
            kind,
            found,
        }) = checked
        else {
            return;
        };
        if let Found::Fail(why) = &found {
            let name = kind.name();
            let message = format!("{}{} probe failed: {why}", name[..1].to_uppercase(), &name[1..]);
            self.shared
                .events
                .warning(&self.pod, Some(&container), "Unhealthy", message);
        }
        if let Some(prober) = self.probers.get_mut(&instance) {
            prober.record(kind, &found, Timestamp::now());
            self.outcomes.set(&instance, prober.outcome().clone());
        }
    }
}
