//! Config maps, secrets and tokens that pods refer to: watched one by one, only while a pod needs them, as the node's
//! rights allow nothing wider.

use agent_pods::model::PodModel;
use agent_pods::volumes::{Needs, Sources, TokenWish};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use machinery_client::Cache;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;

/// How long a pod waits for the first answer about an object before it is told why it waits.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Changes that a slow worker may be behind by; further behind it looks at everything again.
const CHANGES: usize = 256;

/// A namespace and a name.
pub type Key = (String, String);

/// What is known of one object: nothing yet, or that it does or does not exist.
type Known<K> = Option<Option<Arc<K>>>;

/// One watched object. The watch ends when the last holder drops it.
pub struct Watched<K> {
    state: watch::Receiver<Known<K>>,
    task: AbortHandle,
}

impl<K> Drop for Watched<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> Watched<K> {
    async fn get(&self) -> Result<Option<Arc<K>>, ObjectError> {
        let mut state = self.state.clone();
        let known = tokio::time::timeout(FIRST_ANSWER, state.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => Ok(known.clone().flatten()),
            _ => Err(ObjectError::NoAnswer),
        }
    }
}

/// An object that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The API did not say whether it exists.
    #[error("failed to sync configmap or secret cache: timed out waiting for the API server")]
    NoAnswer,
    /// No token was issued.
    #[error("the service account's token was not issued: {0}")]
    Token(#[source] Box<kube::Error>),
}

/// All watched objects of a kind.
struct Kind<K> {
    entries: Mutex<HashMap<Key, Weak<Watched<K>>>>,
}

impl<K> Kind<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    fn new() -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
        }
    }

    fn watch(&self, client: &Client, changes: &broadcast::Sender<Key>, key: Key) -> Arc<Watched<K>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = entries.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        entries.retain(|_, weak| weak.strong_count() > 0);
        let (sender, state) = watch::channel(None);
        let work = follow::<K>(client.clone(), key.clone(), sender, changes.clone());
        let task = tokio::spawn(work).abort_handle();
        let watched = Arc::new(Watched { state, task });
        entries.insert(key, Arc::downgrade(&watched));
        watched
    }
}

async fn follow<K>(client: Client, key: Key, state: watch::Sender<Known<K>>, changes: broadcast::Sender<Key>)
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &key.0);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = events.next().await {
        let now = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(Arc::new(object));
                continue;
            }
            Ok(Event::InitDone) => listed.take(),
            Ok(Event::Apply(object)) => Some(Arc::new(object)),
            Ok(Event::Delete(_)) => None,
            Err(error) => {
                tracing::debug!(namespace = key.0, name = key.1, %error, "watch interrupted, will be resumed");
                continue;
            }
        };
        state.send_replace(Some(now));
        // Nobody listens while no pod runs that wants to know.
        let _ = changes.send(key.clone());
    }
}

/// The node's view of the objects its pods refer to.
pub struct Objects {
    client: Client,
    config_maps: Kind<ConfigMap>,
    secrets: Kind<Secret>,
    services: Cache<Service>,
    changes: broadcast::Sender<Key>,
}

/// One pod's objects, held while it lives.
#[derive(Default)]
pub struct Held {
    config_maps: BTreeMap<String, Arc<Watched<ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Watched<Secret>>>,
    tokens: BTreeMap<TokenWish, Issued>,
}

#[derive(Clone)]
struct Issued {
    token: String,
    renew: Timestamp,
}

impl Held {
    /// Whether a change of `key` concerns the pod in `namespace`.
    #[must_use]
    pub fn concerns(&self, namespace: &str, key: &Key) -> bool {
        key.0 == namespace && (self.config_maps.contains_key(&key.1) || self.secrets.contains_key(&key.1))
    }

    /// When the next token is to be renewed.
    #[must_use]
    pub fn renew(&self) -> Option<Timestamp> {
        self.tokens.values().map(|t| t.renew).min()
    }
}

