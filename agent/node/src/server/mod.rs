//! The kubelet API: logs, exec, attach, port forwarding, figures; what the API server passes on to the node.

pub mod files;
mod logs;
pub mod route;
pub mod spdy;
pub mod stats;
pub mod tls;
pub mod upgrade;
pub mod websocket;

use agent_cri::Runtime;
use agent_cri::dirs::Dirs;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_cri::v1::{AttachRequest, ExecRequest};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use machinery_client::Cache;
use route::{Query, Route};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use upgrade::{StreamError, Wish, pass, wish};
use websocket::{Streams, TUNNEL, V5};

/// Connections served at the same time; more wait.
const CONNECTIONS: usize = 512;
/// Time for the TLS handshake and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Chunks of a log on their way to a slow client.
const CHUNKS: usize = 64;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a request was refused; the text is the answer's body, as upstream's kubelet gives it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Bad(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<agent_cri::RuntimeError> for Refusal {
    fn from(error: agent_cri::RuntimeError) -> Self {
        match error.code() {
            tonic::Code::NotFound => Self::NotFound(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Bad(_) | Self::Stream(StreamError::Unsupported(_)) => StatusCode::BAD_REQUEST,
            Self::Failed(_) | Self::Stream(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The node's kubelet API.
pub struct KubeletApi {
    /// The node's name.
    pub node: String,
    /// The runtime, whose streaming server is on this node's loopback.
    pub runtime: Runtime,
    /// The node's pods.
    pub pods: Cache<Pod>,
    /// Where logs are.
    pub dirs: Dirs,
}

impl KubeletApi {
    /// Serves connections until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, acceptor: TlsAcceptor) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (api, acceptor) = (Arc::clone(&self), acceptor.clone());
                    tokio::spawn(async move {
                        api.connection(stream, acceptor).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the kubelet port was not accepted");
                    // Out of file descriptors, most likely: give others time to close theirs.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let stream = match tokio::time::timeout(HEAD, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let allowed = certificate.is_some_and(tls::allowed);
        let service = service_fn(move |request| {
            let api = Arc::clone(&self);
            async move { Ok::<_, Infallible>(api.answer(request, allowed).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = served.await {
            tracing::debug!(%error, "connection to the kubelet port ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, allowed: bool) -> Response<Body> {
        let route = Route::parse(request.uri().path());
        if !allowed && route != Some(Route::Health) {
            return text(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let result = match route {
            None => Err(Refusal::NotFound("404 page not found".to_owned())),
            Some(Route::Health) => Ok(text(StatusCode::OK, "ok")),
            Some(Route::Pods) => Ok(self.pods()),
            Some(Route::Summary) => self.summary().await,
            Some(Route::ResourceMetrics) => self.resource_metrics().await,
            Some(Route::Metrics) => Ok(self.metrics()),
            Some(Route::Files { path }) => files::page(Path::new(files::ROOT), &path)
                .await
                .map_err(|e| Refusal::NotFound(format!("{path}: {e}"))),
            Some(Route::Logs {
                namespace,
                pod,
                container,
            }) => self.logs(&namespace, &pod, &container, &query).await,
            Some(Route::Exec {
                namespace,
                pod,
                container,
            }) => self.exec(&namespace, &pod, &container, &query, request).await,
            Some(Route::Attach {
                namespace,
                pod,
                container,
            }) => self.attach(&namespace, &pod, &container, &query, request).await,
            Some(Route::PortForward { namespace, pod }) => {
                self.port_forward(&namespace, &pod, &query, request).await
            }
        };
        result.unwrap_or_else(|refusal| text(refusal.status(), &refusal.to_string()))
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
        let found = self.pods.get(&machinery_plan::Key::new(namespace, name));
        found.ok_or_else(|| Refusal::NotFound(format!("pod {name:?} does not exist on this node")))
    }

    fn pods(&self) -> Response<Body> {
        let items: Vec<_> = self
            .pods
            .list()
            .iter()
            .map(|p| serde_json::to_value(&**p).unwrap_or_default())
            .collect();
        json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    async fn summary(&self) -> Result<Response<Body>, Refusal> {
        let stats = stats::read(&self.runtime).await?;
        Ok(json(&stats::summary(&self.node, &stats, jiff::Timestamp::now())))
    }

    async fn resource_metrics(&self) -> Result<Response<Body>, Refusal> {
        let stats = stats::read(&self.runtime).await?;
        Ok(text(StatusCode::OK, &stats::resource_metrics(&stats)))
    }

    fn metrics(&self) -> Response<Body> {
        let pods = self.pods.len();
        text(
            StatusCode::OK,
            &format!("# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n"),
        )
    }

    async fn logs(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &Query,
    ) -> Result<Response<Body>, Refusal> {
        let pod = self.find(namespace, name)?;
        let status = container_status(&pod, container)?;
        let (id, attempt) = run(status, query.flag("previous"), name, container)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let folder = self.dirs.pod_logs(namespace, name, &uid);
        let path = folder.join(agent_pods::names::log_file(container, attempt));
        let options = query.log_options(jiff::Timestamp::now()).map_err(Refusal::Bad)?;
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let runtime = self.runtime.clone();
        let over = async move || ended(&runtime, &id).await;
        tokio::spawn(logs::stream(path, options, over, sender));
        let frames = futures::stream::unfold(receiver, async |mut r| r.recv().await.map(|item| (item, r)));
        let body = StreamBody::new(frames.map(|item| item.map(Frame::data)));
        let mut answer = Response::new(body.boxed_unsync());
        let plain = http::HeaderValue::from_static("text/plain");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, plain);
        Ok(answer)
    }

    async fn exec(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let id = self.running(namespace, name, container)?;
        let streams = query.streams();
        let asked = ExecRequest {
            container_id: id,
            cmd: query.all("command"),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            // The runtime refuses a separate error stream beside a terminal.
            stderr: streams.stderr && !streams.tty,
        };
        let url = self.runtime.exec_url(asked).await?;
        session(&url, streams, request).await
    }

    async fn attach(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let id = self.running(namespace, name, container)?;
        let streams = query.streams();
        let asked = AttachRequest {
            container_id: id,
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        };
        let url = self.runtime.attach_url(asked).await?;
        session(&url, streams, request).await
    }

    async fn port_forward(
        &self,
        namespace: &str,
        name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let pod = self.find(namespace, name)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let view = agent_cri::view::Viewer::default()
            .view(&self.runtime, &uid)
            .await?;
        let sandbox = view
            .ready_sandbox()
            .ok_or_else(|| Refusal::Failed(format!("pod {name:?} is not running")))?;
        let ports = query.all("port").iter().filter_map(|p| p.parse().ok()).collect();
        let url = self.runtime.port_forward_url(&sandbox.id, ports).await?;
        let (method, headers, client) = parts(request);
        match wish(&headers) {
            Some(Wish::WebSocket(offered)) if offered.iter().any(|p| p == TUNNEL) => {
                let answer = websocket::accept(&headers, TUNNEL)?;
                websocket::tunnel(&url, client).await?;
                Ok(answer.map(|()| empty()))
            }
            Some(_) => Ok(pass(&url, method, &headers, client).await?.map(|()| empty())),
            None => Err(StreamError::Unsupported("no upgrade was asked for".to_owned()).into()),
        }
    }

    /// The identifier of a running container.
    fn running(&self, namespace: &str, name: &str, container: &str) -> Result<String, Refusal> {
        let pod = self.find(namespace, name)?;
        let status = container_status(&pod, container)?;
        let runs = status.state.as_ref().is_some_and(|s| s.running.is_some());
        let id = status
            .container_id
            .as_deref()
            .filter(|_| runs)
            .and_then(identifier);
        id.ok_or_else(|| Refusal::NotFound(format!("container {container:?} of pod {name:?} is not running")))
    }
}

/// Without the runtime's scheme.
fn identifier(id: &str) -> Option<String> {
    id.split_once("://").map(|(_, id)| id.to_owned())
}

fn container_status<'a>(pod: &'a Pod, container: &str) -> Result<&'a ContainerStatus, Refusal> {
    let status = pod.status.as_ref();
    let lists = status.map(|s| {
        [
            &s.container_statuses,
            &s.init_container_statuses,
            &s.ephemeral_container_statuses,
        ]
    });
    let found = lists
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .find(|s| s.name == container);
    found.ok_or_else(|| {
        Refusal::NotFound(format!(
            "container {container:?} is not in the pod, or not known yet"
        ))
    })
}

/// Which run's log is asked for: its identifier and number.
fn run(
    status: &ContainerStatus,
    previous: bool,
    pod: &str,
    container: &str,
) -> Result<(String, u32), Refusal> {
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let state = status.state.as_ref();
    let waiting = state.and_then(|s| s.waiting.as_ref());
    if previous {
        let id = last.and_then(|t| identifier(t.container_id.as_deref()?));
        let id = id.ok_or_else(|| {
            Refusal::Bad(format!(
                "previous terminated container {container:?} in pod {pod:?} not found"
            ))
        })?;
        // In a crash loop the last run is the newest one.
        let attempt = if waiting.is_some() {
            count
        } else {
            count.saturating_sub(1)
        };
        return Ok((id, attempt));
    }
    let own = state
        .and_then(|s| s.terminated.as_ref())
        .and_then(|t| t.container_id.as_deref());
    let id = own.or(status.container_id.as_deref()).and_then(identifier);
    id.map(|id| (id, count)).ok_or_else(|| {
        let why = waiting
            .and_then(|w| w.reason.clone())
            .unwrap_or_else(|| "ContainerCreating".to_owned());
        Refusal::Bad(format!(
            "container {container:?} in pod {pod:?} is waiting to start: {why}"
        ))
    })
}

/// Whether the container writes no more.
async fn ended(runtime: &Runtime, id: &str) -> bool {
    match agent_cri::view::container_status(runtime, id).await {
        Ok(Some(status)) => status.state != k8s_cri::v1::ContainerState::ContainerRunning as i32,
        Ok(None) => true,
        // The runtime is away, and the container goes on.
        Err(_) => false,
    }
}

fn parts(mut request: Request<Incoming>) -> (Method, HeaderMap, OnUpgrade) {
    let client = hyper::upgrade::on(&mut request);
    (request.method().clone(), request.headers().clone(), client)
}

/// Exec and attach: v5 is translated, everything else goes through as it is.
async fn session(url: &str, streams: Streams, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (method, headers, client) = parts(request);
    match wish(&headers) {
        Some(Wish::WebSocket(offered)) if offered.iter().any(|p| p == V5) => {
            let answer = websocket::accept(&headers, V5)?;
            websocket::session(url, streams, client).await?;
            Ok(answer.map(|()| empty()))
        }
        Some(_) => Ok(pass(url, method, &headers, client).await?.map(|()| empty())),
        None => Err(StreamError::Unsupported("no upgrade was asked for".to_owned()).into()),
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn empty() -> Body {
    full(Bytes::new())
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    let mut answer = Response::new(full(body.to_owned()));
    *answer.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    answer
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut answer = Response::new(full(value.to_string()));
    let kind = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}
