//! Starting and stopping in order.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use control_plane_apiserver::cidr::Cidr;
use control_plane_apiserver::pki::{Pki, PkiError};
use control_plane_apiserver::{ApiServer, Config, Identity, StartError};
use control_plane_controllers::ipam::{Pool, Range, RangeError};
use control_plane_store::{EtcdConfig, OpenError, Options, Store};
use kube::Client;
use machinery_lifecycle::metrics::Metrics;
use machinery_lifecycle::{Ended, Readiness, Shutdown, StopReport, TaskSet, side_port};
use machinery_reconcile::Executor;
use tokio::net::TcpListener;

use crate::config::{Listen, ServerConfig, StoreKind};
use crate::controllers::{self, Settings};
use crate::kubeconfigs::{self, KubeconfigError};
use crate::scheduler;

/// Why a control plane cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data folder cannot be made.
    #[error("cannot make the data folder {path}: check its parent's permissions")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Keys or certificates.
    #[error("cannot open or make the cluster's keys and certificates")]
    Pki(#[from] PkiError),
    /// The store.
    #[error("cannot open the store")]
    Store(#[from] OpenError),
    /// A pod address range.
    #[error("cannot use the pod address ranges")]
    PodRange(#[from] RangeError),
    /// A range of addresses for load balancers.
    #[error("cannot use the address pools of load balancers")]
    BalancerPool(#[source] RangeError),
    /// A service address range.
    #[error(
        "cannot use the service address range {0}: write it as an address, a slash and the number of fixed bits"
    )]
    ServiceRange(String),
    /// The API server.
    #[error("cannot start the API server")]
    ApiServer(#[from] StartError),
    /// A socket.
    #[error("cannot listen on {address}: check that the address exists and no other process listens there")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kubeconfig.
    #[error("cannot write the kubeconfigs")]
    Kubeconfig(#[from] KubeconfigError),
    /// A task ended that should not have.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// A running control plane.
pub struct ControlPlane {
    server: ApiServer,
    tasks: TaskSet,
    caches_ready: Readiness,
    all_ready: Readiness,
}

/// Runs a control plane until `shutdown` is requested, then stops it in order.
///
/// # Errors
/// When it cannot start, or when a part of it fails for good.
pub async fn run(config: ServerConfig, shutdown: Shutdown) -> Result<(), RunError> {
    let within = config.stop_within;
    let mut running = ControlPlane::start(config).await?;
    let ready = running.wait_ready();
    let outcome = tokio::select! {
        () = shutdown.requested() => Ok(()),
        ended = running.tasks.ended() => Err(RunError::from(ended)),
        () = async { ready.await; tracing::info!("ready"); std::future::pending().await } => Ok(()),
    };
    let report = running.tasks.stop(within).await;
    log_stop(&report);
    outcome
}

fn log_stop(report: &StopReport) {
    for ended in &report.failed {
        tracing::error!(%ended, "a part failed while stopping");
    }
    tracing::info!(drained = report.drained.len(), cut_off = ?report.cut_off, "stopped");
}

/// The URL in the kubeconfigs. A socket that was handed in and is on loopback is the machine's own way in: the advertised
/// address may exist only in a network of the cluster's, and on the machine lead to a stranger.
fn url_for_people(config: &ServerConfig) -> Option<String> {
    let handed_in = config.listen.iter().find_map(|listen| match listen {
        Listen::Socket(socket) => socket
            .local_addr()
            .ok()
            .filter(|address| address.ip().is_loopback()),
        Listen::Address(_) => None,
    });
    let advertised = config.advertise.first().map(|ip| (*ip, config.advertise_port));
    let (ip, port) = handed_in
        .map(|address| (address.ip(), address.port()))
        .or(advertised)?;
    Some(kubeconfigs::url(ip, port))
}

impl ControlPlane {
    /// Opens the store, starts the API server and its listeners, then caches, controllers and scheduler. Returns as
    /// soon as the API answers; [`ControlPlane::ready`] tells when everything else acts.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub async fn start(config: ServerConfig) -> Result<Self, RunError> {
        kubeconfigs::private_dir(&config.data_dir).map_err(|source| RunError::DataDir {
            path: config.data_dir.clone(),
            source,
        })?;
        let pools = pools(&config)?;
        let load_balancer_pools = load_balancer_pools(&config)?;
        let pki = Arc::new(Pki::open_or_create(&config.pki_dir, &config.names)?);
        let store = open_store(&config).await?;
        let server = ApiServer::new(api_config(&config, &pki)?, store).await?;
        let mut tasks = TaskSet::new();
        let url = url_for_people(&config);
        serve(&mut tasks, &server, config.listen).await?;
        if let Some(url) = url {
            kubeconfigs::write(&config.data_dir, &pki, &url)?;
        }
        let settings = Settings {
            pools,
            load_balancer_pools,
            root_certificates: pki.ca_pem().to_owned(),
        };
        let (caches_ready, all_ready) = start_components(&mut tasks, &server, settings);
        let ports = [
            ("controllers' port", config.controllers_port),
            ("scheduler's port", config.scheduler_port),
        ];
        for (name, address) in ports
            .into_iter()
            .filter_map(|(name, address)| Some((name, address?)))
        {
            side(&mut tasks, name, address, &caches_ready).await?;
        }
        Ok(Self {
            server,
            tasks,
            caches_ready,
            all_ready,
        })
    }

    /// Waits until controllers and scheduler have seen everything and act.
    pub async fn ready(&self) {
        self.wait_ready().await;
    }

    fn wait_ready(&self) -> impl Future<Output = ()> + 'static {
        let (caches, rest) = (self.caches_ready.clone(), self.all_ready.clone());
        async move {
            caches.ready().await;
            rest.ready().await;
        }
    }

    /// A client in this process that acts as the cluster's administrator.
    #[must_use]
    pub fn admin(&self) -> Client {
        machinery_client::in_process(self.server.in_process(Identity::admin()))
    }

    /// The API server.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Stops everything in the opposite order of starting.
    pub async fn stop(self, within: std::time::Duration) -> StopReport {
        self.tasks.stop(within).await
    }
}

/// Caches, scheduler and controllers. Which of the two readinesses: that of the caches, and that of the rest.
fn start_components(tasks: &mut TaskSet, server: &ApiServer, settings: Settings) -> (Readiness, Readiness) {
    let readiness = Readiness::new();
    let client = component(server, "system:kube-controller-manager");
    let caches = controllers::start_caches(tasks, &client, &readiness);
    let (executor, recorder) = Executor::new(client, caches.write_backs());
    tasks.spawn("events", |shutdown| async move {
        recorder.run(shutdown.into_requested()).await;
        Ok::<(), std::convert::Infallible>(())
    });
    let client_of = |account: &str| controller(server, account);
    let rest = controllers::start(tasks, &executor, &caches, &readiness, settings, &client_of);
    let sources = scheduler::Sources {
        pods: caches.pods.clone(),
        nodes: caches.nodes.clone(),
        namespaces: caches.namespaces.clone(),
    };
    let (executor, recorder) =
        Executor::new(component(server, "system:kube-scheduler"), caches.write_backs());
    tasks.spawn("scheduler's events", |shutdown| async move {
        recorder.run(shutdown.into_requested()).await;
        Ok::<(), std::convert::Infallible>(())
    });
    tasks.spawn("scheduler", |shutdown| async move {
        scheduler::run(sources, executor, shutdown).await;
        Ok::<(), std::convert::Infallible>(())
    });
    (readiness, rest)
}

/// A client in this process for one of our own components: upstream's user, with the rights of upstream's roles.
fn component(server: &ApiServer, user: &str) -> Client {
    machinery_client::in_process(server.in_process(Identity::new(user, &[])))
}

/// A client in this process for a controller, as the service account of its own.
fn controller(server: &ApiServer, account: &str) -> Client {
    let user = format!("system:serviceaccount:kube-system:{account}");
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    machinery_client::in_process(server.in_process(Identity::new(&user, &groups)))
}

async fn open_store(config: &ServerConfig) -> Result<Store, OpenError> {
    match &config.store {
        StoreKind::Embedded => Store::open_embedded(&config.data_dir.join("store"), Options::default()).await,
        StoreKind::Etcd { endpoints } => {
            let etcd = EtcdConfig {
                endpoints: endpoints.clone(),
                ..EtcdConfig::default()
            };
            Store::connect_etcd(etcd).await
        }
    }
}

fn pools(config: &ServerConfig) -> Result<Vec<Pool>, RangeError> {
    let (v4, v6) = config.node_cidr_lengths;
    let pool = |text: &String| {
        let range: Range = text.parse()?;
        Ok(Pool {
            range,
            node_length: if text.contains(':') { v6 } else { v4 },
        })
    };
    config.pod_cidrs.iter().map(pool).collect()
}

fn load_balancer_pools(config: &ServerConfig) -> Result<Vec<Range>, RunError> {
    let all = config.load_balancer_pools.iter().map(|text| text.parse());
    all.collect::<Result<_, _>>().map_err(RunError::BalancerPool)
}

fn api_config(config: &ServerConfig, pki: &Arc<Pki>) -> Result<Config, RunError> {
    let parse = |text: &String| {
        text.parse::<Cidr>()
            .map_err(|_| RunError::ServiceRange(text.clone()))
    };
    let mut api = Config::new(Arc::clone(pki));
    api.service_cidrs = config.service_cidrs.iter().map(parse).collect::<Result<_, _>>()?;
    api.advertise.clone_from(&config.advertise);
    api.advertise_port = config.advertise_port;
    Ok(api)
}

async fn serve(tasks: &mut TaskSet, server: &ApiServer, listen: Vec<Listen>) -> Result<(), RunError> {
    for one in listen {
        let (address, listener) = match one {
            Listen::Address(address) => (address.to_string(), TcpListener::bind(address).await),
            Listen::Socket(socket) => ("the inherited socket".to_owned(), adopt(socket)),
        };
        let listener = listener.map_err(|source| RunError::Listen {
            address: address.clone(),
            source,
        })?;
        let server = server.clone();
        tasks.spawn(format!("API on {address}"), |shutdown| async move {
            server.serve(listener, shutdown.into_requested()).await
        });
    }
    Ok(())
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

async fn side(
    tasks: &mut TaskSet,
    name: &str,
    address: SocketAddr,
    readiness: &Readiness,
) -> Result<(), RunError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| RunError::Listen {
        address: address.to_string(),
        source,
    })?;
    let readiness = readiness.clone();
    tasks.spawn(name, |shutdown| async move {
        side_port::serve(listener, Metrics::new(), readiness, shutdown).await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn kubeconfigs_lead_through_the_socket_that_the_machine_handed_in() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let inside = IpAddr::from([10, 89, 0, 1]);
        let config = ServerConfig {
            listen: vec![Listen::Address((inside, 6443).into()), Listen::Socket(socket)],
            advertise: vec![inside],
            ..ServerConfig::new("unused")
        };
        assert_eq!(url_for_people(&config), Some(format!("https://127.0.0.1:{port}")));
        let alone = ServerConfig {
            listen: vec![Listen::Address((inside, 6443).into())],
            ..config
        };
        assert_eq!(url_for_people(&alone).as_deref(), Some("https://10.89.0.1:6443"));
    }
}
