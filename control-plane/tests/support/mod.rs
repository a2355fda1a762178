//! A control plane in this process, without sockets, and ways to wait for what it does.
#![allow(dead_code)]

use std::fmt::Debug;
use std::time::Duration;

use control_plane::{ControlPlane, ServerConfig};
use futures::{StreamExt, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

/// Longest time for anything to happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub client: Client,
    plane: ControlPlane,
    _dir: TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(dir.path());
        config.listen = Vec::new();
        let plane = ControlPlane::start(config).await.unwrap();
        timeout(DEADLINE, plane.ready())
            .await
            .expect("the controllers must have seen everything");
        Self {
            client: plane.admin(),
            plane,
            _dir: dir,
        }
    }

    /// Stops everything, in time, and sees that no component lacked a right.
    pub async fn stop(self) {
        self.nobody_was_refused().await;
        let report = self.plane.stop(Duration::from_secs(5)).await;
        assert!(
            report.cut_off.is_empty() && report.failed.is_empty(),
            "{report:?}"
        );
    }

    async fn nobody_was_refused(&self) {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = self.client.request_text(request).await.unwrap();
        // Nothing can be made in a namespace that is going, by right or not.
        let refused = text.lines().filter(|line| {
            line.starts_with("apiserver_request_total{code=\"403\"") && !line.contains("verb=\"CREATE\"")
        });
        assert_eq!(refused.collect::<Vec<_>>(), [""; 0]);
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>(namespace)
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    pub async fn merge<K>(&self, namespace: &str, name: &str, patch: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        self.api::<K>(namespace)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    pub async fn status<K>(&self, namespace: &str, name: &str, status: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let patch = serde_json::json!({"status": status});
        let api = self.api::<K>(namespace);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }
}

/// Waits until all objects of an API together satisfy `is`; returns them. Fails with what was there last.
pub async fn until<K>(api: Api<K>, what: &str, mut is: impl FnMut(&[K]) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut all: std::collections::BTreeMap<String, K> = std::collections::BTreeMap::new();
    let work = async {
        let events = watcher::watcher(api, watcher::Config::default());
        pin_mut!(events);
        let mut listed = false;
        while let Some(event) = events.next().await {
            match event.unwrap() {
                Event::Init => all.clear(),
                Event::InitDone => listed = true,
                Event::Apply(object) | Event::InitApply(object) => {
                    drop(all.insert(object.name_any(), object))
                }
                Event::Delete(object) => drop(all.remove(&object.name_any())),
            }
            let now: Vec<K> = all.values().cloned().collect();
            if listed && is(&now) {
                return now;
            }
        }
        unreachable!("a watch does not end")
    };
    let found = timeout(DEADLINE, work).await;
    found.unwrap_or_else(|_| panic!("{what} did not come about"))
}
