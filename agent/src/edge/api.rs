//! How the agent reaches the API where the way there leads through a service that it programs itself.
//!
//! A node that starts has empty maps: the address of the service `kubernetes` leads nowhere until this agent has written
//! it, and it cannot know what to write before it has reached the API. So the service's endpoints are remembered on disk,
//! and tried when the configured address does not answer. TLS stays that of the configured name: whoever answers in its
//! place must hold its certificate.

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceBuilder};

/// For one address to answer, before the next is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// A watch may be silent for minutes: a connection whose other end is gone is found by this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Unanswered probes until then.
const PROBES: u32 = 3;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The kubeconfig cannot be read, or is not usable.
    #[error("the kubeconfig {path} is not usable: check that it exists and names a cluster and a user")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig was given, and this is no pod with a service account.
    #[error("there is no way to the API: name a kubeconfig, or run in a pod with a service account")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The address given in place of the configured one is none.
    #[error("`{0}` is no address of an API server: write it like https://192.0.2.1:6443")]
    Server(String),
    /// TLS or credentials.
    #[error("the connection to the API cannot be set up: check the certificates and credentials")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where the API is.
#[derive(Clone, Debug, Default)]
pub struct ApiAccess {
    /// The kubeconfig; that of the pod's service account if absent.
    pub kubeconfig: Option<PathBuf>,
    /// An address in place of the configured one, such as `https://192.0.2.1:6443`.
    pub server: Option<String>,
}

impl ApiAccess {
    /// A client that also knows the remembered endpoints.
    ///
    /// # Errors
    /// When there is no usable configuration. The API need not answer yet.
    pub async fn connect(&self, remembered: &Arc<Remembered>) -> Result<Client, ApiError> {
        let mut config = self.config().await?;
        if let Some(server) = &self.server {
            let uri: Uri = server.parse().map_err(|_| ApiError::Server(server.clone()))?;
            if uri.scheme().is_none() || uri.host().is_none() {
                return Err(ApiError::Server(server.clone()));
            }
            config.cluster_url = uri;
        }
        client(&config, Arc::clone(remembered)).map_err(ApiError::Setup)
    }

    async fn config(&self) -> Result<Config, ApiError> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster_env().map_err(|e| ApiError::InCluster(Box::new(e)));
        };
        let wrong = |source| ApiError::Kubeconfig {
            path: path.clone(),
            source: Box::new(source),
        };
        let parsed = Kubeconfig::read_from(path).map_err(wrong)?;
        Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .map_err(wrong)
    }
}

fn client(config: &Config, remembered: Arc<Remembered>) -> Result<Client, BoxError> {
    let mut inner = HttpConnector::new();
    inner.enforce_http(false);
    inner.set_nodelay(true);
    inner.set_connect_timeout(Some(CONNECT));
    inner.set_keepalive(Some(KEEPALIVE));
    inner.set_keepalive_interval(Some(KEEPALIVE));
    inner.set_keepalive_retries(Some(PROBES));
    let connector = config.rustls_https_connector_with_connector(Connector { inner, remembered })?;
    let http: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}

/// Connects to the address asked for, else to one that was remembered.
#[derive(Clone)]
struct Connector {
    inner: HttpConnector,
    remembered: Arc<Remembered>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut inner, others) = (self.inner.clone(), self.remembered.addresses());
        Box::pin(async move {
            let first: BoxError = match inner.call(uri).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error.into(),
            };
            for address in others {
                let uri: Uri = format!("http://{address}/").parse()?;
                match inner.call(uri).await {
                    Ok(stream) => {
                        tracing::info!(%address, error = %first, "the API is reached at an endpoint remembered from before");
                        return Ok(stream);
                    }
                    Err(error) => tracing::debug!(%address, %error, "remembered endpoint of the API"),
                }
            }
            Err(first)
        })
    }
}

/// The endpoints of the API, kept over restarts of the machine.
#[derive(Debug)]
pub struct Remembered {
    path: PathBuf,
    addresses: RwLock<Vec<SocketAddr>>,
}

impl Remembered {
    /// Those of last time, if there was one.
    #[must_use]
    pub fn open(path: &Path) -> Arc<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let addresses = text.lines().filter_map(|line| line.parse().ok()).collect();
        Arc::new(Self {
            path: path.to_owned(),
            addresses: RwLock::new(addresses),
        })
    }

    /// The addresses, to be tried in this order.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes the endpoints that the service `kubernetes` has now. None at all is taken for a mistake, not for news.
    pub fn learn(&self, mut now: Vec<SocketAddr>) {
        now.sort_unstable();
        now.dedup();
        let mut known = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if now.is_empty() || *known == now {
            return;
        }
        let lines: String = now.iter().map(|a| format!("{a}\n")).collect();
        *known = now;
        drop(known);
        if let Err(error) = self.save(&lines) {
            tracing::warn!(path = %self.path.display(), %error, "the API's endpoints are not remembered over a restart of this machine");
        }
    }

    fn save(&self, lines: &str) -> std::io::Result<()> {
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let draft = self.path.with_extension("new");
        std::fs::write(&draft, lines)?;
        std::fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_are_known_after_a_restart_and_none_is_no_news() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/api-endpoints");
        let first = Remembered::open(&path);
        assert!(first.addresses().is_empty());
        first.learn(vec![
            address("192.0.2.2:6443"),
            address("192.0.2.1:6443"),
            address("192.0.2.2:6443"),
        ]);
        first.learn(Vec::new());
        assert_eq!(
            Remembered::open(&path).addresses(),
            [address("192.0.2.1:6443"), address("192.0.2.2:6443")]
        );
    }

    #[tokio::test]
    async fn when_the_address_does_not_answer_a_remembered_endpoint_does() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            let body = r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + body).as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        // A port that was free a moment ago and that nobody listens on.
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let remembered = Remembered::open(&dir.path().join("e"));
        remembered.learn(vec![there]);
        let config = Config::new(format!("http://{closed}").parse().unwrap());
        let version = client(&config, remembered)
            .unwrap()
            .apiserver_version()
            .await
            .unwrap();
        assert_eq!(version.minor, "36");
        let request = server.await.unwrap().to_lowercase();
        assert!(request.contains(&format!("host: {closed}")), "{request}");
    }

    #[tokio::test]
    async fn an_address_without_a_scheme_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, "{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}]}").unwrap();
        let access = ApiAccess {
            kubeconfig: Some(path),
            server: Some("192.0.2.1:6443".to_owned()),
        };
        let error = access
            .connect(&Remembered::open(&dir.path().join("e")))
            .await
            .err()
            .unwrap();
        assert!(matches!(error, ApiError::Server(_)), "{error}");
    }
}
