//! SCTP sockets of pods through a service. The kernel's socket hooks never see them (`sctp_inet_connect` asks no cgroup program), so
//! this is the way of packets on every node (root; a kernel with SCTP, which those of the kernel matrix have).
use anyhow::{Context, Result, ensure};
use datapath_abi::{Proto, Reason};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, accept, bind, connect, ipproto, listen, recv, send,
    socket,
};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tests_lab::{Lab, Pod, isolated_without_hooks};

const DEADLINE: Duration = Duration::from_secs(10);
const SERVER: (&str, &str) = ("10.244.0.2", "fd00:10:244::2");
const CLIENT: (&str, &str) = ("10.244.0.9", "fd00:10:244::9");

/// A one-to-one socket of the family of `own`, bound there: with one address it names none inside its packets, where nobody
/// translates them.
fn bound(own: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if own.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket(family, SocketType::STREAM, Some(ipproto::SCTP))?;
    for which in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, which, Some(DEADLINE))?;
    }
    bind(&socket, &own)?;
    Ok(socket)
}

/// Says why this kernel cannot run the test, where somebody listens; fails otherwise.
fn is_there(test: &str) -> bool {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP));
    if !matches!(socket, Err(Errno::PROTONOSUPPORT)) {
        return true;
    }
    tests_packets::skip(
        test,
        "this machine's kernel has no SCTP: `cargo xtask test-kernel --filter sctp` has kernels with it",
    );
    false
}

/// A server that answers one association with what it hears, until its end.
fn serve(pod: &Pod, own: SocketAddr) -> Result<()> {
    let listener = pod.within(move || bound(own))??;
    listen(&listener, 8)?;
    std::thread::spawn(move || -> Result<()> {
        loop {
            let peer = accept(&listener)?;
            let mut buf = [0; 64];
            while let Ok((n, _)) = recv(&peer, &mut buf[..], RecvFlags::empty()) {
                if n == 0 || send(&peer, &buf[..n], SendFlags::NOSIGNAL).is_err() {
                    break;
                }
            }
        }
    });
    Ok(())
}

fn connected(client: &Pod, own: SocketAddr, to: SocketAddr) -> Result<Result<OwnedFd, Errno>> {
    client.within(move || {
        let socket = bound(own)?;
        connect(&socket, &to)?;
        Ok(socket)
    })
}

fn ends(pair: (&str, &str), v4: bool, port: u16) -> SocketAddr {
    let ip = if v4 { pair.0 } else { pair.1 };
    SocketAddr::new(ip.parse().expect("an address of the test"), port)
}

/// An association to each front, several messages each.
fn talks(client: &Pod, front: SocketAddr) -> Result<()> {
    let own = ends(CLIENT, front.is_ipv4(), 0);
    let socket = connected(client, own, front)?.with_context(|| format!("associate with {front}"))?;
    for message in ["one", "two", "three"] {
        send(&socket, message.as_bytes(), SendFlags::NOSIGNAL)?;
        let mut buf = [0; 64];
        let (n, _) = recv(&socket, &mut buf[..], RecvFlags::empty()).context("the answer")?;
        ensure!(&buf[..n] == message.as_bytes(), "the echo of {message} differs");
    }
    Ok(())
}

#[test]
fn sctp_sockets_reach_a_service_at_its_own_port_and_at_another() {
    let test = "sctp_sockets_reach_a_service_at_its_own_port_and_at_another";
    if !is_there(test) {
        return;
    }
    isolated_without_hooks(test, |lab: &mut Lab| {
        lab.forward()?;
        let server = lab.pod("server", SERVER.0, SERVER.1)?;
        let client = lab.pod("client", CLIENT.0, CLIENT.1)?;
        for v4 in [true, false] {
            let end = ends(SERVER, v4, 8080);
            serve(&server, end)?;
            for (name, port) in [("same", 8080), ("other", 80)] {
                let front = ends(("10.96.0.10", "fd00:10:96::10"), v4, port);
                lab.serve(&format!("{name}{}", u8::from(v4)), front, Proto::SCTP, &[end])?;
                talks(&client, front)?;
            }
        }
        let dump = lab.datapath.dump()?;
        ensure!(dump.counter(Reason::PacketForwarded) > 8 && dump.counter(Reason::PacketAnswered) > 8);
        Ok(())
    });
}

#[test]
fn sctp_sockets_are_refused_where_there_is_no_endpoint() {
    let test = "sctp_sockets_are_refused_where_there_is_no_endpoint";
    if !is_there(test) {
        return;
    }
    isolated_without_hooks(test, |lab: &mut Lab| {
        lab.forward()?;
        let client = lab.pod("client", CLIENT.0, CLIENT.1)?;
        for v4 in [true, false] {
            let front = ends(("10.96.0.10", "fd00:10:96::10"), v4, 80);
            lab.serve(if v4 { "four" } else { "six" }, front, Proto::SCTP, &[])?;
            let refused = connected(&client, ends(CLIENT, v4, 0), front)?;
            ensure!(refused.is_err(), "{front} without endpoints accepted");
        }
        let dump = lab.datapath.dump()?;
        ensure!(dump.counter(Reason::PacketNoEndpoint) >= 2);
        Ok(())
    });
}
