//! A shared list-watch cache on kube-runtime's watcher.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use machinery_plan::Key;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::store::{Change, Objects, key_of};

/// What may be cached.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}
impl<K> Cached for K where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

/// Where a cache looks.
#[derive(Clone, Debug, Default)]
pub enum Scope {
    /// The whole cluster, or a cluster-scoped resource.
    #[default]
    All,
    /// One namespace.
    Namespace(String),
}

/// What a cache watches.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// The namespace, or everything.
    pub scope: Scope,
    /// Field selector; all objects when absent.
    pub fields: Option<String>,
    /// Label selector; all objects when absent.
    pub labels: Option<String>,
    /// Lists first and then watches, for API servers without streaming lists (before 1.34).
    pub list_first: bool,
}

impl WatchOptions {
    fn config(&self) -> watcher::Config {
        let mut config = watcher::Config::default();
        if let Some(fields) = &self.fields {
            config = config.fields(fields);
        }
        if let Some(labels) = &self.labels {
            config = config.labels(labels);
        }
        if self.list_first {
            config.page_size(500)
        } else {
            config.streaming_lists()
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Shared<K> {
    objects: RwLock<Objects<K>>,
    /// Held over a change and its notifications, so that handlers see changes in order. Handlers may read the cache
    /// but must not write to it.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    changes: watch::Sender<u64>,
}

/// All objects of one kind (within a scope) that this process knows. Cheap to clone; clones share the content.
pub struct Cache<K>(Arc<Shared<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: ResourceExt> Default for Cache<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            objects: RwLock::new(Objects::default()),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
            changes: watch::Sender::new(0),
        }))
    }
}

impl<K: Cached> Cache<K> {
    /// Lists and watches until the future is dropped. Failures are retried with a growing delay; the content stays.
    pub async fn run(&self, client: Client, options: WatchOptions)
    where
        K: Resource<Scope: ApiScope<K>>,
    {
        let api = <K::Scope as ApiScope<K>>::api(client, &options.scope);
        let mut events = watcher::watcher(api, options.config()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.observe(event),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted, will be resumed")
                }
            }
        }
    }

    /// The object under a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().get(key)
    }

    /// All objects, ordered by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().all().cloned().collect()
    }

    /// All objects of a namespace, ordered by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read().in_namespace(namespace).cloned().collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds objects by `of` from now on; ask with [`Cache::indexed`].
    pub fn add_index(&self, name: &'static str, of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.0
            .objects
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .add_index(name, Box::new(of));
    }

    /// Objects that an index lists under `value`; none for an unknown index.
    #[must_use]
    pub fn indexed(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        self.read().indexed(name, value)
    }

    /// Calls `handler` after every change, in order. It also sees all present objects, as new ones, right now.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers();
        for object in self.list() {
            handler(&Change {
                key: key_of(object.as_ref()),
                old: None,
                new: Some(object),
            });
        }
        handlers.push(Box::new(handler));
    }

    /// A counter that moves with every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether a whole list has been seen.
    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Waits until a whole list has been seen.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as this cache, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Takes in one event of a watch. For watches that are not [`Cache::run`], such as in tests.
    pub fn observe(&self, event: Event<K>) {
        match event {
            Event::Init => self.write(|objects| {
                objects.list_begins();
                None
            }),
            Event::InitApply(object) | Event::Apply(object) => {
                self.write(|objects| objects.applied(slim(object)))
            }
            Event::Delete(object) => self.write(|objects| objects.removed(&object)),
            Event::InitDone => {
                self.write(Objects::list_ended);
                self.0.synced.send_replace(true);
            }
        }
    }

    /// Lays the answer to a write of our own over what the watch has shown.
    pub fn observe_written(&self, object: K) {
        self.write(|objects| objects.written(slim(object)));
    }

    /// Takes note that the object with this uid is gone by a deletion of our own.
    pub fn observe_deleted(&self, key: &Key, uid: &str) {
        self.write(|objects| objects.deleted(key, uid));
    }

    fn write<C: IntoIterator<Item = Change<K>>>(&self, change: impl FnOnce(&mut Objects<K>) -> C) {
        let handlers = self.handlers();
        let changes = change(&mut self.0.objects.write().unwrap_or_else(PoisonError::into_inner));
        for change in changes {
            for handler in handlers.iter() {
                handler(&change);
            }
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects<K>> {
        self.0.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn handlers(&self) -> MutexGuard<'_, Vec<Handler<K>>> {
        self.0.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Field ownership is a third of an object's size and of no use to a reader.
fn slim<K: ResourceExt>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// How the scope of a resource turns into an [`Api`].
pub trait ApiScope<K> {
    /// The API for `scope`.
    fn api(client: Client, scope: &Scope) -> Api<K>;
}

impl<K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>> ApiScope<K>
    for k8s_openapi::NamespaceResourceScope
{
    fn api(client: Client, scope: &Scope) -> Api<K> {
        match scope {
            Scope::All => Api::all(client),
            Scope::Namespace(namespace) => Api::namespaced(client, namespace),
        }
    }
}

impl<K: Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>> ApiScope<K>
    for k8s_openapi::ClusterResourceScope
{
    fn api(client: Client, _: &Scope) -> Api<K> {
        Api::all(client)
    }
}

/// Watches only the metadata of a resource that is known at run time and hands every event to `handler`, until the
/// future is dropped. Nothing is stored.
pub async fn watch_metadata(
    client: Client,
    resource: &ApiResource,
    handler: impl Fn(Event<PartialObjectMeta<DynamicObject>>),
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, resource);
    let config = WatchOptions::default().config();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => handler(event),
            Err(error) => tracing::debug!(kind = resource.kind, %error, "metadata watch interrupted"),
        }
    }
}
