//! A client of the runtime's CRI socket.

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, ContainerConfig, ContainerFilter, ContainerStats, ContainerStatsFilter,
    CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse, ImageFsInfoRequest,
    ImageFsInfoResponse, LinuxContainerResources, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxConfig, PodSandboxFilter, PortForwardRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, RuntimeCondition,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
    UpdateContainerResourcesRequest, VersionRequest, VersionResponse,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// Largest message: an `ExecSync` answer may be this long (tonic's default is 4 MiB).
pub const LARGEST_MESSAGE: usize = 16 << 20;
/// Time for a call that does not wait for a container (upstream's `runtimeRequestTimeout`).
const CALL: Duration = Duration::from_secs(120);

/// A call the runtime did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The socket does not answer.
    #[error(
        "the container runtime does not answer; check that it runs and that its socket path is right: {0}"
    )]
    Unreachable(Box<Status>),
    /// The runtime refused or failed.
    #[error("{call}: {}", .status.message())]
    Failed {
        /// The CRI call.
        call: &'static str,
        /// Its answer.
        status: Box<Status>,
    },
    /// The answer lacks something the interface promises.
    #[error("{call}: the runtime's answer has no {missing}")]
    Incomplete {
        /// The CRI call.
        call: &'static str,
        /// The missing part.
        missing: &'static str,
    },
}

impl RuntimeError {
    pub(crate) fn new(call: &'static str, status: Status) -> Self {
        match status.code() {
            Code::Unavailable => Self::Unreachable(Box::new(status)),
            _ => Self::Failed {
                call,
                status: Box::new(status),
            },
        }
    }

    /// The gRPC code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable(_) => Code::Unavailable,
            Self::Failed { status, .. } => status.code(),
            Self::Incomplete { .. } => Code::Internal,
        }
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

/// A handle on the runtime; clones share one connection, which is made again when the runtime comes back.
#[derive(Clone, Debug)]
pub struct Runtime {
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

fn timed<T>(message: T, time: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

fn in_time<T>(message: T) -> Request<T> {
    timed(message, CALL)
}

/// Stopping or removing what is gone already is done.
fn gone_is_fine<T>(call: &'static str, answer: std::result::Result<T, Status>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(RuntimeError::new(call, status)),
    }
}

impl Runtime {
    /// A client of the socket at `path`; connects with the first call, must be called within a tokio runtime.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let path: PathBuf = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // containerd's gRPC server wants an authority that is a host name, not a path.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        let images = ImageServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        Self {
            channel,
            runtime,
            images,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// Name and version of the runtime.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn version(&self) -> Result<VersionResponse> {
        let request = timed(VersionRequest { version: "v1".into() }, Duration::from_secs(5));
        let answer = self.runtime().version(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| RuntimeError::new("Version", s))
    }

