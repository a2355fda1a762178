//! Metadata of all objects of all kinds, for the garbage collector and the deletion of namespaces. Kinds that have a
//! cache of their own are taken from there; of the others only metadata are watched.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use control_plane_controllers::garbage::{Graph, Object};
use control_plane_controllers::namespace::is_terminating;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::Event;
use machinery_client::{Cache, Cached, watch_metadata};
use machinery_lifecycle::{Condition, Readiness};
use machinery_plan::{Key, Kubernetes, ResourceType};
use machinery_reconcile::Queue;

use super::Caches;
use super::discovery::Resources;

/// Between attempts to learn which resources there are.
const DISCOVERY_RETRY: Duration = Duration::from_millis(500);

/// Kinds whose objects are never owners or owned, and come and go in masses.
const LEFT_OUT: [&str; 1] = ["events"];

type OnRemoved = Box<dyn Fn(&str) + Send + Sync>;

struct Inner {
    client: Client,
    graph: Mutex<Graph>,
    resources: RwLock<Resources>,
    namespaces: Cache<Namespace>,
    readiness: Readiness,
    synced: Condition,
    cached: HashSet<ResourceType>,
    /// Uids that the garbage collector is to look at.
    objects: Queue<String>,
    /// Namespaces being deleted from which something vanished.
    emptied: Queue<Key>,
    /// Told the namespace of each object that is gone.
    on_removed: RwLock<Vec<OnRemoved>>,
}

/// See the module. Clones share the content.
#[derive(Clone)]
pub(crate) struct Metadata(Arc<Inner>);

impl Metadata {
    /// Nothing yet but what the caches show; [`Metadata::follow`] adds the rest.
    pub(crate) fn new(client: Client, caches: &Caches, readiness: &Readiness) -> Self {
        let mut inner = Inner {
            client,
            graph: Mutex::default(),
            resources: RwLock::default(),
            namespaces: caches.namespaces.clone(),
            readiness: readiness.clone(),
            synced: readiness.condition("metadata of all kinds"),
            cached: HashSet::new(),
            objects: Queue::default(),
            emptied: Queue::default(),
            on_removed: RwLock::default(),
        };
        inner.cached.extend([
            ResourceType::of::<k8s_openapi::api::core::v1::Pod>(),
            ResourceType::of::<k8s_openapi::api::core::v1::Node>(),
            ResourceType::of::<Namespace>(),
            ResourceType::of::<k8s_openapi::api::core::v1::Service>(),
            ResourceType::of::<k8s_openapi::api::core::v1::ServiceAccount>(),
            ResourceType::of::<k8s_openapi::api::core::v1::ReplicationController>(),
            ResourceType::of::<k8s_openapi::api::core::v1::Endpoints>(),
            ResourceType::of::<k8s_openapi::api::apps::v1::StatefulSet>(),
            ResourceType::of::<k8s_openapi::api::batch::v1::CronJob>(),
            ResourceType::of::<k8s_openapi::api::policy::v1::PodDisruptionBudget>(),
            ResourceType::of::<k8s_openapi::api::core::v1::ResourceQuota>(),
            ResourceType::of::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(),
            ResourceType::of::<k8s_openapi::api::discovery::v1::EndpointSlice>(),
            ResourceType::of::<k8s_openapi::api::apps::v1::ReplicaSet>(),
            ResourceType::of::<k8s_openapi::api::apps::v1::Deployment>(),
            ResourceType::of::<k8s_openapi::api::apps::v1::DaemonSet>(),
            ResourceType::of::<k8s_openapi::api::apps::v1::ControllerRevision>(),
            ResourceType::of::<k8s_openapi::api::batch::v1::Job>(),
        ]);
        let metadata = Self(Arc::new(inner));
        metadata.feed_from(&caches.pods);
        metadata.feed_from(&caches.nodes);
        metadata.feed_from(&caches.namespaces);
        metadata.feed_from(&caches.services);
        metadata.feed_from(&caches.service_accounts);
        metadata.feed_from(&caches.slices);
        metadata.feed_from(&caches.replica_sets);
        metadata.feed_from(&caches.replication_controllers);
        metadata.feed_from(&caches.quotas);
        metadata.feed_from(&caches.endpoints);
        metadata.feed_from(&caches.stateful_sets);
        metadata.feed_from(&caches.cron_jobs);
        metadata.feed_from(&caches.budgets);
        metadata.feed_from(&caches.claims);
        metadata.feed_from(&caches.deployments);
        metadata.feed_from(&caches.daemon_sets);
        metadata.feed_from(&caches.revisions);
        metadata.feed_from(&caches.jobs);
        metadata
    }