impl Objects {
    /// With a cache of services, which someone else runs.
    #[must_use]
    pub fn new(client: Client, services: Cache<Service>) -> Self {
        let changes = broadcast::channel(CHANGES).0;
        Self {
            client,
            config_maps: Kind::new(),
            secrets: Kind::new(),
            services,
            changes,
        }
    }

    /// Changes of watched objects.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    /// Everything `pod` refers to, as it is now.
    ///
    /// # Errors
    /// [`ObjectError`]: the API does not answer.
    pub async fn sources(
        &self,
        pod: &PodModel,
        needs: &Needs,
        held: &mut Held,
    ) -> Result<Sources, ObjectError> {
        self.hold(pod, needs, held);
        let mut sources = Sources {
            services: self.services_of(pod),
            ..Sources::default()
        };
        for (name, watched) in &held.config_maps {
            if let Some(object) = watched.get().await? {
                sources.config_maps.insert(name.clone(), (*object).clone());
            }
        }
        for (name, watched) in &held.secrets {
            if let Some(object) = watched.get().await? {
                sources.secrets.insert(name.clone(), (*object).clone());
            }
        }
        for wish in &needs.tokens {
            let token = self.token(pod, wish, held).await?;
            sources.tokens.insert(wish.clone(), token);
        }
        Ok(sources)
    }

    fn hold(&self, pod: &PodModel, needs: &Needs, held: &mut Held) {
        let key = |name: &String| (pod.namespace().to_owned(), name.clone());
        held.config_maps
            .retain(|name, _| needs.config_maps.contains(name));
        held.secrets.retain(|name, _| needs.secrets.contains(name));
        for name in &needs.config_maps {
            let watch = || self.config_maps.watch(&self.client, &self.changes, key(name));
            held.config_maps.entry(name.clone()).or_insert_with(watch);
        }
        for name in &needs.secrets {
            let watch = || self.secrets.watch(&self.client, &self.changes, key(name));
            held.secrets.entry(name.clone()).or_insert_with(watch);
        }
    }

    fn services_of(&self, pod: &PodModel) -> Vec<Service> {
        let mut all = self.services.in_namespace(pod.namespace());
        if pod.namespace() != "default" {
            let api = machinery_plan::Key::new("default", "kubernetes");
            all.extend(self.services.get(&api));
        }
        all.iter().map(|s| (**s).clone()).collect()
    }

    /// A token that is good for a while yet: the one there is, or a new one. Tokens are renewed at four fifths of
    /// their life, as upstream does; one that still holds is used on when no new one is to be had.
    async fn token(&self, pod: &PodModel, wish: &TokenWish, held: &mut Held) -> Result<String, ObjectError> {
        let now = Timestamp::now();
        if let Some(issued) = held.tokens.get(wish).filter(|i| i.renew > now) {
            return Ok(issued.token.clone());
        }
        match self.issue(pod, wish).await {
            Ok(issued) => {
                let token = issued.token.clone();
                held.tokens.insert(wish.clone(), issued);
                Ok(token)
            }
            Err(error) => match held.tokens.get_mut(wish) {
                Some(old) => {
                    old.renew = now + SignedDuration::from_secs(10);
                    Ok(old.token.clone())
                }
                None => Err(ObjectError::Token(Box::new(error))),
            },
        }
    }

    async fn issue(&self, pod: &PodModel, wish: &TokenWish) -> kube::Result<Issued> {
        let account = pod
            .spec()
            .service_account_name
            .as_deref()
            .filter(|n| !n.is_empty())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: wish.audience.clone().map(|a| vec![a]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name().to_owned()),
                    uid: Some(pod.uid().to_owned()),
                }),
                expiration_seconds: Some(wish.seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod.namespace());
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        let status = answer.status.unwrap_or_default();
        let now = Timestamp::now();
        let expires = status.expiration_timestamp.map(|t| t.0);
        let life = expires.map_or(SignedDuration::from_secs(wish.seconds), |e| e.duration_since(now));
        Ok(Issued {
            token: status.token.unwrap_or_default(),
            renew: now + life * 4 / 5,
        })
    }
}
