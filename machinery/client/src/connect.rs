//! Where the API server is.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file cannot be read or is not a kubeconfig.
    #[error("cannot read the kubeconfig {path}: check that it exists and is YAML of kind Config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The text is not a kubeconfig, or names files that are missing.
    #[error("the kubeconfig is not usable: check its current-context, cluster and user")]
    Config(#[source] Box<kube::config::KubeconfigError>),
    /// TLS material does not fit.
    #[error("cannot set up the connection that the kubeconfig describes: check its certificates")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the current context of the kubeconfig at `path`.
///
/// # Errors
/// When the file cannot be read or does not describe a usable connection. The API server need not be there yet.
pub async fn from_kubeconfig(path: &Path) -> Result<Client, ConnectError> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|source| ConnectError::Read {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    from_parsed(kubeconfig).await
}

/// A client for the current context of a kubeconfig given as YAML.
///
/// # Errors
/// When the text does not describe a usable connection.
pub async fn from_kubeconfig_text(text: &str) -> Result<Client, ConnectError> {
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|source| ConnectError::Config(Box::new(source)))?;
    from_parsed(kubeconfig).await
}

async fn from_parsed(kubeconfig: Kubeconfig) -> Result<Client, ConnectError> {
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|source| ConnectError::Config(Box::new(source)))?;
    config.default_namespace = "default".to_owned();
    Client::try_from(config).map_err(|source| ConnectError::Client(Box::new(source)))
}

/// A client that calls an API server in this process: same requests and answers, no socket.
pub fn in_process<S, B>(service: S) -> Client
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Client::new(service, "default")
}
