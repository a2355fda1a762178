//! What every cluster has from the start. Made through the API like anything else, so it is checked and has defaults.

mod components;
mod dns;
mod ranges;
mod roles;

use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::body::{Body, full};
use crate::{ApiServer, Identity, StartError};

/// Objects that are made side by side.
const AT_ONCE: usize = 32;

/// Makes what is missing.
pub(crate) async fn run(server: &ApiServer) -> Result<(), StartError> {
    for name in ["kube-system", "default", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(server, "/api/v1/namespaces", namespace).await?;
    }
    // Side by side: the store then writes many of them at once.
    let all = roles::all().into_iter().chain(priority_classes());
    let made: Vec<_> = all.map(|(path, object)| ensure(server, path, object)).collect();
    stream::iter(made)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    if !server.inner.config.service_cidrs.is_empty() {
        ranges::default(server).await?;
    }
    service(server).await?;
    dns::service(server).await?;
    endpoints(server).await
}

fn priority_classes() -> Vec<(&'static str, Value)> {
    let class = |name: &str, value: i64, what: &str| {
        let object = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": what});
        ("/apis/scheduling.k8s.io/v1/priorityclasses", object)
    };
    vec![
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// The service through which pods reach the API: the first address of each service range.
async fn service(server: &ApiServer) -> Result<(), StartError> {
    let config = &server.inner.config;
    let Some(primary) = config.service_cidrs.first().and_then(|c| c.nth(1)) else {
        return Ok(());
    };
    let object = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": primary.to_string(), "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}]}});
    ensure(server, "/api/v1/namespaces/default/services", object).await
}

/// Where this server is, as endpoints of the service `kubernetes`; overwritten when the address changed.
async fn endpoints(server: &ApiServer) -> Result<(), StartError> {
    let config = &server.inner.config;
    let ipv6 = config.service_cidrs.first().is_some_and(|c| c.is_ipv6());
    // Endpoints may not be loopback addresses: nobody else would reach them.
    let usable = |ip: &&IpAddr| ip.is_ipv6() == ipv6 && !ip.is_loopback();
    let ours: Vec<&IpAddr> = config.advertise.iter().filter(usable).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let port = config.advertise_port;
    let addresses: Vec<String> = ours.iter().map(ToString::to_string).collect();
    let labels = json!({"kubernetes.io/service-name": "kubernetes"});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        "endpoints": [{"addresses": addresses, "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let legacy = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": ips, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    replace(
        server,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        slice,
    )
    .await?;
    replace(server, "/api/v1/namespaces/default/endpoints", legacy).await
}

async fn ensure(server: &ApiServer, path: &str, object: Value) -> Result<(), StartError> {
    let response = send(server, Method::POST, path, &object).await;
    match response.status().as_u16() {
        201 | 409 => Ok(()),
        _ => Err(failed(&object, response).await),
    }
}

/// Makes the object, or makes the one that is there like it.
async fn replace(server: &ApiServer, path: &str, mut object: Value) -> Result<(), StartError> {
    let response = send(server, Method::POST, path, &object).await;
    match response.status().as_u16() {
        201 => return Ok(()),
        409 => {}
        _ => return Err(failed(&object, response).await),
    }
    let named = format!(
        "{path}/{}",
        object["metadata"]["name"].as_str().unwrap_or_default()
    );
    let now = read(server, &named).await;
    object["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
    let response = send(server, Method::PUT, &named, &object).await;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(failed(&object, response).await)
    }
}

/// The object at this path; null if there is none.
async fn read(server: &ApiServer, path: &str) -> Value {
    let response = send(server, Method::GET, path, &Value::Null).await;
    match response.into_body().collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

async fn send(server: &ApiServer, method: Method, path: &str, object: &Value) -> Response<Body> {
    let body = if object.is_null() {
        String::new()
    } else {
        object.to_string()
    };
    let mut request = Request::new(full(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("a constant path is a valid URI");
    request
        .headers_mut()
        .insert("user-agent", http::HeaderValue::from_static("kube-apiserver"));
    let identity = Identity::new("system:apiserver", &[crate::identity::MASTERS]);
    server.handle(Some(identity), request).await
}

async fn failed(object: &Value, response: Response<Body>) -> StartError {
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
    let code = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    StartError::Bootstrap {
        what,
        why: format!("{code} {}", status["message"].as_str().unwrap_or_default()),
    }
}
