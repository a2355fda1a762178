//! Requests that are answered elsewhere: logs, exec, attach and port-forward by the kubelet; pods, services and nodes
//! by themselves. Upgraded connections are passed on byte by byte, so WebSocket and SPDY need nothing here but for logs,
//! which kubelets send as ordinary answers only ([`frames`]).

mod connect;
mod frames;
mod links;
mod target;

use api::status::Status;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, LOCATION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::ApiServer;
use crate::body::Body;
use crate::error::{Failure, Result, fail};
use crate::layers::Incoming;
use crate::path::RequestInfo;
pub(crate) use connect::Dialer;
use links::{Place, Rewriter};

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
    let Incoming {
        mut parts,
        body,
        info,
        ..
    } = incoming;
    let mut upgrade = upgrade_of(&parts.headers);
    if upgrade.is_none()
        && let Some(redirect) = root_with_a_slash(&parts, &info)
    {
        return Ok(redirect);
    }
    let mut client = parts.extensions.remove::<OnUpgrade>();
    let mut session = None;
    if info.subresource.as_deref() == Some("log") {
        session = frames::Session::asked(&parts.headers, client.take())?;
        upgrade = None;
    }
    let page = page_of(&parts, &info, &target);
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = target
        .path(parts.uri.query())
        .parse()
        .map_err(|e| unreachable(&format!("{e}")))?;
    *request.headers_mut() = forwarded(&parts.headers, &target.host(), upgrade.as_ref());
    if page.is_some() {
        // Links are found in plain text only.
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    let response = ask(server, &target, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(client, response);
    }
    let (mut parts, body) = response.into_parts();
    hop_by_hop(&mut parts.headers);
    let body = crate::body::foreign(body);
    Ok(match (session, page) {
        (Some(session), _) if parts.status == StatusCode::OK => session.send(body),
        (_, Some(place)) => on_page(parts, body, place),
        _ => Response::from_parts(parts, body),
    })
}

async fn ask(
    server: &ApiServer,
    target: &target::Target,
    request: Request<Body>,
) -> Result<Response<hyper::body::Incoming>> {
    let connected = server.inner.kubelets.connect(target).await;
    let mut sender = connected.map_err(|e| unreachable(&chain(&e)))?;
    let answer = sender.send_request(request).await;
    answer.map_err(|e| unreachable(&format!("{e}")))
}

/// Joins a client to a back end that agreed to speak something else.
fn switched(
    client: Option<OnUpgrade>,
    mut response: Response<hyper::body::Incoming>,
) -> Result<Response<Body>> {
    let Some(client) = client else {
        return fail(Status::bad_request("this connection cannot be upgraded"));
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(join(client, backend));
    let (parts, _) = response.into_parts();
    Ok(Response::from_parts(
        parts,
        crate::body::full(bytes::Bytes::new()),
    ))
}

/// The proxied root without its slash is seen at another path than its links are relative to: clients are sent to the
/// path with it, as upstream's are.
fn root_with_a_slash(parts: &Parts, info: &RequestInfo) -> Option<Response<Body>> {
    let path = parts.uri.path();
    let root =
        info.subresource.as_deref() == Some("proxy") && path.ends_with("/proxy") && info.tail.is_empty();
    if !root || !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let location = HeaderValue::from_str(&format!("{path}/{query}")).ok()?;
    let mut response = Response::new(crate::body::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

/// Where the pages of a pod, service or node are seen.
fn page_of(parts: &Parts, info: &RequestInfo, target: &target::Target) -> Option<Place> {
    if info.subresource.as_deref() != Some("proxy") {
        return None;
    }
    // /api/v1/namespaces/NAMESPACE/KIND/NAME/proxy, or /api/v1/KIND/NAME/proxy.
    let segments = if info.namespace.is_some() { 7 } else { 5 };
    let prefix: Vec<&str> = parts.uri.path().split('/').take(segments + 1).collect();
    let host = parts.headers.get(HOST).and_then(|h| h.to_str().ok());
    Some(Place {
        prefix: prefix.join("/"),
        backend: target.host(),
        client: host.unwrap_or_default().to_owned(),
    })
}

/// An answer of a pod, service or node whose links lead back through this server.
fn on_page(mut parts: http::response::Parts, body: Body, place: Place) -> Response<Body> {
    let location = parts.headers.get(LOCATION).and_then(|l| l.to_str().ok());
    let location = location.and_then(|l| place.rewritten(l));
    if let Some(location) = location.and_then(|l| HeaderValue::from_str(&l).ok()) {
        parts.headers.insert(LOCATION, location);
    }
    let media = parts.headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok());
    let media = media.and_then(|t| t.split(';').next()).unwrap_or_default();
    if !media.trim().eq_ignore_ascii_case("text/html") || parts.headers.contains_key(CONTENT_ENCODING) {
        return Response::from_parts(parts, body);
    }
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, rewritten(body, Rewriter::new(place)))
}

/// The page with its links rewritten, piece by piece.
fn rewritten(body: Body, rewriter: Rewriter) -> Body {
    let pieces = futures::stream::unfold(Some((body, rewriter)), |state| async {
        let (mut body, mut rewriter) = state?;
        match body.frame().await {
            Some(Ok(frame)) => {
                let piece = frame
                    .into_data()
                    .map(|data| rewriter.push(&data))
                    .unwrap_or_default();
                Some((Ok(Frame::data(piece.into())), Some((body, rewriter))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Ok(Frame::data(rewriter.end().into())), None)),
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Copies bytes both ways until one side ends.
async fn join(client: OnUpgrade, backend: OnUpgrade) {
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
