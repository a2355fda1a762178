//! Questions in, answers out.

use crate::server::{Now, Server, Transport};
use crate::sockets::{Sockets, SocketsError};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection may be idle, or slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// How long questions that were sent elsewhere get when the server is to stop.
const LAST: Duration = Duration::from_secs(2);
/// Pause after an error of a socket, which seldom goes by itself (no memory, no more descriptors).
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then finishes what it has read; what it has not stays in the sockets for the next.
///
/// # Errors
/// When a socket cannot be used.
pub async fn serve(
    server: Arc<Server>,
    sockets: Sockets,
    stop: impl Future<Output = ()>,
) -> Result<(), SocketsError> {
    let mut tasks = JoinSet::new();
    let (stopping, _) = tokio::sync::watch::channel(false);
    for socket in sockets.udp {
        let socket = UdpSocket::from_std(socket).map_err(SocketsError::Use)?;
        tasks.spawn(datagrams(Arc::clone(&server), socket, stopping.subscribe()));
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    for socket in sockets.tcp {
        let listener = TcpListener::from_std(socket).map_err(SocketsError::Use)?;
        let (server, places) = (Arc::clone(&server), Arc::clone(&places));
        tasks.spawn(connections(server, listener, places, stopping.subscribe()));
    }
    stop.await;
    stopping.send_replace(true);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

type Stopping = tokio::sync::watch::Receiver<bool>;

async fn stopped(stopping: &mut Stopping) {
    // An error means that the sender is gone, which also is an end.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn datagrams(server: Arc<Server>, socket: UdpSocket, mut stopping: Stopping) {
    let socket = Arc::new(socket);
    let mut elsewhere = JoinSet::new();
    let mut packet = [0; 4096];
    let mut out = Vec::with_capacity(4096);
    loop {
        let received = tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            received = socket.recv_from(&mut packet) => received,
        };
        while elsewhere.try_join_next().is_some() {}
        match received {
            Ok((length, client)) => {
                datagram(
                    &server,
                    &socket,
                    &packet[..length],
                    client,
                    &mut out,
                    &mut elsewhere,
                )
                .await;
            }
            Err(error) => trouble(&error).await,
        }
    }
    let rest = async { while elsewhere.join_next().await.is_some() {} };
    if timeout(LAST, rest).await.is_err() {
        tracing::debug!("questions under way were given up");
    }
}

async fn datagram(
    server: &Arc<Server>,
    socket: &Arc<UdpSocket>,
    packet: &[u8],
    client: SocketAddr,
    out: &mut Vec<u8>,
    elsewhere: &mut JoinSet<()>,
) {
    match server.now(packet, Transport::Udp, out) {
        Now::Nothing => {}
        Now::Replied => send(socket, out, client).await,
        Now::Ask(pending) => match server.permit() {
            None => {
                pending.refuse(Transport::Udp, out);
                send(socket, out, client).await;
            }
            Some(permit) => {
                let (server, socket) = (Arc::clone(server), Arc::clone(socket));
                elsewhere.spawn(async move {
                    let mut out = Vec::with_capacity(512);
                    server.ask(pending, Transport::Udp, &mut out).await;
                    send(&socket, &out, client).await;
                    drop(permit);
                });
            }
        },
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "a reply was not sent");
    }
}

async fn trouble(error: &io::Error) {
    tracing::warn!(%error, "a DNS socket refuses");
    tokio::time::sleep(PAUSE).await;
}

async fn connections(
    server: Arc<Server>,
    listener: TcpListener,
    places: Arc<Semaphore>,
    mut stopping: Stopping,
) {
    let mut open = JoinSet::new();
    loop {
        let accept = async {
            // Never closed, so there is always a permit to wait for.
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            next = accept => next,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (server, stopping) = (Arc::clone(&server), stopping.clone());
                open.spawn(async move {
                    if let Err(error) = connection(&server, stream, stopping).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => trouble(&error).await,
        }
    }
    let rest = async { while open.join_next().await.is_some() {} };
    let _ = timeout(LAST, rest).await;
}

/// One question after the other, until the client has no more (RFC 7766).
async fn connection(server: &Server, mut stream: TcpStream, mut stopping: Stopping) -> io::Result<()> {
    let mut out = Vec::new();
    loop {
        let packet = tokio::select! {
            biased;
            () = stopped(&mut stopping) => return Ok(()),
            packet = timeout(PATIENCE, read(&mut stream)) => packet,
        };
        let Ok(Some(packet)) = packet.map_err(io::Error::from)? else {
            return Ok(());
        };
        match server.now(&packet, Transport::Tcp, &mut out) {
            Now::Nothing => continue,
            Now::Replied => {}
            Now::Ask(pending) => match server.permit() {
                None => pending.refuse(Transport::Tcp, &mut out),
                Some(_permit) => server.ask(pending, Transport::Tcp, &mut out).await,
            },
        }
        let length = u16::try_from(out.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&length.to_be_bytes(), out.as_slice()].concat();
        timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
}

/// The next message; none at the end of the connection.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}
