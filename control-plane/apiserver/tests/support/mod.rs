//! An API server on a store in a temporary folder, asked in process: no sockets.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use control_plane_apiserver::body::full;
use control_plane_apiserver::pki::Pki;
use control_plane_apiserver::{ApiServer, Config, Identity};
use control_plane_store::{Durability, Options, Store};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

pub type Body = control_plane_apiserver::body::Body;

pub struct Cluster {
    pub server: ApiServer,
    pub store: Store,
    pub pki: Arc<Pki>,
    identity: Identity,
    dir: Arc<TempDir>,
}

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: bytes::Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.bytes))
    }

    /// The body, if the code is the wanted one.
    pub fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }
}

impl Cluster {
    pub async fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::on(dir).await
    }

    async fn on(dir: Arc<TempDir>) -> Self {
        let pki =
            Arc::new(Pki::open_or_create(dir.path(), &["localhost".into(), "127.0.0.1".into()]).unwrap());
        let options = Options {
            durability: Durability::Relaxed,
            ..Options::default()
        };
        let store = Store::open_embedded(&dir.path().join("store"), options)
            .await
            .unwrap();
        let config = Config {
            advertise: vec!["192.0.2.1".parse().unwrap()],
            ..Config::new(Arc::clone(&pki))
        };
        let server = ApiServer::new(config, store.clone()).await.unwrap();
        Self {
            server,
            store,
            pki,
            identity: Identity::admin(),
            dir,
        }
    }

    /// The same cluster after the server was started again.
    pub async fn restarted(self) -> Self {
        self.store.close().await;
        let dir = Arc::clone(&self.dir);
        drop(self);
        Self::on(dir).await
    }

    /// The same cluster, asked by someone else.
    pub fn as_user(&self, identity: Identity) -> Self {
        Self {
            server: self.server.clone(),
            store: self.store.clone(),
            pki: Arc::clone(&self.pki),
            identity,
            dir: Arc::clone(&self.dir),
        }
    }

    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.server
            .handle(Some(self.identity.clone()), request.body(full(body)).unwrap())
            .await
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let response = self.raw(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    pub async fn post(&self, path: &str, object: Value) -> Answer {
        self.send(Method::POST, path, &[], object.to_string().into())
            .await
    }

    pub async fn put(&self, path: &str, object: Value) -> Answer {
        self.send(Method::PUT, path, &[], object.to_string().into()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    /// A patch of the type `json`, `merge`, `strategic-merge` or `apply`.
    pub async fn patch(&self, kind: &str, path: &str, patch: Value) -> Answer {
        let media = if kind == "apply" {
            "application/apply-patch+yaml".to_owned()
        } else {
            format!("application/{kind}-patch+json")
        };
        self.send(
            Method::PATCH,
            path,
            &[("content-type", &media)],
            patch.to_string().into(),
        )
        .await
    }

    /// Starts a watch.
    pub async fn watch(&self, path: &str) -> Events {
        let response = self.raw(Method::GET, path, &[], Vec::new()).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    /// The service account `default` of a namespace, which a controller would make.
    pub async fn account(&self, namespace: &str) {
        let object = json!({"metadata": {"name": "default"}});
        self.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), object)
            .await
            .expect(201);
    }
}

/// The events of a JSON watch.
pub struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event, as type and object; `None` when the watch ended. Fails the test after five seconds.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        let line = tokio::time::timeout(std::time::Duration::from_secs(5), self.line()).await;
        let line = line.expect("an event within five seconds")?;
        let event: Value = serde_json::from_slice(&line).unwrap();
        Some((
            event["type"].as_str().unwrap().to_owned(),
            event["object"].clone(),
        ))
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let rest = self.rest.split_off(end + 1);
                return Some(std::mem::replace(&mut self.rest, rest));
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "pause:1"}]}})
}

pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "pause:1"}]}}}})
}
