//! WebSocket sessions that the runtime does not speak: v5 exec and attach, and port forwarding.
//!
//! v5 is v4 (first byte of a message: channel) plus a message 255 that closes one channel, so that a client can end
//! its standard input. The runtime's v4 cannot say that, SPDY can: so a v5 session is translated to SPDY streams.
//! Port forwarding of kubectl is SPDY inside a WebSocket: the messages' bytes are the SPDY connection.

use super::spdy::{Incoming, Receiver, Sender};
use super::upgrade::{StreamError, dial_spdy};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

/// Exec and attach with a close message.
pub const V5: &str = "v5.channel.k8s.io";
/// SPDY port forwarding inside a WebSocket.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The channel whose messages name a channel to close.
const CLOSE: u8 = 255;
/// Bytes read at once.
const CHUNK: usize = 32 << 10;

/// What a session has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; a terminal has none of its own.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Channels of v4 and v5 with their SPDY stream types, in the order in which they are opened.
fn channels(streams: Streams) -> Vec<(u8, &'static str)> {
    let all = [
        (3, "error", true),
        (0, "stdin", streams.stdin),
        (1, "stdout", streams.stdout),
        (2, "stderr", streams.stderr && !streams.tty),
        (4, "resize", streams.tty),
    ];
    all.into_iter()
        .filter(|(_, _, there)| *there)
        .map(|(channel, name, _)| (channel, name))
        .collect()
}

/// The answer that switches a client to a WebSocket speaking `protocol`.
///
/// # Errors
/// [`StreamError::Unsupported`] without a key.
pub fn accept(headers: &HeaderMap, protocol: &'static str) -> Result<Response<()>, StreamError> {
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| StreamError::Unsupported("no WebSocket key".into()))?;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(
        SEC_WEBSOCKET_ACCEPT,
        accepted.map_err(|e| StreamError::Unsupported(e.to_string()))?,
    );
    Ok(answer)
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn socket(client: OnUpgrade) -> Option<Socket> {
    match client.await {
        Ok(client) => Some(WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await),
        Err(error) => {
            tracing::debug!(%error, "client left before the stream began");
            None
        }
    }
}

/// Translates a v5 session of the client to SPDY at `url`.
///
/// # Errors
/// [`StreamError`]; later ones end the session.
pub async fn session(url: &str, streams: Streams, client: OnUpgrade) -> Result<(), StreamError> {
    let runtime = dial_spdy(url, "v4.channel.k8s.io").await?;
    let (read, write) = split(runtime);
    let mut sender = Sender::new(write);
    let mut ids = BTreeMap::new();
    for (channel, name) in channels(streams) {
        ids.insert(channel, sender.open(&[("streamtype", name)]).await?);
    }
    tokio::spawn(async move {
        if let Some(socket) = socket(client).await
            && let Err(error) = translate(socket, sender, Receiver::new(read), ids).await
        {
            tracing::debug!(%error, "stream ended");
        }
    });
    Ok(())
}

async fn translate<W, R>(
    socket: Socket,
    mut sender: Sender<W>,
    mut receiver: Receiver<R>,
    ids: BTreeMap<u8, u32>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    W: tokio::io::AsyncWrite + Unpin,
    R: tokio::io::AsyncRead + Unpin + Send + 'static,
{
    let (mut to_client, mut from_client) = socket.split();
    // A frame is read in pieces: in a task of its own no piece is lost when something else is ready first.
    let (frames_in, mut frames) = mpsc::channel(16);
    let reader = tokio::spawn(async move {
        while let Ok(Some(frame)) = receiver.next().await {
            if frames_in.send(frame).await.is_err() {
                return;
            }
        }
    });
    let channel_of: BTreeMap<u32, u8> = ids.iter().map(|(channel, id)| (*id, *channel)).collect();
    let mut open: Vec<u32> = ids
        .iter()
        .filter(|(c, _)| (1..=3).contains(*c))
        .map(|(_, id)| *id)
        .collect();
    while !open.is_empty() {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(Incoming::Data(id, bytes, last)) => {
                    if let Some(channel) = channel_of.get(&id).filter(|_| !bytes.is_empty()) {
                        to_client.send(message(*channel, &bytes)).await?;
                    }
                    open.retain(|o| *o != id || !last);
                }
                Some(Incoming::Reset(id)) => open.retain(|o| *o != id),
                Some(Incoming::Ping(id)) => sender.pong(&id).await?,
                Some(Incoming::Other) => {}
                Some(Incoming::GoAway) | None => break,
            },
            message = from_client.next() => match message {
                Some(Ok(Message::Binary(bytes))) => forward(&mut sender, &ids, &bytes).await?,
                Some(Ok(Message::Text(text))) => forward(&mut sender, &ids, text.as_bytes()).await?,
                Some(Ok(Message::Close(_))) | None => break,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            },
        }
    }
    reader.abort();
    to_client.send(goodbye()).await?;
    Ok(())
}

