//! Connections that are passed on to the runtime's streaming server: the client's upgrade is repeated there, and then
//! bytes go both ways.

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Name of the header by which SPDY clients negotiate.
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A stream that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The runtime gave a URL that is none.
    #[error("the runtime's streaming URL {0:?} cannot be used")]
    Url(String),
    /// No connection.
    #[error("the runtime's streaming server cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// HTTP failed.
    #[error("the runtime's streaming server: {0}")]
    Http(#[from] hyper::Error),
    /// The request was refused.
    #[error("the runtime's streaming server answered {0} instead of switching protocols")]
    Refused(StatusCode),
    /// The client asks for something this node does not speak.
    #[error(
        "unable to upgrade: {0}; use SPDY/3.1 or a WebSocket with v4.channel.k8s.io or v5.channel.k8s.io"
    )]
    Unsupported(String),
}

/// What a client wants to upgrade to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// SPDY, with the protocols it offers.
    Spdy,
    /// A WebSocket, with the protocols it offers.
    WebSocket(Vec<String>),
}

/// Reads the upgrade a request asks for.
#[must_use]
pub fn wish(headers: &HeaderMap) -> Option<Wish> {
    let upgrade = headers.get(UPGRADE)?.to_str().ok()?.to_ascii_lowercase();
    match upgrade.as_str() {
        "websocket" => {
            let offered = headers
                .get_all(SEC_WEBSOCKET_PROTOCOL)
                .iter()
                .filter_map(|v| v.to_str().ok());
            Some(Wish::WebSocket(
                offered
                    .flat_map(|v| v.split(','))
                    .map(|p| p.trim().to_owned())
                    .collect(),
            ))
        }
        spdy if spdy.starts_with("spdy/") => Some(Wish::Spdy),
        _ => None,
    }
}

/// Connects to `url` with these headers; the answer, and its connection if it switched protocols.
///
/// # Errors
/// [`StreamError`]
pub async fn dial(
    url: &str,
    method: Method,
    headers: HeaderMap,
) -> Result<(Response<()>, TokioIo<Upgraded>), StreamError> {
    let bad = || StreamError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?.clone();
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| bad())?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
    request.headers_mut().insert(http::header::HOST, host);
    let mut answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(StreamError::Refused(answer.status()));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await?;
    Ok((answer.map(|_| ()), TokioIo::new(upgraded)))
}

/// Opens a SPDY connection of our own to `url`, speaking `protocol` on it.
///
/// # Errors
/// [`StreamError`]
pub async fn dial_spdy(url: &str, protocol: &'static str) -> Result<TokioIo<Upgraded>, StreamError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    let (_, connection) = dial(url, Method::POST, headers).await?;
    Ok(connection)
}

/// The headers of a client's upgrade that the runtime must see.
fn passed(headers: &HeaderMap) -> HeaderMap {
    let wanted = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("sec-websocket")
            || ["connection", "upgrade", STREAM_PROTOCOL.as_str()].contains(&name)
    };
    headers
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// Repeats the client's upgrade at `url` and joins both connections. The answer goes to the client as it came.
///
/// # Errors
/// [`StreamError`]
pub async fn pass(
    url: &str,
    method: Method,
    headers: &HeaderMap,
    client: OnUpgrade,
) -> Result<Response<()>, StreamError> {
    let (answer, mut runtime) = dial(url, method, passed(headers)).await?;
    tokio::spawn(async move {
        let client = match client.await {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%error, "client left before the stream began"),
        };
        if let Err(error) = copy_bidirectional(&mut TokioIo::new(client), &mut runtime).await {
            tracing::debug!(%error, "stream ended");
        }
    });
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upgrade_is_read_from_the_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(wish(&headers), None);
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(wish(&headers), Some(Wish::Spdy));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("v5.channel.k8s.io, v4.channel.k8s.io"),
        );
        let both = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(wish(&headers), Some(Wish::WebSocket(both)));
    }
}