    fn feed_from<K: Cached + Kubernetes>(&self, cache: &Cache<K>) {
        let metadata = self.clone();
        cache.on_change(move |change| match &change.new {
            Some(new) => {
                // A namesake that took the place is another object: the old one is gone.
                if let Some(old) = change
                    .old
                    .as_ref()
                    .filter(|old| Metadata::uid(*old) != Metadata::uid(new))
                {
                    metadata.removed(&Metadata::uid(old));
                }
                metadata.seen(
                    &ResourceType::of::<K>(),
                    k8s_openapi::Metadata::metadata(new.as_ref()),
                );
            }
            None => metadata.removed(&Metadata::uid(change.latest())),
        });
    }

    fn uid<K: Kubernetes>(object: &Arc<K>) -> String {
        k8s_openapi::Metadata::metadata(object.as_ref())
            .uid
            .clone()
            .unwrap_or_default()
    }

    /// Uids that the garbage collector is to look at.
    pub(crate) fn objects(&self) -> &Queue<String> {
        &self.0.objects
    }

    /// Namespaces being deleted from which something vanished.
    pub(crate) fn emptied(&self) -> &Queue<Key> {
        &self.0.emptied
    }

    /// Has `tell` called with the namespace of each object that vanishes.
    pub(crate) fn on_removed(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let mut all = self.0.on_removed.write().unwrap_or_else(PoisonError::into_inner);
        all.push(Box::new(tell));
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn graph(&self) -> MutexGuard<'_, Graph> {
        self.0.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn resources(&self) -> Resources {
        self.0
            .resources
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Learns which resources there are and watches all that have no cache, until dropped.
    pub(crate) async fn follow(self) {
        let resources = loop {
            match Resources::discover(self.0.client.clone()).await {
                Ok(resources) => break resources,
                Err(error) => tracing::warn!(%error, "cannot learn which resources there are, asking again"),
            }
            tokio::time::sleep(DISCOVERY_RETRY).await;
        };
        let wanted: Vec<ResourceType> = resources
            .all()
            .iter()
            .filter(|resource| self.is_wanted(resource))
            .cloned()
            .collect();
        *self.0.resources.write().unwrap_or_else(PoisonError::into_inner) = resources;
        let watches = wanted.into_iter().map(|resource| {
            let synced = self
                .0
                .readiness
                .condition(format!("metadata of {}.{}", resource.plural, resource.group));
            self.clone().watch(resource, synced)
        });
        let watches = join_all(watches);
        self.0.synced.set(true);
        watches.await;
    }

    fn is_wanted(&self, resource: &ResourceType) -> bool {
        !LEFT_OUT.contains(&resource.plural.as_ref()) && !self.0.cached.contains(resource)
    }

    async fn watch(self, resource: ResourceType, synced: Condition) {
        let api = ApiResource {
            group: resource.group.to_string(),
            version: resource.version.to_string(),
            api_version: resource.api_version(),
            kind: resource.kind.to_string(),
            plural: resource.plural.to_string(),
        };
        let listed = Mutex::new(HashSet::new());
        let handler = |event| {
            let whole = matches!(event, Event::InitDone);
            self.watched(
                &resource,
                event,
                &mut listed.lock().unwrap_or_else(PoisonError::into_inner),
            );
            if whole {
                synced.set(true);
            }
        };
        watch_metadata(self.0.client.clone(), &api, handler).await;
    }

    fn watched(
        &self,
        resource: &ResourceType,
        event: Event<PartialObjectMeta<DynamicObject>>,
        listed: &mut HashSet<String>,
    ) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.extend(object.metadata.uid.clone());
                self.seen(resource, &object.metadata);
            }
            Event::InitDone => {
                let gone: Vec<_> = self
                    .graph()
                    .of_resource(resource)
                    .into_iter()
                    .filter(|uid| !listed.contains(uid))
                    .collect();
                gone.iter().for_each(|uid| self.removed(uid));
                listed.clear();
            }
            Event::Apply(object) => self.seen(resource, &object.metadata),
            Event::Delete(object) => self.removed(&object.metadata.uid.unwrap_or_default()),
        }
    }

    fn seen(
        &self,
        resource: &ResourceType,
        meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) {
        let Some(object) = Object::of(resource, meta) else {
            return;
        };
        let affected = self.graph().observe(object);
        affected.into_iter().for_each(|uid| self.0.objects.add(uid));
    }

    fn removed(&self, uid: &str) {
        let (namespace, affected) = {
            let mut graph = self.graph();
            let namespace = graph.get(uid).map(|object| object.object.key.namespace.clone());
            (namespace, graph.remove(uid))
        };
        affected.into_iter().for_each(|uid| self.0.objects.add(uid));
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        if let Some(namespace) = &namespace {
            let all = self.0.on_removed.read().unwrap_or_else(PoisonError::into_inner);
            all.iter().for_each(|tell| tell(namespace));
        }
        let namespace = namespace.map(|name| Key::new("", name));
        if let Some(key) =
            namespace.filter(|key| self.0.namespaces.get(key).is_some_and(|n| is_terminating(&n)))
        {
            self.0.emptied.add(key);
        }
    }
}
