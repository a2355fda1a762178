//! The serving side.
use images::http;
use images::signals::{Blocked, reap};
use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// At most this many connections are served at a time; more are told so and closed.
const MOST: usize = 1024;
/// A connection on which nothing comes for so long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// How to serve.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The port, TCP and UDP.
    pub port: u16,
    /// For how long to go on serving after SIGTERM: until every node has heard that this endpoint is terminating.
    pub drain: Duration,
}

struct Server {
    pod: String,
    node: String,
    open: AtomicUsize,
    draining: AtomicBool,
}

/// Serves until SIGTERM or SIGINT and then for the drain time; a second signal ends it at once.
pub fn run(options: &Options) -> ExitCode {
    let signals = Blocked::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]);
    let server = Arc::new(Server {
        pod: name("POD_NAME")
            .or_else(|| name("HOSTNAME"))
            .unwrap_or_else(|| "-".to_owned()),
        node: name("NODE_NAME").unwrap_or_else(|| "-".to_owned()),
        open: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
    });
    let (tcp, udp) = match bind(options.port) {
        Ok(sockets) => sockets,
        Err(e) => {
            eprintln!("error: cannot listen on port {}: {e}", options.port);
            return ExitCode::FAILURE;
        }
    };
    println!("{} on {} serves port {}", server.pod, server.node, options.port);
    let (for_tcp, for_udp) = (server.clone(), server.clone());
    std::thread::spawn(move || for_tcp.accept(&tcp));
    std::thread::spawn(move || for_udp.datagrams(&udp));
    wait_for_stop(&signals, None);
    println!("stopping in {} s", options.drain.as_secs());
    server.draining.store(true, Ordering::Relaxed);
    wait_for_stop(&signals, Some(options.drain));
    ExitCode::SUCCESS
}

fn name(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())
}

/// One socket for both families where there is IPv6, else IPv4 alone.
fn bind(port: u16) -> std::io::Result<(TcpListener, UdpSocket)> {
    let at = |ip: IpAddr| {
        let address = SocketAddr::new(ip, port);
        Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?))
    };
    at(Ipv6Addr::UNSPECIFIED.into()).or_else(|_: std::io::Error| at(Ipv4Addr::UNSPECIFIED.into()))
}

fn wait_for_stop(signals: &Blocked, limit: Option<Duration>) {
    while signals.wait(limit) == Some(libc::SIGCHLD) {
        reap();
    }
}

impl Server {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let server = self.clone();
            if self.open.fetch_add(1, Ordering::Relaxed) >= MOST {
                let _ = http::answer(
                    &mut &stream,
                    "503 Service Unavailable",
                    "too many connections\n",
                    true,
                );
                self.open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            std::thread::spawn(move || {
                // A client that goes away in the middle is no news.
                let _ = server.connection(stream);
                server.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_nodelay(true)?;
        let (client, here) = (stream.peer_addr()?, stream.local_addr()?);
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(head) = http::read_head(&mut reader)? {
            let (status, body) = self.respond(head.path(), client, here);
            http::answer(&mut stream, status, &body, head.close)?;
            if head.close {
                break;
            }
        }
        Ok(())
    }

    fn respond(&self, path: &str, client: SocketAddr, here: SocketAddr) -> (&'static str, String) {
        match path.split('?').next().unwrap_or(path) {
            "/healthz" => ("200 OK", "ok\n".to_owned()),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                ("503 Service Unavailable", "stopping\n".to_owned())
            }
            "/readyz" => ("200 OK", "ok\n".to_owned()),
            _ => ("200 OK", self.line("tcp", client, Some(here))),
        }
    }

    fn line(&self, protocol: &str, client: SocketAddr, here: Option<SocketAddr>) -> String {
        let server = here.map(|a| format!(" server={}", plain(a))).unwrap_or_default();
        format!(
            "pod={} node={} protocol={protocol} client={}{server}\n",
            self.pod,
            self.node,
            plain(client)
        )
    }

    /// Answers each datagram with the line and what came.
    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        loop {
            // Errors here are ICMP answers to earlier datagrams of ours: nothing to do about them.
            let Ok((length, client)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let mut answer = self.line("udp", client, None).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// An IPv4 client of a socket for both families looks like itself, not like `::ffff:…`.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
