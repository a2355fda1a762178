//! Bringing a pod up: its sandbox, the device of it in the data path, its containers.

use super::{Told, VOLUMES, Worker};
use crate::network::Addresses;
use agent_cri::{Recorder, StartError, StartInput};
use agent_pods::fields::Facts;
use agent_pods::resize::Resized;
use jiff::Timestamp;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

impl Worker {
    pub(super) async fn create_sandbox(&mut self, attempt: u32) -> Result<bool, ()> {
        match self.try_sandbox(attempt).await {
            Ok(()) => self.memory.sandbox_failure = None,
            Err(why) => {
                self.shared
                    .events
                    .warning(&self.pod, None, "FailedCreatePodSandBox", why.clone());
                self.memory.sandbox_failed(attempt, why, Timestamp::now());
            }
        }
        Ok(true)
    }

    async fn try_sandbox(&mut self, attempt: u32) -> Result<(), String> {
        if self.pod.spec().host_users == Some(false) && !self.shared.user_namespaces {
            return Err(
                "the pod asks for a user namespace of its own (hostUsers: false), which this container \
                runtime would silently ignore; use containerd 2.x"
                    .to_owned(),
            );
        }
        let addresses = match self.pod.host_network() {
            true => Addresses::default(),
            false => self.shared.network.allocate(self.pod.uid())?,
        };
        let shared = Arc::clone(&self.shared);
        let made = shared
            .executor
            .create_sandbox(&self.pod, attempt, &addresses.annotations);
        let mut told = self.told.clone();
        tokio::select! {
            made = made => made.map(|_| ()),
            () = deleted(&mut told) => Err("the pod was deleted meanwhile".to_owned()),
        }
    }

    /// Starts a container, unless the pod is deleted meanwhile. Whether something happened.
    pub(super) async fn start(&mut self, name: &str, attempt: u32, sandbox: &str, backoff: u32) -> bool {
        self.remember_resources(name, attempt);
        match self.try_start(name, attempt, sandbox, backoff).await {
            Ok(()) => {
                self.memory.failures.remove(name);
            }
            Err(error) => {
                tracing::debug!(pod = self.pod.name(), container = name, %error, "container not started");
                self.memory
                    .failed(name, error.reason, error.message, Timestamp::now());
            }
        }
        true
    }

    async fn try_start(
        &mut self,
        name: &str,
        attempt: u32,
        sandbox: &str,
        backoff: u32,
    ) -> Result<(), StartError> {
        let sources = self.sources().await.map_err(|m| StartError {
            reason: VOLUMES,
            message: m,
        })?;
        let facts = self.facts();
        let shared = Arc::clone(&self.shared);
        if let Err(message) = shared.executor.set_up_volumes(&self.pod, &sources, &facts) {
            shared
                .events
                .warning(&self.pod, None, "FailedMount", message.clone());
            return Err(StartError {
                reason: VOLUMES,
                message,
            });
        }
        let Some(member) = self.pod.member(name) else {
            return Ok(());
        };
        let target = member
            .target
            .as_deref()
            .and_then(|t| self.view.newest(t))
            .map(|i| i.id.clone());
        let input = StartInput {
            member,
            attempt,
            backoff,
            sandbox,
            sandbox_attempt: self.view.newest_sandbox().map_or(0, |s| s.attempt),
            target: target.as_deref(),
            sources: &sources,
            facts: &facts,
        };
        self.announce_back_off(name);
        let mut told = self.told.clone();
        tokio::select! {
            done = shared.executor.start(&self.pod, &input, &shared.events) => done,
            () = deleted(&mut told) => Ok(()),
        }
    }

    /// Gives running containers new limits. A failure is planned again after a pause.
    pub(super) async fn resize(&mut self, containers: &[Resized]) {
        let done = self.shared.executor.resize(&self.pod, containers).await;
        if let Err(message) = done {
            let events = &self.shared.events;
            events.warning(&self.pod, None, "ResizeError", message.clone());
            return self.memory.resize_failed(message, Timestamp::now());
        }
        self.memory.resize_failure = None;
        for container in containers {
            self.remember_resources(&container.name, container.attempt);
        }
        let message = "Pod resize completed".to_owned();
        let events = &self.shared.events;
        events.normal(&self.pod, None, "ResizeCompleted", message);
    }

    /// Notes what a container was started or resized with.
    fn remember_resources(&mut self, name: &str, attempt: u32) {
        let Some(member) = self.pod.member(name) else {
            return;
        };
        let resources = member.spec.resources.clone().unwrap_or_default();
        let known = (attempt, resources);
        self.memory.resources.insert(name.to_owned(), known);
    }

    fn announce_back_off(&self, name: &str) {
        let Some(failure) = self
            .memory
            .failures
            .get(name)
            .filter(|f| f.reason == "ErrImagePull")
        else {
            return;
        };
        let image = self
            .pod
            .member(name)
            .and_then(|m| m.spec.image.as_deref())
            .unwrap_or_default();
        let message = format!("Back-off pulling image {image:?}: {}", failure.message);
        self.shared
            .events
            .normal(&self.pod, Some(name), "BackOff", message);
    }

    pub(super) fn wants_device(&self) -> bool {
        !self.pod.host_network() && self.view.ready_sandbox().is_some() && !self.memory.gone
    }

    /// Connects a new sandbox to the data path before its containers start, and an adopted one again.
    pub(super) fn attach(&mut self) {
        let Some(sandbox) = self.view.ready_sandbox().map(|s| s.id.clone()) else {
            return;
        };
        if !self.wants_device() || self.attached.as_ref() == Some(&sandbox) {
            return;
        }
        match self.shared.network.attach(self.pod.uid()) {
            Ok(()) => self.attached = Some(sandbox),
            Err(message) => {
                self.attached = None;
                self.shared
                    .events
                    .warning(&self.pod, None, "FailedAttachDatapath", message);
            }
        }
    }

    pub(super) fn facts(&self) -> Facts {
        let ips = match self.pod.host_network() {
            true => self.shared.host.ips.clone(),
            false => self
                .view
                .newest_sandbox()
                .map(|s| s.ips.clone())
                .unwrap_or_default(),
        };
        Facts {
            pod_ips: ips,
            ..self.shared.node.clone()
        }
    }

    /// Where the pod's containers are reached.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.facts().pod_ips.first().copied()
    }
}

/// Ready when the pod is to be stopped.
async fn deleted(told: &mut watch::Receiver<Told>) {
    let ending = |t: &Told| {
        t.pod
            .as_ref()
            .is_none_or(|p| p.metadata.deletion_timestamp.is_some())
    };
    if told.wait_for(ending).await.is_err() {
        std::future::pending().await
    }
}
