//! Bringing a pod down: its containers, what it left, its object.

use super::Worker;
use agent_cri::{Recorder, RuntimeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for an answer of the API.
const API: Duration = Duration::from_secs(10);

impl Worker {
    pub(super) fn kill(&mut self, id: &str, name: &str, grace: i64, why: &str) {
        let by = Timestamp::now() + SignedDuration::from_secs(grace);
        // A shortened stop is the same stop to people.
        if self.memory.stopping.insert(id.to_owned(), by).is_none() {
            self.shared
                .events
                .normal(&self.pod, Some(name), "Killing", why.to_owned());
        }
        let (shared, pod, ip) = (Arc::clone(&self.shared), self.pod.clone(), self.ip());
        let (id, name) = (id.to_owned(), name.to_owned());
        self.stops.spawn(async move {
            let member = pod.member(&name);
            let done = shared
                .executor
                .stop(&pod, member, &id, grace, ip, &shared.events)
                .await;
            (id, done)
        });
    }

    pub(super) fn stopped(&mut self, done: Option<(String, Result<(), RuntimeError>)>) {
        let Some((id, result)) = done else { return };
        if let Err(error) = result {
            tracing::warn!(pod = self.pod.name(), container = id, %error, "container not stopped, will be tried again");
        }
        self.memory.stopping.remove(&id);
    }

    pub(super) async fn clean_up(&mut self) -> Result<(), String> {
        self.shared.executor.clean_up(&self.pod).await?;
        if !self.pod.host_network() {
            self.shared.network.release(self.pod.uid())?;
        }
        self.memory.cleaned = true;
        Ok(())
    }

    pub(super) async fn delete(&mut self) -> Result<(), String> {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), self.pod.namespace());
        let uid = Some(self.pod.uid().to_owned());
        let preconditions = Some(Preconditions {
            uid,
            resource_version: None,
        });
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions,
            ..DeleteParams::default()
        };
        match in_time(api.delete(self.pod.name(), &params)).await {
            Ok(_) => Ok(()),
            // Gone, or another pod by this name: either way it is not ours any more.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                self.memory.gone = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// An answer of the API, which a pod's worker does not wait for without end.
async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = |_| kube::Error::Service("the API server does not answer".into());
    tokio::time::timeout(API, call).await.map_err(late)?
}
