//! The Kubernetes API over HTTP: one schema-driven engine for every kind.
//!
//! A request passes the layers that [`ApiServer::handle`] lists, then the generic [`engine`]; what is special to a
//! kind is in `api::kinds` (rules), [`strategy`] (state of the cluster) and [`admission`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admission;
mod authn;
mod authz;
pub mod body;
mod bootstrap;
mod call;
pub mod cidr;
mod config;
mod endpoints;
mod engine;
mod error;
mod filter;
pub mod identity;
mod layers;
mod metrics;
pub mod negotiate;
mod object;
pub mod options;
pub mod path;
pub mod pki;
mod proxy;
mod random;
mod render;
mod serve;
mod service;
mod strategy;
pub mod tokens;

use std::sync::Arc;

use control_plane_store::Store;

pub use config::{Config, MAX_BODY};
pub use identity::Identity;
pub use serve::ServeError;
pub use service::InProcess;

/// Why an API server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys cannot be used.
    #[error("the API server cannot use its keys")]
    Pki(#[from] pki::PkiError),
    /// The key for service-account tokens cannot be used.
    #[error("the API server cannot sign service account tokens")]
    Token(#[from] tokens::TokenError),
    /// An object every cluster has could not be made.
    #[error("the API server cannot make {what}: {why}")]
    Bootstrap {
        /// Which object.
        what: String,
        /// What the API answered.
        why: String,
    },
}

/// An API server: the same handle for TLS listeners and for users in this process. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) signer: tokens::TokenSigner,
    pub(crate) services: strategy::services::Services,
    pub(crate) authorizer: authz::Authorizer,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) limits: layers::Limits,
    pub(crate) kubelets: proxy::Dialer,
    pub(crate) ready: std::sync::atomic::AtomicBool,
}

impl ApiServer {
    /// A server on this store. Makes the objects that every cluster has (namespaces, roles, priority classes, the
    /// service `kubernetes`) when they are missing.
    ///
    /// # Errors
    /// [`StartError`] when keys are unusable or the store does not take these objects.
    pub async fn new(config: Config, store: Store) -> Result<Self, StartError> {
        let signer = tokens::TokenSigner::new(config.pki.service_account_key(), &config.issuer)?;
        let services = strategy::services::Services::new(
            &config.service_cidrs,
            config.node_ports.clone(),
            &store.snapshot(),
        );
        let inner = Inner {
            signer,
            services,
            authorizer: authz::Authorizer::new(),
            metrics: metrics::Metrics::default(),
            limits: layers::Limits::new(config.max_in_flight),
            kubelets: proxy::Dialer::new(&config.pki)?,
            ready: std::sync::atomic::AtomicBool::new(false),
            config,
            store,
        };
        let server = Self {
            inner: Arc::new(inner),
        };
        bootstrap::run(&server).await?;
        authz::follow(&server.inner);
        server
            .inner
            .ready
            .store(true, std::sync::atomic::Ordering::Release);
        Ok(server)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// A service for callers in this process, who act as `identity`: the same layers, no TCP and no TLS. It fits
    /// `kube::Client`.
    #[must_use]
    pub fn in_process(&self, identity: Identity) -> InProcess {
        InProcess::new(self.clone(), identity)
    }
}
