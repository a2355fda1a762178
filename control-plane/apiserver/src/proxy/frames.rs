//! Logs over a WebSocket: the kubelet sends a log as an ordinary answer, and a browser that asks for it by WebSocket gets
//! its bytes as messages, binary or in base64 as the subprotocol says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::body::{Body, full};
use crate::error::{Result, fail};
use api::status::Status;

/// How the bytes of a log become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Binary,
    Base64,
}

/// Subprotocols; the empty one is that of a client that names none.
const PROTOCOLS: [(&str, Form); 3] = [
    ("", Form::Binary),
    ("binary.k8s.io", Form::Binary),
    ("base64.binary.k8s.io", Form::Base64),
];

/// The client's half of a session that is about to begin.
pub(super) struct Session {
    client: OnUpgrade,
    key: HeaderValue,
    protocol: &'static str,
    form: Form,
}

impl Session {
    /// The session that these headers ask for, if they do.
    pub(super) fn asked(headers: &HeaderMap, client: Option<OnUpgrade>) -> Result<Option<Session>> {
        let upgrade = headers.get(UPGRADE).and_then(|u| u.to_str().ok());
        if !upgrade.is_some_and(|u| u.eq_ignore_ascii_case("websocket")) {
            return Ok(None);
        }
        let (Some(client), Some(key)) = (client, headers.get(SEC_WEBSOCKET_KEY)) else {
            return fail(Status::bad_request("this connection cannot become a WebSocket"));
        };
        let Some((protocol, form)) = chosen(headers) else {
            return fail(Status::bad_request(
                "of the subprotocols, logs have binary.k8s.io and base64.binary.k8s.io",
            ));
        };
        Ok(Some(Session {
            client,
            key: key.clone(),
            protocol,
            form,
        }))
    }

    /// Agrees, and sends the log as it comes. The connection is closed behind its end.
    pub(super) fn send(self, log: Body) -> Response<Body> {
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(self.key.as_bytes())) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if !self.protocol.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.protocol));
        }
        tokio::spawn(async move {
            let connection = match self.client.await {
                Ok(connection) => TokioIo::new(connection),
                Err(error) => return tracing::debug!(%error, "upgrade failed"),
            };
            let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
            copy(socket, log, self.form).await;
        });
        response
    }
}

async fn copy<S>(socket: WebSocketStream<S>, mut log: Body, form: Form)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let (mut sink, mut stream) = socket.split();
    loop {
        let frame = tokio::select! {
            frame = log.frame() => frame,
            // Nothing is expected of the client but its end.
            message = stream.next() => match message {
                Some(Ok(message)) if !message.is_close() => continue,
                _ => return,
            },
        };
        let Some(Ok(frame)) = frame else { break };
        let Ok(bytes) = frame.into_data() else { continue };
        if sink.send(message(bytes, form)).await.is_err() {
            return;
        }
    }
    if let Err(error) = sink.send(Message::Close(None)).await {
        tracing::debug!(%error, "the client left before the end of the log");
    }
}

fn message(bytes: Bytes, form: Form) -> Message {
    match form {
        Form::Binary => Message::Binary(bytes),
        Form::Base64 => Message::Text(STANDARD.encode(&bytes).into()),
    }
}

/// The first subprotocol of the client's that there is.
fn chosen(headers: &HeaderMap) -> Option<(&'static str, Form)> {
    let named = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let named: Vec<&str> = named
        .filter_map(|h| h.to_str().ok())
        .flat_map(|h| h.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if named.is_empty() {
        return PROTOCOLS.first().copied();
    }
    let known = |name: &&str| PROTOCOLS.iter().find(|(p, _)| p == name).copied();
    named.iter().find_map(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_first_known_subprotocol_is_taken_and_none_is_binary() {
        assert_eq!(chosen(&headers(&[])), Some(("", Form::Binary)));
        assert_eq!(
            chosen(&headers(&["v9, base64.binary.k8s.io", "binary.k8s.io"])),
            Some(("base64.binary.k8s.io", Form::Base64))
        );
        assert_eq!(chosen(&headers(&["v9"])), None);
    }

    #[tokio::test]
    async fn a_log_becomes_messages_and_a_close() {
        for (form, wanted) in [
            (Form::Binary, Message::Binary("line\n".into())),
            (Form::Base64, Message::Text("bGluZQo=".into())),
        ] {
            let (server, client) = tokio::io::duplex(1 << 10);
            let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
            let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            tokio::spawn(copy(server, full("line\n"), form));
            assert_eq!(client.next().await.unwrap().unwrap(), wanted);
            assert!(client.next().await.unwrap().unwrap().is_close());
        }
    }
}
