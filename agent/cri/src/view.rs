//! The runtime's sandboxes and containers as the planner reads them.

use crate::client::{Runtime, RuntimeError};
use agent_pods::names::{
    ANNOTATION_BACKOFF, ANNOTATION_HASH, ANNOTATION_TERMINATION_PATH, ANNOTATION_TERMINATION_POLICY,
    LABEL_CONTAINER_NAME, LABEL_POD_UID,
};
use agent_pods::view::{Exit, Instance, Sandbox, State, View};
use jiff::Timestamp;
use k8s_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, PodSandbox, PodSandboxFilter,
    PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use tonic::Code;

/// A pod's view, made again and again; what ended is asked for only once, since it does not change any more.
#[derive(Debug, Default)]
pub struct Viewer {
    ended: BTreeMap<String, Instance>,
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

fn of_pod(uid: &str) -> HashMap<String, String> {
    HashMap::from([(LABEL_POD_UID.to_owned(), uid.to_owned())])
}

/// Nanoseconds since the epoch; zero is the runtime's "not yet".
fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Viewer {
    /// Asks the runtime for everything of the pod `uid`.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn view(&mut self, runtime: &Runtime, uid: &str) -> Result<View, RuntimeError> {
        let filter = PodSandboxFilter {
            label_selector: of_pod(uid),
            ..PodSandboxFilter::default()
        };
        let listed = runtime.sandboxes(Some(filter)).await?;
        let filter = ContainerFilter {
            label_selector: of_pod(uid),
            ..ContainerFilter::default()
        };
        let containers = runtime.containers(Some(filter)).await?;
        let mut view = View::default();
        for sandbox in listed {
            view.sandboxes.push(self.sandbox(runtime, sandbox).await?);
        }
        for container in &containers {
            view.containers.extend(
                self.instance(runtime, &container.id, &container.pod_sandbox_id)
                    .await?,
            );
        }
        self.ended.retain(|id, _| containers.iter().any(|c| c.id == *id));
        self.addresses
            .retain(|id, _| view.sandboxes.iter().any(|s| s.id == *id));
        Ok(view.sorted())
    }

    async fn sandbox(&mut self, runtime: &Runtime, listed: PodSandbox) -> Result<Sandbox, RuntimeError> {
        let ready = listed.state == PodSandboxState::SandboxReady as i32;
        if ready && !self.addresses.contains_key(&listed.id) {
            let status = sandbox_status(runtime, &listed.id).await?;
            self.addresses.insert(
                listed.id.clone(),
                status.map(|s| addresses(&s)).unwrap_or_default(),
            );
        }
        Ok(Sandbox {
            attempt: listed.metadata.map_or(0, |m| m.attempt),
            ready,
            created: time(listed.created_at),
            ips: self.addresses.get(&listed.id).cloned().unwrap_or_default(),
            id: listed.id,
        })
    }

    async fn instance(
        &mut self,
        runtime: &Runtime,
        id: &str,
        sandbox: &str,
    ) -> Result<Option<Instance>, RuntimeError> {
        if let Some(known) = self.ended.get(id) {
            return Ok(Some(known.clone()));
        }
        let Some(status) = container_status(runtime, id).await? else {
            return Ok(None);
        };
        let mut instance = instance(&status, sandbox);
        if let State::Exited(exit) = &mut instance.state {
            if let Some(message) = termination_message(&status, exit.code) {
                exit.message = message;
            }
            self.ended.insert(id.to_owned(), instance.clone());
        }
        Ok(Some(instance))
    }
}

/// A sandbox's status; none when it is gone.
///
/// # Errors
/// [`RuntimeError`]
pub async fn sandbox_status(runtime: &Runtime, id: &str) -> Result<Option<PodSandboxStatus>, RuntimeError> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: false,
    };
    match runtime.runtime().pod_sandbox_status(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(RuntimeError::new("PodSandboxStatus", status)),
    }
}

/// A container's status; none when it is gone.
///
/// # Errors
/// [`RuntimeError`]
pub async fn container_status(runtime: &Runtime, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    match runtime.runtime().container_status(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(RuntimeError::new("ContainerStatus", status)),
    }
}

fn addresses(status: &PodSandboxStatus) -> Vec<IpAddr> {
    let network = status.network.clone().unwrap_or_default();
    let more = network.additional_ips.iter().map(|ip| ip.ip.as_str());
    std::iter::once(network.ip.as_str())
        .chain(more)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn instance(status: &ContainerStatus, sandbox: &str) -> Instance {
    let annotation = |name: &str| status.annotations.get(name).map(String::as_str);
    let named = status.labels.get(LABEL_CONTAINER_NAME).cloned();
    let metadata = status.metadata.clone().unwrap_or_default();
    Instance {
        id: status.id.clone(),
        name: named.unwrap_or(metadata.name),
        attempt: metadata.attempt,
        sandbox: sandbox.to_owned(),
        created: time(status.created_at),
        state: state(status),
        image: status.image.clone().unwrap_or_default().image,
        image_id: status.image_ref.clone(),
        hash: annotation(ANNOTATION_HASH).and_then(|h| u64::from_str_radix(h, 16).ok()),
        backoff: annotation(ANNOTATION_BACKOFF)
            .and_then(|b| b.parse().ok())
            .unwrap_or(0),
    }
}

fn state(status: &ContainerStatus) -> State {
    match ContainerState::try_from(status.state) {
        Ok(ContainerState::ContainerCreated) => State::Created,
        Ok(ContainerState::ContainerRunning) => State::Running {
            started: time(status.started_at),
        },
        Ok(ContainerState::ContainerExited) => State::Exited(Exit {
            started: (status.started_at != 0).then(|| time(status.started_at)),
            finished: time(status.finished_at),
            code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
        }),
        _ => State::Unknown,
    }
}

/// The message the container left, else, under `FallbackToLogsOnError`, the end of its log.
fn termination_message(status: &ContainerStatus, code: i32) -> Option<String> {
    let path = status.annotations.get(ANNOTATION_TERMINATION_PATH)?;
    let mount = status.mounts.iter().find(|m| m.container_path == *path)?;
    let message = crate::termination::message(mount.host_path.as_ref());
    let policy = status
        .annotations
        .get(ANNOTATION_TERMINATION_POLICY)
        .map(String::as_str);
    match message {
        Some(text) => Some(text),
        None if code != 0 && policy == Some("FallbackToLogsOnError") => {
            crate::termination::log_tail(status.log_path.as_ref())
        }
        None => None,
    }
}
