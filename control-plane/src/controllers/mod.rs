//! The controllers' edge: which caches each planner reads, and which changes bring which key back to it.

mod caches;
mod cronjob;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirror;
mod garbage;
mod ipam;
mod job;
mod load_balancer;
mod metadata;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_gc;
mod protection;
mod replicaset;
mod resource_quota;
mod statefulset;
mod taint_eviction;

use std::convert::Infallible;
use std::sync::Arc;

use control_plane_controllers::ipam::{Pool, Range};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::Client;
use machinery_lifecycle::{Readiness, TaskSet};
use machinery_reconcile::{Controller, Executor, Queue, Runner};

pub use caches::Caches;
pub(crate) use metadata::Metadata;

/// What the controllers are told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pod address ranges, one per family, the primary first.
    pub pools: Vec<Pool>,
    /// Where services of type LoadBalancer get their addresses; nowhere if empty.
    pub load_balancer_pools: Vec<Range>,
    /// The cluster's root certificates in PEM, for every namespace.
    pub root_certificates: String,
}

/// Starts the caches' watches, as tasks that end first to last.
pub fn start_caches(tasks: &mut TaskSet, client: &Client, readiness: &Readiness) -> Caches {
    let caches = Caches::default();
    caches.start(tasks, client, readiness);
    caches
}

/// Starts every controller, each as the user that `client_of` makes of the name of its service account. Each waits for its own sources before it acts: `readiness` is that of the caches; the
/// returned one is that of the metadata of all other kinds.
pub fn start(
    tasks: &mut TaskSet,
    executor: &Executor,
    caches: &Caches,
    readiness: &Readiness,
    settings: Settings,
    client_of: &dyn Fn(&str) -> Client,
) -> Readiness {
    let mut all = All {
        tasks,
        executor,
        client_of,
        caches,
        ready: vec![readiness.clone()],
    };
    all.run(replicaset::Sets::<ReplicaSet>::new(caches), replicaset::connect);
    all.run(
        replicaset::Sets::<ReplicationController>::new(caches),
        replicaset::connect,
    );
    all.run(deployment::Deployments::new(caches), deployment::connect);
    all.run(daemonset::Daemons::new(caches), daemonset::connect);
    all.run(statefulset::Sets::new(caches), statefulset::connect);
    all.run(job::Jobs::new(caches), job::connect);
    all.run(cronjob::CronJobs::new(caches), cronjob::connect);
    all.run(endpointslice::Slices::new(caches), endpointslice::connect);
    all.run(endpoints::Lists::new(caches), endpoints::connect);
    all.run(
        endpointslice_mirror::Mirrors::new(caches),
        endpointslice_mirror::connect,
    );
    all.run(disruption::Budgets::new(caches), disruption::connect);
    all.run(
        namespace_defaults::Defaults::new(caches, settings.root_certificates),
        namespace_defaults::connect,
    );
    all.run(node_lifecycle::Nodes::new(caches), node_lifecycle::connect);
    all.run(taint_eviction::Evictions::new(caches), taint_eviction::connect);
    all.run(pod_gc::Collector::new(caches), pod_gc::connect);
    all.run(protection::Claims::new(caches), protection::connect_claims);
    all.run(protection::Volumes::new(caches), protection::connect_volumes);
    all.run(ipam::Ranges::new(caches, settings.pools), ipam::connect);
    all.run(
        load_balancer::Addresses::new(caches, settings.load_balancer_pools),
        load_balancer::connect,
    );
    let known = Readiness::new();
    let metadata = Metadata::new(client_of(GARBAGE_COLLECTOR), caches, &known);
    all.ready.push(known.clone());
    all.run(
        resource_quota::Quotas::new(caches, &metadata),
        resource_quota::connect,
    );
    all.run_on(garbage::Garbage::new(&metadata), metadata.objects(), |_, _, _| ());
    all.run_on(
        namespace::Namespaces::new(caches, &metadata),
        metadata.emptied(),
        namespace::connect,
    );
    tasks.spawn_endless("metadata of all kinds", metadata.follow());
    known
}

const GARBAGE_COLLECTOR: &str = "generic-garbage-collector";

/// Upstream's name of the service account that a controller acts as; its rights stand with the roles that the API
/// server makes (`system:controller:ACCOUNT`).
fn account(controller: &'static str) -> &'static str {
    match controller {
        "garbage-collector" => GARBAGE_COLLECTOR,
        "taint-eviction-controller" | "node-ipam-controller" => "node-controller",
        "endpoint-slice-controller" => "endpointslice-controller",
        "daemonset-controller" => "daemon-set-controller",
        "namespace-defaults-controller" => "service-account-controller",
        same => same,
    }
}

struct All<'a> {
    tasks: &'a mut TaskSet,
    executor: &'a Executor,
    client_of: &'a dyn Fn(&str) -> Client,
    caches: &'a Caches,
    /// What has to be complete before the controllers act.
    ready: Vec<Readiness>,
}

type Connect<C> = fn(&Arc<C>, &Caches, &Queue<<C as Controller>::Key>);

impl All<'_> {
    fn run<C: Controller>(&mut self, controller: C, connect: Connect<C>) {
        self.run_on(controller, &Queue::default(), connect);
    }

    fn run_on<C: Controller>(&mut self, controller: C, queue: &Queue<C::Key>, connect: Connect<C>) {
        let name = controller.name();
        let executor = self.executor.acting((self.client_of)(account(name)));
        let runner = Runner::with_queue(controller, &executor, queue.clone());
        connect(runner.controller(), self.caches, queue);
        let ready = self.ready.clone();
        let synced = async move {
            for one in ready {
                one.ready().await;
            }
        };
        self.tasks.spawn(name, |shutdown| async move {
            runner.run(synced, shutdown.into_requested()).await;
            Ok::<(), Infallible>(())
        });
    }
}
