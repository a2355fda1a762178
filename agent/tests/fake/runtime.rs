//! A container runtime on a unix socket that runs nothing: it keeps sandboxes and containers as records.

use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// What the runtime has.
#[derive(Default)]
pub struct State {
    pub sandboxes: Vec<PodSandbox>,
    pub containers: BTreeMap<String, (String, ContainerStatus)>,
    pub images: BTreeSet<String>,
    /// Names of the calls that change something, in order.
    pub calls: Vec<String>,
    /// How many of the next sandboxes fail.
    pub failing_sandboxes: u32,
    next: u32,
    clock: i64,
}

/// A handle on the runtime; clones share its state.
#[derive(Clone, Default)]
pub struct FakeRuntime(Arc<Mutex<State>>);

impl FakeRuntime {
    /// Serves on the socket until the test's runtime ends.
    pub fn serve(&self, socket: &Path) {
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(self.clone()))
            .add_service(ImageServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Ends all running containers with `code`.
    pub fn exit_all(&self, code: i32) {
        let mut state = self.state();
        let now = state.tick();
        for (_, status) in state.containers.values_mut() {
            if status.state == ContainerState::ContainerRunning as i32 {
                end(status, code, now);
            }
        }
    }

    /// Which calls changed something, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }
}

fn end(status: &mut ContainerStatus, code: i32, now: i64) {
    status.state = ContainerState::ContainerExited as i32;
    status.exit_code = code;
    status.finished_at = now;
    status.reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
}

impl State {
    /// The present, a bit later with each call so that an order is kept.
    fn tick(&mut self) -> i64 {
        self.clock += 1;
        i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap() + self.clock
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }
}

#[tonic::async_trait]
impl RuntimeService for FakeRuntime {
    type GetContainerEventsStream = ReceiverStream<Result<ContainerEventResponse, Status>>;

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            runtime_name: "fake".into(),
            ..VersionResponse::default()
        }))
    }

    async fn run_pod_sandbox(&self, r: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let config = r.into_inner().config.unwrap();
        let mut state = self.state();
        let metadata = config.metadata.clone().unwrap();
        state.calls.push(format!("sandbox {}", metadata.attempt));
        if state.failing_sandboxes > 0 {
            state.failing_sandboxes -= 1;
            return Err(Status::unknown("no network"));
        }
        let (pod_sandbox_id, created_at) = (state.id("s"), state.tick());
        let sandbox = PodSandbox {
            id: pod_sandbox_id.clone(),
            metadata: Some(metadata),
            state: PodSandboxState::SandboxReady as i32,
            created_at,
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: String::new(),
        };
        state.sandboxes.push(sandbox);
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(&self, r: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        let mut state = self.state();
        state.calls.push("stop sandbox".into());
        let sandbox = state
            .sandboxes
            .iter_mut()
            .find(|s| s.id == id)
            .ok_or_else(|| Status::not_found("gone"))?;
        sandbox.state = PodSandboxState::SandboxNotready as i32;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        let mut state = self.state();
        state.calls.push("remove sandbox".into());
        state.sandboxes.retain(|s| s.id != id);
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        _: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let network = PodSandboxNetworkStatus {
            ip: "10.244.0.9".into(),
            additional_ips: Vec::new(),
        };
        let status = PodSandboxStatus {
            network: Some(network),
            ..PodSandboxStatus::default()
        };
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status),
            ..PodSandboxStatusResponse::default()
        }))
    }

    async fn list_pod_sandbox(&self, _: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        Ok(Response::new(ListPodSandboxResponse {
            items: self.state().sandboxes.clone(),
        }))
    }

    async fn create_container(&self, r: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let r = r.into_inner();
        let config = r.config.unwrap();
        let mut state = self.state();
        let metadata = config.metadata.clone().unwrap();
        state
            .calls
            .push(format!("create {} {}", metadata.name, metadata.attempt));
        let (container_id, created_at) = (state.id("c"), state.tick());
        let status = ContainerStatus {
            id: container_id.clone(),
            metadata: Some(metadata),
            created_at,
            image: config.image.clone(),
            image_ref: config.image.unwrap().image,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            ..ContainerStatus::default()
        };
        state
            .containers
            .insert(container_id.clone(), (r.pod_sandbox_id, status));
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, r: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let id = r.into_inner().container_id;
        let mut state = self.state();
        state.calls.push("start".into());
        let now = state.tick();
        let (_, status) = state
            .containers
            .get_mut(&id)
            .ok_or_else(|| Status::not_found("gone"))?;
        status.state = ContainerState::ContainerRunning as i32;
        status.started_at = now;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, r: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let r = r.into_inner();
        let mut state = self.state();
        state.calls.push(format!("stop {}", r.timeout));
        let now = state.tick();
        let (_, status) = state
            .containers
            .get_mut(&r.container_id)
            .ok_or_else(|| Status::not_found("gone"))?;
        end(status, 137, now);
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, r: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let mut state = self.state();
        state.calls.push("remove".into());
        state.containers.remove(&r.into_inner().container_id);
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, _: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let state = self.state();
        let list = state.containers.values().map(|(sandbox, s)| Container {
            id: s.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            metadata: s.metadata.clone(),
            state: s.state,
            labels: s.labels.clone(),
            ..Container::default()
        });
        Ok(Response::new(ListContainersResponse {
            containers: list.collect(),
        }))
    }

    async fn container_status(&self, r: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let state = self.state();
        let found = state.containers.get(&r.into_inner().container_id);
        let (_, status) = found.ok_or_else(|| Status::not_found("gone"))?;
        let status = Some(status.clone());
        Ok(Response::new(ContainerStatusResponse {
            status,
            ..ContainerStatusResponse::default()
        }))
    }

    async fn update_container_resources(
        &self,
        _: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        Err(Status::unimplemented(""))
    }
    async fn reopen_container_log(
        &self,
        _: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        Err(Status::unimplemented(""))
    }
    async fn exec_sync(&self, _: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        self.state().calls.push("exec".into());
        Ok(Response::new(ExecSyncResponse::default()))
    }
    async fn exec(&self, _: Request<ExecRequest>) -> Answer<ExecResponse> {
        Err(Status::unimplemented(""))
    }
    async fn attach(&self, _: Request<AttachRequest>) -> Answer<AttachResponse> {
        Err(Status::unimplemented(""))
    }
    async fn port_forward(&self, _: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        Err(Status::unimplemented(""))
    }
    async fn container_stats(&self, _: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_container_stats(
        &self,
        _: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn pod_sandbox_stats(&self, _: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_pod_sandbox_stats(
        &self,
        _: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        Err(Status::unimplemented(""))
    }
    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        Err(Status::unimplemented(""))
    }
    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Err(Status::unimplemented(""))
    }
    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Err(Status::unimplemented(""))
    }

    async fn image_status(&self, r: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let name = r.into_inner().image.unwrap().image;
        let there = self.state().images.contains(&name);
        let image = there.then(|| Image {
            id: format!("sha256:{name}"),
            ..Image::default()
        });
        Ok(Response::new(ImageStatusResponse {
            image,
            ..ImageStatusResponse::default()
        }))
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let name = r.into_inner().image.unwrap().image;
        self.state().calls.push(format!("pull {name}"));
        if name.contains("none") {
            return Err(Status::not_found("no such image"));
        }
        self.state().images.insert(name.clone());
        Ok(Response::new(PullImageResponse { image_ref: name }))
    }

    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Err(Status::unimplemented(""))
    }
    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Err(Status::unimplemented(""))
    }
}
