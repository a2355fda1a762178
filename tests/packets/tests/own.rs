//! The node's own clients that no socket hook serves, as the sockets of its kernel (NFS mounts) are: here nobody's cgroup has a hook
//! (root).
use agent_datapath::XdpChoice;
use anyhow::{Context, Result, bail, ensure};
use datapath_abi::{Proto, Reason};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tests_lab::{Lab, Lan, NODE_IPS, OTHER_IPS, Pod, REMOTE_IPS, isolated_without_hooks, run};
use tests_packets::talk::{DEADLINE, ask, serve_in};

const LOCAL: (&str, &str) = ("10.244.0.2", "fd00:10:244::2");
const VIPS: (&str, &str) = ("10.96.0.10", "fd00:10:96::10");

fn at(pair: (&str, &str), v4: bool, port: u16) -> SocketAddr {
    let text = if v4 { pair.0 } else { pair.1 };
    let ip: IpAddr = text.parse().expect("an address of the test");
    SocketAddr::new(ip, port)
}

/// A node with a pod, a second node with another, and as every node has one a route to everywhere.
fn place(lab: &mut Lab) -> Result<(Lan, Pod)> {
    lab.forward()?;
    let lan = lab.lan(XdpChoice::Never)?;
    let local = lab.pod("local", LOCAL.0, LOCAL.1)?;
    run(&["ip", "route", "add", "default", "via", OTHER_IPS.0])?;
    run(&["ip", "-6", "route", "add", "default", "via", OTHER_IPS.1])?;
    // As the agent has it on its nodes: answers of services come in by devices that do not lead to them.
    for file in ["all", "default", &local.device] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{file}/rp_filter"), "0")?;
    }
    // As the pod network does: before Linux 5.12 a route is told with a known neighbour only.
    let mac = "02:00:00:00:00:02";
    run(&["ip", "-n", "local", "link", "set", "eth0", "address", mac])?;
    for ip in [LOCAL.0, LOCAL.1] {
        let entry = ["ip", "neigh", "replace", ip, "lladdr", mac, "dev", &local.device];
        run(&[&entry[..], &["nud", "permanent"]].concat())?;
    }
    // Nothing comes from outside: the programs look at what they have to by themselves.
    let node = tests_lab::lan_node();
    let settings = node.settings(&lab.config.service_ranges, false, agent_datapath::netns_cookie());
    lab.datapath.set_settings(&settings)?;
    for v4 in [true, false] {
        serve_in(&local, &[at(LOCAL, v4, 8080)])?;
        serve_in(&lan.other, &[at(REMOTE_IPS, v4, 8080)])?;
    }
    Ok((lan, local))
}

/// One service per family and protocol.
fn program(lab: &mut Lab, v4: bool, ends: &[SocketAddr]) -> Result<()> {
    for proto in [Proto::TCP, Proto::UDP] {
        let name = format!("web-{}-{}", u8::from(v4), proto.0);
        lab.serve(&name, at(VIPS, v4, 80), proto, ends)?;
    }
    Ok(())
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, DEADLINE)
}

