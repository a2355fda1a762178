//! The loops that are measured: a server of one thread per protocol, a client of one thread.
//!
//! The first byte that a TCP client sends says what it wants; one that closes without a byte only wanted to connect.
use crate::net::{Cpu, within};
use crate::objects::{TCP_PORT, UDP_ENDPOINTS, UDP_PORT};
use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing waits longer for an answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// One byte there, one byte back, and the server closes.
const ONCE: u8 = b'1';
/// Every byte comes back until the client closes.
const ECHO: u8 = b'e';
/// Everything is read, then the number of bytes comes back.
const SINK: u8 = b's';
/// The address at which the server was reached comes back.
const WHO: u8 = b'w';
/// A datagram that is counted only; any other is answered.
const COUNTED: u8 = b'c';

/// What the server pod does, seen from the client's side.
pub struct Server {
    datagrams: Arc<AtomicU64>,
    /// By endpoint of the UDP service: it plays dead.
    muted: [Arc<AtomicBool>; 2],
}

impl Server {
    /// Starts the server pod's threads; returns when they listen.
    ///
    /// # Errors
    /// A port could not be bound.
    pub fn start() -> Result<Self> {
        let server = Self {
            datagrams: Arc::default(),
            muted: Default::default(),
        };
        let (ready, listening) = std::sync::mpsc::sync_channel(3);
        let tcp = ready.clone();
        within("server", Cpu::Server, move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TCP_PORT))?;
            tcp.send(())?;
            serve_tcp(&listener)
        })?;
        for (ip, muted) in UDP_ENDPOINTS.into_iter().zip(&server.muted) {
            let (ready, counter, muted) = (ready.clone(), server.datagrams.clone(), muted.clone());
            within("server", Cpu::Server, move || {
                let socket = UdpSocket::bind((ip, UDP_PORT))?;
                ready.send(())?;
                serve_udp(&socket, ip, &counter, &muted)
            })?;
        }
        for _ in 0..3 {
            listening
                .recv_timeout(DEADLINE)
                .context("the server pod does not listen")?;
        }
        Ok(server)
    }

    /// Lets one endpoint of the UDP service play dead, and the other one live.
    pub fn only_lives(&self, which: usize) {
        for (i, muted) in self.muted.iter().enumerate() {
            muted.store(i != which, Ordering::SeqCst);
        }
    }

    /// Both endpoints of the UDP service live.
    pub fn all_live(&self) {
        for muted in &self.muted {
            muted.store(false, Ordering::SeqCst);
        }
    }
}

fn serve_tcp(listener: &TcpListener) -> Result<()> {
    let mut buf = vec![0; 1 << 18];
    loop {
        // A client that is gone again is no reason to end.
        if let Ok((stream, _)) = listener.accept() {
            let _ = answer(stream, &mut buf);
        }
    }
}

fn answer(mut stream: TcpStream, buf: &mut [u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        ONCE => stream.write_all(&kind),
        WHO => stream.write_all(stream.local_addr()?.to_string().as_bytes()),
        ECHO => loop {
            match stream.read(buf)? {
                0 => return Ok(()),
                n => stream.write_all(&buf[..n])?,
            }
        },
        _ => {
            let mut total = 0_u64;
            loop {
                match stream.read(buf)? {
                    0 => return stream.write_all(&total.to_le_bytes()),
                    n => total += n as u64,
                }
            }
        }
    }
}

fn serve_udp(socket: &UdpSocket, own: Ipv4Addr, counter: &AtomicU64, muted: &AtomicBool) -> Result<()> {
    let mut buf = [0; 256];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buf) else {
            continue;
        };
        if buf[..n].first() == Some(&COUNTED) {
            counter.fetch_add(1, Ordering::Relaxed);
        } else if !muted.load(Ordering::SeqCst) {
            let _ = socket.send_to(&own.octets(), from);
        }
    }
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// connect() alone, in microseconds; the connection is thrown away by a reset, so that none waits for its end.
///
/// # Errors
/// A connection was refused or came to nothing.
pub fn connects(to: &[SocketAddrV4]) -> Result<Vec<f64>> {
    to.iter()
        .map(|to| {
            let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_linger(&fd, Some(Duration::ZERO))?;
            let start = Instant::now();
            connect(&fd, to).with_context(|| format!("connect to {to}"))?;
            Ok(micros(start.elapsed()))
        })
        .collect()
}

