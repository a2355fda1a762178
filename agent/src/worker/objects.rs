//! What a pod refers to, and its volumes that follow it.

use super::{REFRESH, VOLUMES, Worker};
use agent_cri::Recorder;
use agent_pods::volumes::Sources;
use jiff::Timestamp;
use std::sync::Arc;

impl Worker {
    /// The objects the pod refers to; the last known ones while the API does not answer.
    pub(super) async fn sources(&mut self) -> Result<Sources, String> {
        let shared = Arc::clone(&self.shared);
        match shared
            .objects
            .sources(&self.pod, &self.needs, &mut self.held)
            .await
        {
            Ok(sources) => {
                self.sources = Some(sources.clone());
                Ok(sources)
            }
            Err(error) => self.sources.clone().ok_or_else(|| error.to_string()),
        }
    }

    /// Brings volumes made of files up to date after a change, for a new token, and now and then.
    pub(super) async fn refresh(&mut self) {
        let now = Timestamp::now();
        let due = self.refreshed.is_none_or(|at| now >= at + REFRESH)
            || self.held.renew().is_some_and(|at| now >= at);
        if !due || !self.view.any_running() || self.memory.gone || self.pod.deleting() {
            return;
        }
        self.refreshed = Some(now);
        let Ok(sources) = self.sources().await else { return };
        let facts = self.facts();
        if let Err(message) = self.shared.executor.refresh_volumes(&self.pod, &sources, &facts) {
            self.shared
                .events
                .warning(&self.pod, None, "FailedMount", message);
        }
    }

    /// What waits for an object that was missing is tried again now.
    pub(super) fn objects_changed(&mut self) {
        self.refreshed = None;
        self.sources = None;
        self.memory
            .failures
            .retain(|_, f| f.reason != "CreateContainerConfigError" && f.reason != VOLUMES);
    }
}
