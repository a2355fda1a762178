//! Telling the API how the pod is.

use super::Worker;
use crate::report;
use agent_cri::Recorder;
use agent_pods::model::PodModel;
use agent_pods::plan::Observed;
use agent_pods::status::{reported_container, status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};

const CRASH_LOOP: &str = "CrashLoopBackOff";

impl Worker {
    /// Reports the status if it changed. False when the API did not take it.
    pub(super) async fn report(&mut self) -> bool {
        if self.frozen || self.memory.gone {
            return true;
        }
        let observed = Observed {
            pod: &self.pod,
            view: &self.view,
            memory: &self.memory,
            probes: &self.outcomes,
            now: Timestamp::now(),
        };
        let new = status(&observed, &self.shared.host);
        if self.sent.as_ref() == Some(&new) {
            return true;
        }
        let Some(patch) = report::patch(self.pod.uid(), self.pod.reported(), &new) else {
            return true;
        };
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), self.pod.namespace());
        match api
            .patch_status(self.pod.name(), &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(pod) => self.took(pod, new),
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => true,
            Err(error) => {
                tracing::debug!(pod = self.pod.name(), %error, "status not reported, will be tried again");
                false
            }
        }
    }

    fn took(&mut self, pod: Pod, sent: PodStatus) -> bool {
        for name in crash_loops(&sent) {
            let before = reported_container(&self.pod, name).and_then(|s| s.state.as_ref()?.waiting.as_ref());
            if before.and_then(|w| w.reason.as_deref()) != Some(CRASH_LOOP) {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    self.pod.name()
                );
                self.shared
                    .events
                    .warning(&self.pod, Some(name), "BackOff", message);
            }
        }
        self.sent = Some(sent);
        self.pod = PodModel::new(pod);
        true
    }
}

/// Containers that wait for their next run.
fn crash_loops(status: &PodStatus) -> impl Iterator<Item = &str> {
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.filter(|s| {
        let waiting = s.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|w| w.reason.as_deref() == Some(CRASH_LOOP))
    })
    .map(|s| s.name.as_str())
}
