//! Servers that tell whom they see, and clients that ask them.
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;
use tests_lab::Pod;

/// Nothing here waits longer than this.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// Servers at these addresses that tell whom they see, on TCP again and again and over UDP.
pub fn serve_in(pod: &Pod, ends: &[SocketAddr]) -> Result<()> {
    for own in ends.iter().copied() {
        let (tcp, udp) = pod.within(move || (TcpListener::bind(own), UdpSocket::bind(own)))?;
        let (tcp, udp) = (tcp?, udp?);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        thread::spawn(move || {
            let mut buf = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buf) {
                let _ = udp.send_to(plain(from).as_bytes(), from);
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else {
        return;
    };
    let mut buf = [0; 64];
    while let Ok(n) = stream.read(&mut buf) {
        if n == 0 || stream.write_all(plain(peer).as_bytes()).is_err() {
            return;
        }
    }
}

/// The address without the IPv6 form of IPv4.
fn plain(addr: SocketAddr) -> String {
    addr.ip().to_canonical().to_string()
}

/// Connects, from a pod's namespace.
pub fn connect(from: &Pod, to: SocketAddr) -> Result<std::io::Result<TcpStream>> {
    from.within(move || TcpStream::connect_timeout(&to, DEADLINE))
}

/// Whom the server sees at the other end of this connection.
pub fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"who?")?;
    let mut buf = [0; 64];
    let n = stream.read(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

/// Whom the server sees, over TCP.
pub fn seen(from: &Pod, to: SocketAddr) -> Result<String> {
    let mut stream = connect(from, to)?.with_context(|| format!("connect to {to}"))?;
    ask(&mut stream)
}

/// Whom the server sees, over UDP; the answer has to come from where the question went.
pub fn seen_by_datagram(from: &Pod, to: SocketAddr) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.within(move || UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send_to(b"who?", to)?;
    let mut buf = [0; 64];
    let (n, by) = socket
        .recv_from(&mut buf)
        .with_context(|| format!("answer of {to}"))?;
    ensure!(by == to, "the answer comes from {by}");
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}
