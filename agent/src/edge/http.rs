//! Small answers over HTTP: health and metrics.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections that are served at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// For a client to send its request; whoever is slower is only holding a place.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that the kernel holds for us.
const BACKLOG: u32 = 128;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// The body's media type.
    pub media_type: &'static str,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            media_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.into(),
        }
    }
}

/// What answers: given a request's path.
pub type Answers = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Listens on an address; one of IPv6 serves IPv6 only, unless it is the unspecified one on its own (`both`).
///
/// # Errors
/// The address is taken, or not this node's.
pub fn listen(address: SocketAddr, both: bool) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, !both).map_err(std::io::Error::from)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers until dropped; connections end with it.
pub async fn serve(listener: TcpListener, answers: Answers) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answers = Arc::clone(&answers);
                connections.spawn(async move {
                    connection(stream, answers).await;
                    drop(slot);
                });
            }
            // Out of descriptors, most likely: those that are open have to end first.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on a health port");
                connections.join_next().await;
            }
        }
    }
}

async fn connection(stream: TcpStream, answers: Answers) {
    let answer = move |request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(response(answers(request.uri().path()))))
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection on a health port ended");
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, answer.media_type)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response
        .body(Full::new(Bytes::from(answer.body)))
        .unwrap_or_else(|_| Response::new(Full::new(Bytes::new())))
}