/// Connect, request, response, close, in microseconds.
///
/// # Errors
/// A connection failed or was not answered.
pub fn connect_request_response(to: &[SocketAddrV4]) -> Result<Vec<f64>> {
    to.iter()
        .map(|to| {
            let start = Instant::now();
            let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
            stream.write_all(&[ONCE])?;
            let mut buf = [0; 2];
            let mut got = 0;
            while let n @ 1.. = stream.read(&mut buf)? {
                got += n;
            }
            drop(stream);
            let took = micros(start.elapsed());
            ensure!(got == 1, "{to} answered {got} bytes");
            Ok(took)
        })
        .collect()
}

fn open(to: SocketAddrV4, kind: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), DEADLINE)
        .with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// Requests and responses of one byte on one connection, in microseconds each.
///
/// # Errors
/// The connection failed.
pub fn request_response(to: SocketAddrV4, count: usize) -> Result<Vec<f64>> {
    let mut stream = open(to, ECHO)?;
    let mut byte = [1];
    (0..count)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            Ok(micros(start.elapsed()))
        })
        .collect()
}

/// Sends for `time` over one connection; gigabits per second that arrived.
///
/// # Errors
/// The connection failed.
pub fn stream(to: SocketAddrV4, time: Duration) -> Result<f64> {
    let mut stream = open(to, SINK)?;
    let block = vec![0; 1 << 17];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    let took = start.elapsed().as_secs_f64();
    Ok(u64::from_le_bytes(total) as f64 * 8.0 / took / 1e9)
}

/// Sends datagrams of 64 bytes for `time`; thousands per second that arrived. (None may, where the server got no time.)
///
/// # Errors
/// The server does not answer, or sending failed.
pub fn datagrams(server: &Arc<AtomicU64>, to: SocketAddrV4, time: Duration) -> Result<f64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send(b"who?")?;
    socket
        .recv(&mut [0; 4])
        .with_context(|| format!("no answer through {to}"))?;
    let before = server.load(Ordering::Relaxed);
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..32 {
            socket.send(&[COUNTED; 64])?;
        }
    }
    let arrived = server.load(Ordering::Relaxed) - before;
    Ok(arrived as f64 / start.elapsed().as_secs_f64() / 1e3)
}

impl Server {
    /// Counts the datagrams that arrived, for [`datagrams`].
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.datagrams.clone()
    }
}

/// At which address the server was reached.
///
/// # Errors
/// The connection failed.
pub fn who(to: SocketAddrV4) -> Result<SocketAddrV4> {
    let mut text = String::new();
    open(to, WHO)?.read_to_string(&mut text)?;
    text.parse().with_context(|| format!("{to} answered `{text}`"))
}

/// A connected UDP client as programs are written: it asks, waits a moment, asks again, and connects anew after an error.
pub struct UdpClient {
    socket: UdpSocket,
    to: SocketAddrV4,
}

impl UdpClient {
    /// Connects to the service.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn connect(to: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
        Ok(Self { socket, to })
    }

    /// Asks until `endpoint` answers.
    ///
    /// # Errors
    /// It has not answered after `limit`.
    pub fn until_answered_by(&self, endpoint: Ipv4Addr, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut answer = [0; 4];
        while start.elapsed() < limit {
            let asked = self
                .socket
                .send(b"who?")
                .and_then(|_| self.socket.recv(&mut answer));
            match asked {
                Ok(_) if answer == endpoint.octets() => return Ok(()),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                // Refused for the moment, or ended: a new connection finds out.
                Err(_) => {
                    let _ = self.socket.connect(self.to);
                }
            }
        }
        bail!("{} gets no answer of {endpoint} for {limit:?}", self.to)
    }
}