fn datagram(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Over both protocols an endpoint sees the node's client as `shown`.
fn reached(v4: bool, shown: IpAddr) -> Result<()> {
    let to = at(VIPS, v4, 80);
    let mut stream = connect(to).with_context(|| format!("connect to {to}"))?;
    for _ in 0..3 {
        let seen = ask(&mut stream)?;
        ensure!(seen == shown.to_string(), "{to} over TCP shows {seen}");
    }
    let socket = datagram(to)?;
    for _ in 0..3 {
        socket.send(b"who?")?;
        let mut buf = [0; 64];
        let n = socket
            .recv(&mut buf)
            .with_context(|| format!("datagram from {to}"))?;
        let seen = String::from_utf8_lossy(&buf[..n]);
        ensure!(seen == shown.to_string(), "{to} over UDP shows {seen}");
    }
    Ok(())
}

#[test]
fn the_nodes_own_packets_reach_endpoints_of_this_node_and_of_another() {
    let test = "the_nodes_own_packets_reach_endpoints_of_this_node_and_of_another";
    isolated_without_hooks(test, |lab| {
        let (_lan, _local) = place(lab)?;
        for (end, what) in [(LOCAL, "here"), (REMOTE_IPS, "elsewhere")] {
            for v4 in [true, false] {
                program(lab, v4, &[at(end, v4, 8080)])?;
                reached(v4, at(NODE_IPS, v4, 0).ip()).context(what)?;
            }
        }
        let dump = lab.datapath.dump()?;
        ensure!(
            dump.counter(Reason::SocketConnected) == 0,
            "a socket hook was at work"
        );
        ensure!(dump.counter(Reason::PacketForwarded) > 24 && dump.counter(Reason::PacketAnswered) > 24);
        Ok(())
    });
}

#[test]
fn the_nodes_own_packets_reach_an_endpoint_in_the_nodes_own_network() {
    let test = "the_nodes_own_packets_reach_an_endpoint_in_the_nodes_own_network";
    isolated_without_hooks(test, |lab| {
        let (_lan, _local) = place(lab)?;
        for v4 in [true, false] {
            let end = at(NODE_IPS, v4, 6443);
            let tcp = TcpListener::bind(end)?;
            let udp = UdpSocket::bind(end)?;
            std::thread::spawn(move || {
                for mut stream in tcp.incoming().flatten() {
                    let mut buf = [0; 64];
                    while let (Ok(n @ 1..), Ok(peer)) = (stream.read(&mut buf), stream.peer_addr()) {
                        let _ = (n, stream.write_all(peer.ip().to_string().as_bytes()));
                    }
                }
            });
            std::thread::spawn(move || {
                let mut buf = [0; 64];
                while let Ok((_, from)) = udp.recv_from(&mut buf) {
                    let _ = udp.send_to(from.ip().to_string().as_bytes(), from);
                }
            });
            program(lab, v4, &[end])?;
            // Client and endpoint each see the service at the other end.
            reached(v4, at(VIPS, v4, 0).ip())?;
        }
        Ok(())
    });
}

#[test]
fn the_nodes_own_packets_are_refused_at_once_where_there_is_no_endpoint() {
    let test = "the_nodes_own_packets_are_refused_at_once_where_there_is_no_endpoint";
    isolated_without_hooks(test, |lab| {
        let (_lan, _local) = place(lab)?;
        for v4 in [true, false] {
            program(lab, v4, &[])?;
            // The port of the service, and one that it does not have.
            for port in [80, 81] {
                let to = at(VIPS, v4, port);
                let Err(e) = connect(to) else {
                    bail!("{to} accepted");
                };
                ensure!(e.kind() == ErrorKind::ConnectionRefused, "{to} over TCP: {e}");
                let socket = datagram(to)?;
                socket.send(b"who?")?;
                let e = socket.recv(&mut [0; 8]).expect_err("nobody answers");
                ensure!(e.kind() == ErrorKind::ConnectionRefused, "{to} over UDP: {e}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_nodes_own_connections_go_on_while_agents_change() {
    isolated_without_hooks("the_nodes_own_connections_go_on_while_agents_change", |lab| {
        let (_lan, _local) = place(lab)?;
        for end in [LOCAL, REMOTE_IPS] {
            program(lab, true, &[at(end, true, 8080)])?;
            let mut stream = connect(at(VIPS, true, 80))?;
            ask(&mut stream)?;
            lab.restart()?;
            lab.planner.set_node(tests_lab::lan_node());
            let settings = tests_lab::lan_node().settings(&lab.config.service_ranges, false, 1);
            lab.datapath.set_settings(&settings)?;
            ask(&mut stream).context("after the restart")?;
            program(lab, true, &[])?;
            ask(&mut stream).context("after its endpoint left the service")?;
            let e = TcpStream::connect_timeout(&at(VIPS, true, 80), Duration::from_secs(3));
            ensure!(e.is_err(), "a new connection finds an endpoint");
        }
        Ok(())
    });
}