    /// The conditions `RuntimeReady` and `NetworkReady`.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn conditions(&self) -> Result<Vec<RuntimeCondition>> {
        let request = timed(StatusRequest { verbose: false }, Duration::from_secs(5));
        let answer = self
            .runtime()
            .status(request)
            .await
            .map_err(|s| RuntimeError::new("Status", s))?;
        Ok(answer.into_inner().status.unwrap_or_default().conditions)
    }

    /// Sandboxes, of one pod or all.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn sandboxes(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
        let answer = self
            .runtime()
            .list_pod_sandbox(in_time(ListPodSandboxRequest { filter }))
            .await;
        answer
            .map(|a| a.into_inner().items)
            .map_err(|s| RuntimeError::new("ListPodSandbox", s))
    }

    /// Containers, of one pod or all.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<k8s_cri::v1::Container>> {
        let answer = self
            .runtime()
            .list_containers(in_time(ListContainersRequest { filter }))
            .await;
        answer
            .map(|a| a.into_inner().containers)
            .map_err(|s| RuntimeError::new("ListContainers", s))
    }

    /// Makes and starts a sandbox; returns its identifier.
    ///
    /// # Errors
    /// [`RuntimeError`]; the attempt number of a failed sandbox may stay reserved.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.to_owned(),
        };
        // Twice the usual time: the runtime may have to pull the sandbox image.
        let answer = self.runtime().run_pod_sandbox(timed(request, CALL * 2)).await;
        answer
            .map(|a| a.into_inner().pod_sandbox_id)
            .map_err(|s| RuntimeError::new("RunPodSandbox", s))
    }

    /// Stops a sandbox and everything in it.
    ///
    /// # Errors
    /// [`RuntimeError`]; worth trying again.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = in_time(StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        });
        gone_is_fine("StopPodSandbox", self.runtime().stop_pod_sandbox(request).await)
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// [`RuntimeError`]; worth trying again.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = in_time(RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        });
        gone_is_fine(
            "RemovePodSandbox",
            self.runtime().remove_pod_sandbox(request).await,
        )
    }

    /// Makes a container; returns its identifier.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn create(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        of: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(of),
        };
        let answer = self.runtime().create_container(in_time(request)).await;
        answer
            .map(|a| a.into_inner().container_id)
            .map_err(|s| RuntimeError::new("CreateContainer", s))
    }

    /// Sets new limits for a running container.
    ///
    /// # Errors
    /// [`RuntimeError`]; the old limits hold then.
    pub async fn update_resources(&self, id: &str, limits: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..UpdateContainerResourcesRequest::default()
        };
        let answer = self.runtime().update_container_resources(in_time(request)).await;
        answer
            .map(drop)
            .map_err(|s| RuntimeError::new("UpdateContainerResources", s))
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`RuntimeError`]; the container then shows as exited with the reason.
    pub async fn start(&self, id: &str) -> Result<()> {
        let request = in_time(StartContainerRequest {
            container_id: id.to_owned(),
        });
        let answer = self.runtime().start_container(request).await;
        answer
            .map(|_| ())
            .map_err(|s| RuntimeError::new("StartContainer", s))
    }

    /// Stops a container: its stop signal, then SIGKILL after `grace` seconds.
    ///
    /// # Errors
    /// [`RuntimeError`]; worth trying again.
    pub async fn stop(&self, id: &str, grace: i64) -> Result<()> {
        let time = CALL + Duration::from_secs(grace.unsigned_abs());
        let request = timed(
            StopContainerRequest {
                container_id: id.to_owned(),
                timeout: grace,
            },
            time,
        );
        gone_is_fine("StopContainer", self.runtime().stop_container(request).await)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// [`RuntimeError`]; worth trying again.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let request = in_time(RemoveContainerRequest {
            container_id: id.to_owned(),
        });
        gone_is_fine("RemoveContainer", self.runtime().remove_container(request).await)
    }

    /// Runs a command in a container and waits for it; `seconds` zero waits without limit.
    ///
    /// # Errors
    /// [`RuntimeError`], with [`Code::DeadlineExceeded`] when it took longer than `seconds`.
    pub async fn exec_sync(&self, id: &str, cmd: Vec<String>, seconds: i64) -> Result<ExecSyncResponse> {
        let message = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout: seconds,
        };
        let mut request = Request::new(message);
        if seconds > 0 {
            request.set_timeout(Duration::from_secs(seconds.unsigned_abs()) + Duration::from_secs(2));
        }
        let answer = self.runtime().exec_sync(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| RuntimeError::new("ExecSync", s))
    }

    /// The URL at which the runtime streams an exec session.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn exec_url(&self, request: ExecRequest) -> Result<String> {
        let answer = self.runtime().exec(in_time(request)).await;
        answer
            .map(|a| a.into_inner().url)
            .map_err(|s| RuntimeError::new("Exec", s))
    }

    /// The URL at which the runtime streams an attach session.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn attach_url(&self, request: AttachRequest) -> Result<String> {
        let answer = self.runtime().attach(in_time(request)).await;
        answer
            .map(|a| a.into_inner().url)
            .map_err(|s| RuntimeError::new("Attach", s))
    }

    /// The URL at which the runtime forwards ports of a sandbox.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn port_forward_url(&self, sandbox: &str, port: Vec<i32>) -> Result<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: sandbox.to_owned(),
            port,
        };
        let answer = self.runtime().port_forward(in_time(request)).await;
        answer
            .map(|a| a.into_inner().url)
            .map_err(|s| RuntimeError::new("PortForward", s))
    }

    /// What containers use. Takes the runtime some milliseconds per container: not for every second.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn stats(&self, filter: Option<ContainerStatsFilter>) -> Result<Vec<ContainerStats>> {
        let answer = self
            .runtime()
            .list_container_stats(in_time(ListContainerStatsRequest { filter }))
            .await;
        answer
            .map(|a| a.into_inner().stats)
            .map_err(|s| RuntimeError::new("ListContainerStats", s))
    }

    /// The file systems that hold images.
    ///
    /// # Errors
    /// [`RuntimeError`]
    pub async fn image_fs(&self) -> Result<ImageFsInfoResponse> {
        let answer = self.images().image_fs_info(in_time(ImageFsInfoRequest {})).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| RuntimeError::new("ImageFsInfo", s))
    }
}
