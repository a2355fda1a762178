//! The caches that controllers and scheduler share: one watch per kind.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use machinery_client::{ApiScope, Cache, Cached, Scope, WatchOptions, WriteBacks};
use machinery_lifecycle::{Readiness, TaskSet};

use control_plane_controllers::endpointslice::SERVICE_NAME;
use control_plane_controllers::namespace_defaults::ROOT_CA;
use control_plane_controllers::ownership::controller_uid;
use control_plane_controllers::pod::node_name;

/// Index of pods by the uid of their controller; pods without one stand under a slash and their namespace.
pub const BY_CONTROLLER: &str = "controller";
/// Index of pods by node.
pub const BY_NODE: &str = "node";
/// Index of endpoint slices by namespace and service.
pub const BY_SERVICE: &str = "service";

/// All shared caches.
#[derive(Clone, Default)]
pub struct Caches {
    /// All pods, by controller and by node.
    pub pods: Cache<Pod>,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// All namespaces.
    pub namespaces: Cache<Namespace>,
    /// All services.
    pub services: Cache<Service>,
    /// All endpoint slices, by service.
    pub slices: Cache<EndpointSlice>,
    /// All replica sets.
    pub replica_sets: Cache<ReplicaSet>,
    /// All replication controllers.
    pub replication_controllers: Cache<ReplicationController>,
    /// All quotas.
    pub quotas: Cache<ResourceQuota>,
    /// All claims of storage.
    pub claims: Cache<PersistentVolumeClaim>,
    /// All volumes of storage.
    pub volumes: Cache<PersistentVolume>,
    /// All disruption budgets.
    pub budgets: Cache<PodDisruptionBudget>,
    /// All endpoints.
    pub endpoints: Cache<Endpoints>,
    /// All stateful sets.
    pub stateful_sets: Cache<StatefulSet>,
    /// All cron jobs.
    pub cron_jobs: Cache<CronJob>,
    /// All deployments.
    pub deployments: Cache<Deployment>,
    /// All daemon sets.
    pub daemon_sets: Cache<DaemonSet>,
    /// All revisions of daemon sets and stateful sets.
    pub revisions: Cache<ControllerRevision>,
    /// All jobs.
    pub jobs: Cache<Job>,
    /// All service accounts.
    pub service_accounts: Cache<ServiceAccount>,
    /// Config maps with root certificates only.
    pub root_certificates: Cache<ConfigMap>,
    /// Leases of nodes only.
    pub node_leases: Cache<Lease>,
}

impl Caches {
    /// Lets every cache that holds a whole kind hear of our own writes.
    #[must_use]
    pub fn write_backs(&self) -> WriteBacks {
        let mut all = WriteBacks::default();
        all.add(&self.pods);
        all.add(&self.nodes);
        all.add(&self.namespaces);
        all.add(&self.services);
        all.add(&self.slices);
        all.add(&self.replica_sets);
        all.add(&self.replication_controllers);
        all.add(&self.quotas);
        all.add(&self.claims);
        all.add(&self.volumes);
        all.add(&self.budgets);
        all.add(&self.endpoints);
        all.add(&self.stateful_sets);
        all.add(&self.cron_jobs);
        all.add(&self.deployments);
        all.add(&self.daemon_sets);
        all.add(&self.revisions);
        all.add(&self.jobs);
        all.add(&self.service_accounts);
        all
    }

    /// Starts all watches. Readiness needs every one of them.
    pub(crate) fn start(&self, tasks: &mut TaskSet, client: &Client, readiness: &Readiness) {
        self.index();
        let mut start = Start {
            tasks,
            client,
            readiness,
        };
        start.all(&self.pods);
        start.all(&self.nodes);
        start.all(&self.namespaces);
        start.all(&self.services);
        start.all(&self.slices);
        start.all(&self.replica_sets);
        start.all(&self.replication_controllers);
        start.all(&self.quotas);
        start.all(&self.claims);
        start.all(&self.volumes);
        start.all(&self.budgets);
        start.all(&self.endpoints);
        start.all(&self.stateful_sets);
        start.all(&self.cron_jobs);
        start.all(&self.deployments);
        start.all(&self.daemon_sets);
        start.all(&self.revisions);
        start.all(&self.jobs);
        start.all(&self.service_accounts);
        let fields = Some(format!("metadata.name={ROOT_CA}"));
        start.some(
            &self.root_certificates,
            WatchOptions {
                fields,
                ..WatchOptions::default()
            },
        );
        let scope = Scope::Namespace("kube-node-lease".to_owned());
        start.some(
            &self.node_leases,
            WatchOptions {
                scope,
                ..WatchOptions::default()
            },
        );
    }

    fn index(&self) {
        self.pods.add_index(BY_CONTROLLER, |pod| {
            let meta = &pod.metadata;
            let orphan = || format!("/{}", meta.namespace.as_deref().unwrap_or_default());
            vec![controller_uid(meta).map_or_else(orphan, str::to_owned)]
        });
        self.pods
            .add_index(BY_NODE, |pod| vec![node_name(pod).to_owned()]);
        self.slices.add_index(BY_SERVICE, |slice| {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_NAME));
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            service
                .map(|service| format!("{namespace}/{service}"))
                .into_iter()
                .collect()
        });
    }
}

struct Start<'a> {
    tasks: &'a mut TaskSet,
    client: &'a Client,
    readiness: &'a Readiness,
}

impl Start<'_> {
    fn all<K>(&mut self, cache: &Cache<K>)
    where
        K: Cached + kube::Resource<Scope: ApiScope<K>>,
    {
        self.some(cache, WatchOptions::default());
    }

    fn some<K>(&mut self, cache: &Cache<K>, options: WatchOptions)
    where
        K: Cached + kube::Resource<Scope: ApiScope<K>>,
    {
        let name = format!("watch of {}", K::plural(&()));
        let synced = self.readiness.condition(name.clone());
        let (cache, client) = (cache.clone(), self.client.clone());
        self.tasks.spawn_endless(name, async move {
            let done = async {
                cache.synced().await;
                synced.set(true);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = cache.run(client, options) => {}
                () = done => {}
            }
        });
    }
}