/// Clients take a close without a code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: Default::default(),
    }))
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut out = Vec::with_capacity(bytes.len() + 1);
    out.push(channel);
    out.extend_from_slice(bytes);
    Message::Binary(out.into())
}

/// One message of the client: data of a channel, or a channel to close.
async fn forward<W>(sender: &mut Sender<W>, ids: &BTreeMap<u8, u32>, message: &[u8]) -> std::io::Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    match message {
        [CLOSE, channel, ..] => match ids.get(channel) {
            Some(id) => sender.data(*id, &[], true).await,
            None => Ok(()),
        },
        [channel, data @ ..] if !data.is_empty() => match ids.get(channel) {
            Some(id) => sender.data(*id, data, false).await,
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Carries the client's SPDY connection, which is inside a WebSocket, to `url`.
///
/// # Errors
/// [`StreamError`]; later ones end the session.
pub async fn tunnel(url: &str, client: OnUpgrade) -> Result<(), StreamError> {
    let runtime = dial_spdy(url, "portforward.k8s.io").await?;
    tokio::spawn(async move {
        if let Some(socket) = socket(client).await
            && let Err(error) = carry(socket, runtime).await
        {
            tracing::debug!(%error, "port forwarding ended");
        }
    });
    Ok(())
}

async fn carry(
    socket: Socket,
    runtime: TokioIo<Upgraded>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut to_client, mut from_client) = socket.split();
    let (mut read, mut write) = split(runtime);
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = read.read(&mut buffer).await?;
            if n == 0 {
                to_client.send(goodbye()).await?;
                return Ok(());
            }
            to_client
                .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                .await?;
        }
    };
    let up = async {
        while let Some(message) = from_client.next().await {
            match message? {
                Message::Binary(bytes) => {
                    write.write_all(&bytes).await?;
                    write.flush().await?;
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        write.shutdown().await?;
        Ok(())
    };
    tokio::select! {
        ended = down => ended,
        ended = up => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_standard_error_of_its_own_but_a_size() {
        let plain = channels(Streams {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        });
        assert_eq!(plain, [(3, "error"), (0, "stdin"), (1, "stdout"), (2, "stderr")]);
        let tty = channels(Streams {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: true,
        });
        assert_eq!(tty, [(3, "error"), (0, "stdin"), (1, "stdout"), (4, "resize")]);
    }

    #[tokio::test]
    async fn a_close_message_ends_that_stream_only() {
        let mut sender = Sender::new(std::io::Cursor::new(Vec::new()));
        let ids = BTreeMap::from([(0, 3), (1, 5)]);
        forward(&mut sender, &ids, &[0, b'x']).await.unwrap();
        forward(&mut sender, &ids, &[255, 0]).await.unwrap();
        forward(&mut sender, &ids, &[255, 9]).await.unwrap();
        let bytes = sender.into_inner().into_inner();
        let mut receiver = Receiver::new(&bytes[..]);
        let data = Some(Incoming::Data(3, Bytes::from_static(b"x"), false));
        assert_eq!(receiver.next().await.unwrap(), data);
        assert_eq!(
            receiver.next().await.unwrap(),
            Some(Incoming::Data(3, Bytes::new(), true))
        );
        assert_eq!(receiver.next().await.unwrap(), None);
    }
}
