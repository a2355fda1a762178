//! The side port of a component: `/healthz`, `/livez`, `/readyz` and `/metrics` over plain HTTP.

use std::convert::Infallible;
use std::fmt::Write as _;

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::readiness::Readiness;
use crate::shutdown::Shutdown;

/// Connections that are served at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// Serves until `shutdown` is requested.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness, shutdown: Shutdown) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => return,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (metrics, readiness, shutdown) = (metrics.clone(), readiness.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = connection(stream, metrics, readiness) => {}
            }
            drop(slot);
        });
    }
}

type Slot = tokio::sync::OwnedSemaphorePermit;

async fn accept(
    listener: &TcpListener,
    slots: &std::sync::Arc<tokio::sync::Semaphore>,
) -> Option<(TcpStream, Slot)> {
    let slot = std::sync::Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection on the side port");
            None
        }
    }
}

async fn connection(stream: TcpStream, metrics: Metrics, readiness: Readiness) {
    let answer =
        move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics, &readiness)));
    let service = service_fn(answer);
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(error, "connection on the side port ended");
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/healthz" | "/livez" => text(StatusCode::OK, "text/plain", "ok".to_owned()),
        "/readyz" => ready(readiness),
        "/metrics" => text(StatusCode::OK, CONTENT_TYPE, metrics.encode()),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "not found".to_owned()),
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let conditions = readiness.conditions();
    if conditions.values().all(|holds| *holds) {
        return text(StatusCode::OK, "text/plain", "ok".to_owned());
    }
    let mut lines = String::new();
    for (name, holds) in conditions {
        let _ = writeln!(lines, "[{}]{name}", if holds { '+' } else { '-' });
    }
    text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", lines)
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, media_type);
    response
        .body(Full::new(Bytes::from(body)))
        .expect("a status and a constant header are always valid")
}
