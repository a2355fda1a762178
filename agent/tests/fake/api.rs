//! As much of an API server as a worker talks to: one pod, its status, its deletion; no config maps, no secrets.

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// The server's state; clones share it.
#[derive(Clone)]
pub struct FakeApi(Arc<Inner>);

struct Inner {
    pod: watch::Sender<Option<Value>>,
    down: Mutex<bool>,
}

impl FakeApi {
    /// A server with this one pod.
    pub fn new(mut pod: Value) -> Self {
        pod["metadata"]["resourceVersion"] = json!("1");
        Self(Arc::new(Inner {
            pod: watch::Sender::new(Some(pod)),
            down: Mutex::new(false),
        }))
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// The pod as it is; none once deleted.
    pub fn pod(&self) -> watch::Receiver<Option<Value>> {
        self.0.pod.subscribe()
    }

    /// Makes it answer nothing but errors, or well again.
    pub fn set_down(&self, down: bool) {
        *self.0.down.lock().unwrap() = down;
    }

    /// Marks the pod as to be deleted, as a client's DELETE does.
    pub fn delete(&self, grace: i64) {
        self.change(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Value)) -> Option<Value> {
        self.0.pod.send_if_modified(|pod| match pod {
            Some(pod) => {
                change(pod);
                let version: u64 = pod["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap();
                pod["metadata"]["resourceVersion"] = json!((version + 1).to_string());
                true
            }
            None => false,
        });
        self.0.pod.borrow().clone()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<bytes::Bytes>> {
        if *self.0.down.lock().unwrap() {
            return reply(
                StatusCode::SERVICE_UNAVAILABLE,
                &failure(503, "ServiceUnavailable"),
            );
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path();
        match (parts.method, path) {
            (Method::PATCH, p) if p.ends_with("/status") => self.patch_status(&body),
            (Method::DELETE, p) if p.contains("/pods/") => self.remove(&body),
            (Method::POST, p) if p.ends_with("/events") => reply(StatusCode::CREATED, &body),
            _ => reply(StatusCode::NOT_FOUND, &failure(404, "NotFound")),
        }
    }

    /// Takes what the patch says, field by field; list directives are dropped, conditions merged by type.
    fn patch_status(&self, patch: &Value) -> Response<Full<bytes::Bytes>> {
        let uid = self.0.pod.borrow().as_ref().map(|p| p["metadata"]["uid"].clone());
        if uid.as_ref() != Some(&patch["metadata"]["uid"]) {
            return reply(StatusCode::CONFLICT, &failure(409, "Conflict"));
        }
        let pod = self.change(|pod| {
            for (name, value) in patch["status"].as_object().unwrap() {
                let value = match value.as_array() {
                    Some(list) => list
                        .iter()
                        .filter(|v| v.get("$patch").is_none())
                        .cloned()
                        .collect(),
                    None => value.clone(),
                };
                pod["status"][name] = match name.as_str() {
                    "conditions" => merged(&pod["status"]["conditions"], &value),
                    _ => value,
                };
            }
        });
        reply(StatusCode::OK, &pod.unwrap())
    }

    fn remove(&self, options: &Value) -> Response<Full<bytes::Bytes>> {
        assert_eq!(options["gracePeriodSeconds"], 0, "the agent deletes for good");
        assert_eq!(options["preconditions"]["uid"], "u1", "and only this very pod");
        let pod = self.0.pod.send_replace(None);
        reply(StatusCode::OK, &pod.unwrap_or_else(|| failure(404, "NotFound")))
    }
}

fn merged(old: &Value, new: &Value) -> Value {
    let mut all = old.as_array().cloned().unwrap_or_default();
    for condition in new.as_array().unwrap() {
        all.retain(|c| c["type"] != condition["type"]);
        all.push(condition.clone());
    }
    all.into()
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code})
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<bytes::Bytes>> {
    let mut answer = Response::new(Full::new(body.to_string().into()));
    *answer.status_mut() = status;
    answer
}
