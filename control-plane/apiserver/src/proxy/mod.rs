//! Requests that are answered elsewhere: logs, exec, attach and port-forward by the kubelet; pods, services and nodes
//! by themselves. Upgraded connections are passed on byte by byte, so WebSocket and SPDY need nothing here.

mod connect;
mod target;

use api::status::Status;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::ApiServer;
use crate::body::Body;
use crate::error::{Failure, Result, fail};
use crate::layers::Incoming;
use crate::path::RequestInfo;
pub(crate) use connect::Dialer;

/// Whether a request is passed on.
pub(crate) fn is_stream(info: &RequestInfo) -> bool {
    let subresource = info.subresource.as_deref().unwrap_or_default();
    let names = ["log", "exec", "attach", "portforward", "proxy"];
    info.is_resource
        && info.group.is_empty()
        && names.contains(&subresource)
        && matches!(info.resource.as_str(), "pods" | "nodes" | "services")
}

/// Passes a request on and its answer back.
pub(crate) async fn serve(server: &ApiServer, incoming: Incoming) -> Result<Response<Body>> {
    let target = target::find(server, &incoming.info, &incoming.query)?;
    let Incoming { mut parts, body, .. } = incoming;
    let upgrade = upgrade_of(&parts.headers);
    let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = target
        .path(parts.uri.query())
        .parse()
        .map_err(|e| unreachable(&format!("{e}")))?;
    *request.headers_mut() = forwarded(&parts.headers, &target.host(), upgrade.as_ref());
    let mut sender = server
        .inner
        .kubelets
        .connect(&target)
        .await
        .map_err(|e| unreachable(&chain(&e)))?;
    let mut response = sender
        .send_request(request)
        .await
        .map_err(|e| unreachable(&format!("{e}")))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return fail(Status::bad_request("this connection cannot be upgraded"));
        };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(join(client, backend));
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(
            parts,
            crate::body::full(bytes::Bytes::new()),
        ));
    }
    let (mut parts, body) = response.into_parts();
    hop_by_hop(&mut parts.headers);
    Ok(Response::from_parts(parts, crate::body::foreign(body)))
}

/// Copies bytes both ways until one side ends.
async fn join(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "upgrade failed"),
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    if let Err(error) = copy_bidirectional(&mut client, &mut backend).await {
        tracing::debug!(%error, "stream ended");
    }
}

fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(UPGRADE).cloned()
}

/// The headers that go on: without credentials and those of this connection only.
fn forwarded(headers: &HeaderMap, host: &str, upgrade: Option<&HeaderValue>) -> HeaderMap {
    let mut out = headers.clone();
    hop_by_hop(&mut out);
    for name in [
        "authorization",
        "impersonate-user",
        "impersonate-group",
        "impersonate-uid",
    ] {
        out.remove(name);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        out.insert(http::header::HOST, host);
    }
    if let Some(upgrade) = upgrade {
        out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(UPGRADE, upgrade.clone());
    }
    out
}

fn hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        "connection",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
    ] {
        headers.remove(HeaderName::from_static(name));
    }
}

fn unreachable(why: &str) -> Failure {
    Status::unavailable(format!("error trying to reach the node or service: {why}")).into()
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
