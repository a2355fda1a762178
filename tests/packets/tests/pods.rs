//! The packet path with real pods behind real devices, for clients that no socket hook serves (root).
use anyhow::{Context, Result, ensure};
use datapath_abi::{Proto, Reason};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;
use tests_lab::{Lab, Pod, isolated_without_hooks};
use tests_packets::at;

const V4: &str = "10.96.0.10:80";
const V6: &str = "[fd00:10:96::10]:80";
const SERVER: (&str, &str) = ("10.244.0.2", "fd00:10:244::2");
const CLIENT: (&str, &str) = ("10.244.0.9", "fd00:10:244::9");
const DEADLINE: Duration = Duration::from_secs(3);

/// A node with a server pod, echoing on port 8080 of both families and protocols, and a client pod.
fn pods(lab: &Lab) -> Result<(Pod, Pod)> {
    lab.forward()?;
    let (server, client) = (
        lab.pod("server", SERVER.0, SERVER.1)?,
        lab.pod("client", CLIENT.0, CLIENT.1)?,
    );
    let (tcp, udp) = server.within(|| (TcpListener::bind("[::]:8080"), UdpSocket::bind("[::]:8080")))?;
    let (tcp, udp) = (tcp?, udp?);
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((n, from)) = udp.recv_from(&mut buf) {
            let _ = udp.send_to(&buf[..n], from);
        }
    });
    Ok((server, client))
}

fn echo(mut stream: TcpStream) {
    let mut buf = vec![0; 1 << 16];
    while let Ok(n) = stream.read(&mut buf) {
        if n == 0 || stream.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}

fn connect(client: &Pod, to: &str) -> Result<std::io::Result<TcpStream>> {
    let to = at(to);
    client.within(move || TcpStream::connect_timeout(&to, DEADLINE))
}

fn endpoint(v4: bool) -> SocketAddr {
    at(if v4 {
        "10.244.0.2:8080"
    } else {
        "[fd00:10:244::2]:8080"
    })
}

/// Says something of this length and expects it back.
fn talk(stream: &mut TcpStream, length: usize) -> Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let said: Vec<u8> = (0..length).map(|i| i as u8).collect();
    let mut heard = vec![0; length];
    let mut writer = stream.try_clone()?;
    let text = said.clone();
    let write = thread::spawn(move || writer.write_all(&text));
    stream.read_exact(&mut heard)?;
    write
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(heard == said, "the echo differs");
    Ok(())
}

#[test]
fn tcp_of_a_pod_is_translated_there_and_back_in_both_families() {
    isolated_without_hooks(
        "tcp_of_a_pod_is_translated_there_and_back_in_both_families",
        |lab| {
            let (_server, client) = pods(lab)?;
            for vip in [V4, V6] {
                let v4 = at(vip).is_ipv4();
                lab.serve(
                    if v4 { "web" } else { "web6" },
                    at(vip),
                    Proto::TCP,
                    &[endpoint(v4)],
                )?;
                let mut stream = connect(&client, vip)?.with_context(|| format!("connect to {vip}"))?;
                // Enough for segments that the device cuts and whose checksums it fills in.
                talk(&mut stream, 300_000).with_context(|| format!("talk to {vip}"))?;
            }
            let dump = lab.datapath.dump()?;
            ensure!(dump.counter(Reason::PacketForwarded) > 4 && dump.counter(Reason::PacketAnswered) > 4);
            ensure!(
                dump.counter(Reason::SocketConnected) == 0,
                "a socket hook was at work"
            );
            Ok(())
        },
    );
}

#[test]
fn datagrams_of_a_pod_are_translated_there_and_back_in_both_families() {
    isolated_without_hooks(
        "datagrams_of_a_pod_are_translated_there_and_back_in_both_families",
        |lab| {
            let (_server, client) = pods(lab)?;
            for vip in [V4, V6] {
                let v4 = at(vip).is_ipv4();
                lab.serve(
                    if v4 { "dns" } else { "dns6" },
                    at(vip),
                    Proto::UDP,
                    &[endpoint(v4)],
                )?;
                let socket =
                    client.within(move || UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }))??;
                socket.set_read_timeout(Some(DEADLINE))?;
                socket.send_to(b"question", at(vip))?;
                let mut buf = [0; 64];
                let (n, from) = socket
                    .recv_from(&mut buf)
                    .with_context(|| format!("answer of {vip}"))?;
                ensure!(
                    &buf[..n] == b"question" && from == at(vip),
                    "the answer comes from {from}"
                );
            }
            Ok(())
        },
    );
}

#[test]
fn a_pod_is_refused_at_once_where_there_is_no_endpoint() {
    isolated_without_hooks("a_pod_is_refused_at_once_where_there_is_no_endpoint", |lab| {
        let (_server, client) = pods(lab)?;
        for vip in [V4, V6] {
            let v4 = at(vip).is_ipv4();
            lab.serve(if v4 { "web" } else { "web6" }, at(vip), Proto::TCP, &[])?;
            lab.serve(if v4 { "dns" } else { "dns6" }, at(vip), Proto::UDP, &[])?;
            let e = connect(&client, vip)?.expect_err("nobody serves it");
            ensure!(e.kind() == ErrorKind::ConnectionRefused, "{vip}: {e}");
            let socket =
                client.within(move || UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }))??;
            socket.set_read_timeout(Some(DEADLINE))?;
            socket.connect(at(vip))?;
            socket.send(b"question")?;
            let e = socket.recv(&mut [0; 8]).expect_err("nobody answers");
            ensure!(e.kind() == ErrorKind::ConnectionRefused, "{vip} over UDP: {e}");
        }
        Ok(())
    });
}

#[test]
fn connections_go_on_while_agents_change_and_after_their_endpoint_left_the_service() {
    let test = "connections_go_on_while_agents_change_and_after_their_endpoint_left_the_service";
    isolated_without_hooks(test, |lab| {
        let (_server, client) = pods(lab)?;
        lab.serve("web", at(V4), Proto::TCP, &[endpoint(true)])?;
        let mut stream = connect(&client, V4)??;
        talk(&mut stream, 1000)?;
        lab.restart()?;
        talk(&mut stream, 1000).context("after the restart")?;
        connect(&client, V4)?.context("a new connection before the new agent knows anything")?;
        lab.serve("web", at(V4), Proto::TCP, &[])?;
        talk(&mut stream, 1000).context("after the endpoint left")?;
        lab.planner
            .service_gone(&agent_services::ObjectName::new("default", "web"));
        lab.program()?;
        talk(&mut stream, 1000).context("after the service was deleted")
    });
}

#[test]
fn a_device_that_is_served_no_more_is_left_alone() {
    isolated_without_hooks("a_device_that_is_served_no_more_is_left_alone", |lab| {
        let (_server, client) = pods(lab)?;
        lab.serve("web", at(V4), Proto::TCP, &[])?;
        // Served twice is served once, and served no more twice is fine too.
        lab.datapath.attach_pod_device(&client.device)?;
        lab.datapath.detach_pod_device(&client.device)?;
        lab.datapath.detach_pod_device(&client.device)?;
        let before = lab.datapath.dump()?.counter(Reason::PacketNoEndpoint);
        let to = at(V4);
        // Nobody refuses any more; the node itself has no route to the address.
        let e = client
            .within(move || TcpStream::connect_timeout(&to, Duration::from_millis(300)))?
            .err();
        ensure!(
            e.is_some_and(|e| e.kind() != ErrorKind::ConnectionRefused),
            "refused all the same"
        );
        ensure!(lab.datapath.dump()?.counter(Reason::PacketNoEndpoint) == before);
        Ok(())
    });
}
