//! What programs see that talk to services: TCP and UDP, both families, connected and not.
use anyhow::{Context, Result, ensure};
use datapath_abi::{Proto, Reason};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;
use tests_lab::{Lab, isolated};

const V4: (&str, &str) = ("10.96.0.10:80", "10.244.0.2:8080");
const V6: (&str, &str) = ("[fd00:10:96::10]:80", "[fd00:10:244::2]:8080");
/// Nothing here waits longer than this.
const DEADLINE: Duration = Duration::from_secs(3);

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address of the test")
}

/// A TCP server that answers each connection with its own address, until the test ends.
fn tcp_server(lab: &Lab, addr: &str) -> Result<SocketAddr> {
    let addr = at(addr);
    lab.address(&addr.ip().to_string())?;
    let listener = TcpListener::bind(addr)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, addr));
        }
    });
    Ok(addr)
}

fn echo(mut stream: TcpStream, own: SocketAddr) {
    let mut buf = [0; 64];
    while let Ok(n) = stream.read(&mut buf) {
        if n == 0 || stream.write_all(own.to_string().as_bytes()).is_err() {
            return;
        }
    }
}

/// A UDP server that answers each datagram with its own address.
fn udp_server(lab: &Lab, addr: &str) -> Result<SocketAddr> {
    let addr = at(addr);
    lab.address(&addr.ip().to_string())?;
    udp_echo(addr)?;
    Ok(addr)
}

/// The same at an address that is there.
fn udp_echo(addr: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(addr)?;
    thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(addr.to_string().as_bytes(), from);
        }
    });
    Ok(())
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, DEADLINE).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"who?")?;
    let mut buf = [0; 64];
    let n = stream.read(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

fn udp_client(v4: bool) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

fn tcp_reaches(lab: &mut Lab, (vip, endpoint): (&str, &str)) -> Result<()> {
    let server = tcp_server(lab, endpoint)?;
    lab.serve("web", at(vip), Proto::TCP, &[server])?;
    let mut stream = connect(at(vip))?;
    ensure!(ask(&mut stream)? == endpoint, "another endpoint answered");
    ensure!(
        stream.peer_addr()? == at(vip),
        "getpeername shows {}",
        stream.peer_addr()?
    );
    Ok(())
}

#[test]
fn tcp_over_ipv4_reaches_the_endpoint_and_shows_the_service() {
    isolated(
        "tcp_over_ipv4_reaches_the_endpoint_and_shows_the_service",
        |lab| {
            tcp_reaches(lab, V4)?;
            let counted = lab.datapath.dump()?.counter(Reason::SocketConnected);
            ensure!(counted == 1, "{counted} connections counted");
            Ok(())
        },
    );
}

#[test]
fn tcp_over_ipv6_reaches_the_endpoint_and_shows_the_service() {
    isolated(
        "tcp_over_ipv6_reaches_the_endpoint_and_shows_the_service",
        |lab| tcp_reaches(lab, V6),
    );
}

#[test]
fn an_ipv6_socket_reaches_an_ipv4_service_by_its_mapped_address() {
    isolated(
        "an_ipv6_socket_reaches_an_ipv4_service_by_its_mapped_address",
        |lab| {
            let server = tcp_server(lab, V4.1)?;
            lab.serve("web", at(V4.0), Proto::TCP, &[server])?;
            let mapped = at("[::ffff:10.96.0.10]:80");
            let mut stream = connect(mapped)?;
            ensure!(ask(&mut stream)? == V4.1);
            ensure!(
                stream.peer_addr()? == mapped,
                "getpeername shows {}",
                stream.peer_addr()?
            );
            Ok(())
        },
    );
}

fn connected_udp(lab: &mut Lab, (vip, endpoint): (&str, &str)) -> Result<()> {
    let server = udp_server(lab, endpoint)?;
    lab.serve("dns", at(vip), Proto::UDP, &[server])?;
    let client = udp_client(at(vip).is_ipv4())?;
    client.connect(at(vip))?;
    ensure!(client.peer_addr()? == at(vip));
    let mut buf = [0; 64];
    client.send(b"who?")?;
    let (n, from) = client.recv_from(&mut buf)?;
    ensure!(String::from_utf8_lossy(&buf[..n]) == endpoint);
    ensure!(from == at(vip), "the answer comes from {from}");
    Ok(())
}

#[test]
fn connected_udp_over_ipv4_is_answered_by_the_service() {
    isolated("connected_udp_over_ipv4_is_answered_by_the_service", |lab| {
        connected_udp(lab, V4)
    });
}

#[test]
fn connected_udp_over_ipv6_is_answered_by_the_service() {
    isolated("connected_udp_over_ipv6_is_answered_by_the_service", |lab| {
        connected_udp(lab, V6)
    });
}

fn unconnected_udp(
    lab: &mut Lab,
    (vip, endpoint): (&str, &str),
    (vip2, endpoint2): (&str, &str),
) -> Result<()> {
    let (one, two) = (udp_server(lab, endpoint)?, udp_server(lab, endpoint2)?);
    lab.serve("one", at(vip), Proto::UDP, &[one])?;
    lab.serve("two", at(vip2), Proto::UDP, &[two])?;
    let client = udp_client(at(vip).is_ipv4())?;
    // To both services before the first answer is read: each answer has to find its own service.
    client.send_to(b"who?", at(vip))?;
    client.send_to(b"who?", at(vip2))?;
    let mut buf = [0; 64];
    for _ in 0..2 {
        let (n, from) = client.recv_from(&mut buf)?;
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        let expected = if text == endpoint { vip } else { vip2 };
        ensure!(from == at(expected), "{text} answers as {from}");
    }
    Ok(())
}

#[test]
fn unconnected_udp_over_ipv4_tells_two_services_apart() {
    isolated("unconnected_udp_over_ipv4_tells_two_services_apart", |lab| {
        unconnected_udp(lab, V4, ("10.96.0.11:80", "10.244.0.3:8080"))
    });
}

#[test]
fn unconnected_udp_over_ipv6_tells_two_services_apart() {
    isolated("unconnected_udp_over_ipv6_tells_two_services_apart", |lab| {
        unconnected_udp(lab, V6, ("[fd00:10:96::11]:80", "[fd00:10:244::3]:8080"))
    });
}

#[test]
fn datagrams_of_one_socket_keep_to_one_endpoint() {
    isolated("datagrams_of_one_socket_keep_to_one_endpoint", |lab| {
        let servers = [
            udp_server(lab, "10.244.0.2:8080")?,
            udp_server(lab, "10.244.0.3:8080")?,
            udp_server(lab, "10.244.0.4:8080")?,
        ];
        lab.serve("dns", at(V4.0), Proto::UDP, &servers)?;
        let client = udp_client(true)?;
        let mut seen = std::collections::HashSet::new();
        let mut buf = [0; 64];
        for _ in 0..20 {
            client.send_to(b"who?", at(V4.0))?;
            let (n, _) = client.recv_from(&mut buf)?;
            seen.insert(String::from_utf8_lossy(&buf[..n]).into_owned());
        }
        ensure!(seen.len() == 1, "{seen:?} answered one socket");
        Ok(())
    });
}

#[test]
fn connections_spread_over_all_endpoints() {
    isolated("connections_spread_over_all_endpoints", |lab| {
        let servers = [
            tcp_server(lab, "10.244.0.2:8080")?,
            tcp_server(lab, "10.244.0.3:8080")?,
        ];
        lab.serve("web", at(V4.0), Proto::TCP, &servers)?;
        let mut first = 0;
        for _ in 0..100 {
            let who = ask(&mut connect(at(V4.0))?)?;
            first += usize::from(who == "10.244.0.2:8080");
        }
        // 100 fair coins fall outside of 20..80 once in 10^9 runs.
        ensure!(
            (20..80).contains(&first),
            "{first} of 100 went to the first of two"
        );
        Ok(())
    });
}

fn refused(addr: SocketAddr) -> Result<()> {
    let start = std::time::Instant::now();
    match TcpStream::connect_timeout(&addr, DEADLINE) {
        Ok(_) => anyhow::bail!("{addr} accepted a connection"),
        Err(e) => ensure!(e.kind() == ErrorKind::ConnectionRefused, "{addr}: {e}"),
    }
    ensure!(
        start.elapsed() < Duration::from_millis(500),
        "refused only after {:?}",
        start.elapsed()
    );
    Ok(())
}

/// What a refused UDP socket is told: before Linux 5.18 a hook can only say EPERM.
fn udp_refusal() -> Result<ErrorKind> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next(), numbers.next());
    Ok(if version < (Some(5), Some(18)) {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::ConnectionRefused
    })
}

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    isolated("a_service_without_endpoints_is_refused_at_once", |lab| {
        lab.serve("web", at(V4.0), Proto::TCP, &[])?;
        lab.serve("web6", at(V6.0), Proto::TCP, &[])?;
        lab.serve("dns", at("10.96.0.53:53"), Proto::UDP, &[])?;
        refused(at(V4.0))?;
        refused(at(V6.0))?;
        let e = udp_client(true)?
            .connect(at("10.96.0.53:53"))
            .expect_err("nobody serves it");
        ensure!(e.kind() == udp_refusal()?, "{e}");
        let e = udp_client(true)?
            .send_to(b"x", at("10.96.0.53:53"))
            .expect_err("nobody serves it");
        ensure!(e.kind() == udp_refusal()?, "{e}");
        ensure!(lab.datapath.dump()?.counter(Reason::SocketNoEndpoint) == 4);
        Ok(())
    });
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused() {
    isolated("a_port_that_the_service_does_not_have_is_refused", |lab| {
        let server = tcp_server(lab, V4.1)?;
        lab.serve("web", at(V4.0), Proto::TCP, &[server])?;
        refused(at("10.96.0.10:81"))?;
        ensure!(lab.datapath.dump()?.counter(Reason::SocketNoPort) == 1);
        Ok(())
    });
}

#[test]
fn a_removed_endpoint_gets_no_new_connection_and_keeps_the_old_one() {
    isolated(
        "a_removed_endpoint_gets_no_new_connection_and_keeps_the_old_one",
        |lab| {
            let (old, new) = (
                tcp_server(lab, "10.244.0.2:8080")?,
                tcp_server(lab, "10.244.0.3:8080")?,
            );
            lab.serve("web", at(V4.0), Proto::TCP, &[old])?;
            let mut established = connect(at(V4.0))?;
            ensure!(ask(&mut established)? == old.to_string());
            lab.endpoints("web", true, Proto::TCP, &[new])?;
            for _ in 0..20 {
                ensure!(ask(&mut connect(at(V4.0))?)? == new.to_string());
            }
            ensure!(
                ask(&mut established)? == old.to_string(),
                "the established connection moved"
            );
            ensure!(lab.datapath.existing()?.inconsistencies().is_empty());
            lab.endpoints("web", true, Proto::TCP, &[])?;
            refused(at(V4.0))
        },
    );
}

#[test]
fn a_deleted_service_leaves_empty_maps() {
    isolated("a_deleted_service_leaves_empty_maps", |lab| {
        lab.serve("web", at(V4.0), Proto::TCP, &[at(V4.1)])?;
        lab.planner
            .service_gone(&agent_services::ObjectName::new("default", "web"));
        lab.program()?;
        ensure!(lab.datapath.existing()? == agent_services::Existing::default());
        Ok(())
    });
}

#[test]
fn the_next_agent_adopts_the_pins_and_connections_go_on() {
    isolated("the_next_agent_adopts_the_pins_and_connections_go_on", |lab| {
        let server = tcp_server(lab, V4.1)?;
        lab.serve("web", at(V4.0), Proto::TCP, &[server])?;
        let mut established = connect(at(V4.0))?;
        ask(&mut established)?;
        let before = lab.datapath.existing()?;
        lab.restart()?;
        // Before the new agent knows anything, the data path works as it did.
        ensure!(lab.datapath.existing()? == before);
        ensure!(ask(&mut connect(at(V4.0))?)? == V4.1);
        lab.serve("web", at(V4.0), Proto::TCP, &[server])?;
        ensure!(
            lab.datapath.existing()? == before,
            "adoption rewrote what was right"
        );
        ask(&mut established)?;
        ensure!(
            established.peer_addr()? == at(V4.0),
            "the new programs forgot the old socket"
        );
        ensure!(lab.datapath.is_attached());
        ensure!(
            lab.datapath.dump()?.counter(Reason::SocketConnected) == 2,
            "a connection was counted twice"
        );
        Ok(())
    });
}

#[test]
fn addresses_of_no_service_are_left_alone() {
    isolated("addresses_of_no_service_are_left_alone", |lab| {
        let server = tcp_server(lab, "10.244.0.9:9000")?;
        let mut stream = connect(server)?;
        ensure!(ask(&mut stream)? == server.to_string());
        ensure!(stream.peer_addr()? == server);
        ensure!(lab.datapath.dump()?.counter(Reason::SocketNamed) == 0);
        Ok(())
    });
}

fn stale_socket_ends(lab: &mut Lab, (vip, endpoint): (&str, &str), other: &str) -> Result<()> {
    let (old, new) = (udp_server(lab, endpoint)?, udp_server(lab, other)?);
    let v4 = at(vip).is_ipv4();
    lab.serve("dns", at(vip), Proto::UDP, &[old])?;
    let (client, direct) = (udp_client(v4)?, udp_client(v4)?);
    client.connect(at(vip))?;
    direct.connect(old)?;
    client.send(b"who?")?;
    client.recv(&mut [0; 64])?;
    lab.endpoints("dns", v4, Proto::UDP, &[new])?;
    // The socket wakes up by itself, long before its deadline.
    let e = client.recv(&mut [0; 64]).expect_err("its endpoint is gone");
    ensure!(e.kind() == ErrorKind::ConnectionAborted, "{e}");
    // A socket that was connected to the pod, not to the service, goes on.
    direct.send(b"who?")?;
    direct.recv(&mut [0; 64]).context("the direct socket")?;
    // And whoever connects again reaches the new endpoint.
    client.connect(at(vip))?;
    client.send(b"who?")?;
    let mut buf = [0; 64];
    let n = client.recv(&mut buf)?;
    ensure!(String::from_utf8_lossy(&buf[..n]) == other);
    Ok(())
}

#[test]
fn a_connected_udp_socket_ends_with_its_endpoint() {
    isolated("a_connected_udp_socket_ends_with_its_endpoint", |lab| {
        stale_socket_ends(lab, V4, "10.244.0.3:8080")?;
        stale_socket_ends(lab, V6, "[fd00:10:244::3]:8080")
    });
}

#[test]
fn an_unconnected_udp_socket_reaches_the_new_endpoint_with_its_next_datagram() {
    let test = "an_unconnected_udp_socket_reaches_the_new_endpoint_with_its_next_datagram";
    isolated(test, |lab| {
        let (old, new) = (
            udp_server(lab, "10.244.0.2:8080")?,
            udp_server(lab, "10.244.0.3:8080")?,
        );
        lab.serve("dns", at(V4.0), Proto::UDP, &[old])?;
        let client = udp_client(true)?;
        let mut buf = [0; 64];
        for expected in [old, new] {
            client.send_to(b"who?", at(V4.0))?;
            let (n, from) = client.recv_from(&mut buf)?;
            ensure!(String::from_utf8_lossy(&buf[..n]) == expected.to_string() && from == at(V4.0));
            lab.endpoints("dns", true, Proto::UDP, &[new])?;
        }
        Ok(())
    });
}

/// The part of the next test that runs in a process of its own, in a pod: talks to `SKEP_TEST_ASK` over a connected socket until
/// that ends, tells so, connects again, and tells who answers then.
fn client_in_a_pod() -> Result<()> {
    let to = at(&std::env::var("SKEP_TEST_ASK")?);
    let client = udp_client(to.is_ipv4())?;
    client.connect(to)?;
    let mut buf = [0; 64];
    client.send(b"who?")?;
    let n = client.recv(&mut buf)?;
    println!("heard {}", String::from_utf8_lossy(&buf[..n]));
    let e = client.recv(&mut buf).expect_err("its endpoint is gone");
    println!("ended {:?}", e.kind());
    Ok(())
}

/// Starts the client in a pod's namespace. It is in the node's cgroup, as a pod's process is.
fn start_in(pod: &str, to: &str) -> Result<std::process::Child> {
    Ok(std::process::Command::new("nsenter")
        .arg(format!("--net=/run/netns/{pod}"))
        .arg(std::env::current_exe()?)
        .args(["--exact", WITHIN_A_SECOND, "--nocapture"])
        .env("SKEP_TEST_ASK", to)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?)
}

const WITHIN_A_SECOND: &str =
    "connected_sockets_of_every_namespace_end_within_a_second_however_their_endpoint_went";

/// Lines of a client's output, up to the one that begins so.
fn until(lines: &mut impl Iterator<Item = std::io::Result<String>>, start: &str) -> Result<String> {
    for line in lines {
        let line = line?;
        // The first line stands behind the name of the test.
        if let Some(at) = line.find(start) {
            return Ok(line[at + start.len()..].to_owned());
        }
    }
    anyhow::bail!("the client in the pod never said `{start}`")
}

#[test]
fn connected_sockets_of_every_namespace_end_within_a_second_however_their_endpoint_went() {
    if std::env::var_os("SKEP_TEST_ASK").is_some() {
        client_in_a_pod().expect("the client runs");
        return;
    }
    isolated(WITHIN_A_SECOND, |lab| {
        use std::io::{BufRead as _, BufReader};
        lab.forward()?;
        lab.pod("server", "10.244.0.2", "fd00:10:244::2")?;
        lab.pod("client", "10.244.0.9", "fd00:10:244::9")?;
        let server = lab.pod("other", "10.244.0.3", "fd00:10:244::3")?;
        let socket = server.within(|| UdpSocket::bind("10.244.0.3:8080"))??;
        thread::spawn(move || {
            let mut buf = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(b"other", from);
            }
        });
        let endpoint = at("10.244.0.3:8080");
        let name = agent_services::ObjectName::new("default", "dns");
        for how in ["scaled to zero", "replaced", "deleted", "without its node port"] {
            lab.planner.set_node(agent_services::Node {
                node_port_addresses: vec!["10.244.0.77".parse()?],
                ..lab.planner.node().clone()
            });
            let mut view = tests_lab::service("dns", at(V4.0), Proto::UDP);
            view.ports[0].node_port = 30053;
            lab.planner.service(view.clone());
            lab.endpoints("dns", true, Proto::UDP, &[endpoint])?;
            let to = if how == "without its node port" {
                "10.244.0.77:30053"
            } else {
                V4.0
            };
            // One in a pod, one of the node itself.
            let mut child = start_in("client", to)?;
            let own = udp_client(true)?;
            own.connect(at(to))?;
            own.send(b"who?")?;
            own.recv(&mut [0; 64])?;
            let mut lines = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
            ensure!(until(&mut lines, "heard ")? == "other");
            let start = std::time::Instant::now();
            match how {
                "scaled to zero" => lab.endpoints("dns", true, Proto::UDP, &[])?,
                "replaced" => lab.endpoints("dns", true, Proto::UDP, &[at("10.244.0.2:8080")])?,
                "deleted" => {
                    lab.planner.service_gone(&name);
                    lab.program()?;
                }
                _ => {
                    view.ports[0].node_port = 0;
                    lab.planner.service(view);
                    lab.program()?;
                }
            }
            let e = own.recv(&mut [0; 64]).expect_err("its endpoint is gone");
            ensure!(
                e.kind() == ErrorKind::ConnectionAborted,
                "{how}: the node's own socket: {e}"
            );
            let ended = until(&mut lines, "ended ").with_context(|| how.to_owned())?;
            ensure!(ended == "ConnectionAborted", "{how}: the pod's socket: {ended}");
            ensure!(
                start.elapsed() < Duration::from_secs(1),
                "{how}: only after {:?}",
                start.elapsed()
            );
            child.wait()?;
        }
        Ok(())
    });
}

#[test]
fn sockets_that_end_leave_no_trace_behind() {
    isolated("sockets_that_end_leave_no_trace_behind", |lab| {
        let server = udp_server(lab, V4.1)?;
        lab.serve("dns", at(V4.0), Proto::UDP, &[server])?;
        for _ in 0..50 {
            let client = udp_client(true)?;
            client.connect(at(V4.0))?;
        }
        let kept = udp_client(true)?;
        kept.connect(at(V4.0))?;
        let (_, replies) = lab.datapath.remembered()?;
        ensure!(replies == 1, "{replies} sockets are remembered, one lives");
        Ok(())
    });
}

/// A pod `server` whose port 8080 is the node's 8081 at every address.
fn host_port(lab: &mut Lab, pod: (&str, &str)) -> Result<()> {
    let node = agent_services::Node {
        name: tests_lab::NODE.into(),
        addresses: vec!["192.0.2.1".parse()?, "2001:db8::1".parse()?],
        ..agent_services::Node::default()
    };
    lab.address("192.0.2.1")?;
    lab.address("2001:db8::1")?;
    let settings = node.settings(&lab.config.service_ranges, true, agent_datapath::netns_cookie());
    lab.datapath.set_settings(&settings)?;
    lab.planner.set_node(node);
    let port = |proto| agent_services::HostPort {
        addr: None,
        port: 8081,
        proto,
        pod_port: 8080,
    };
    lab.planner.host_ports(&[agent_services::HostPortsView {
        pod: agent_services::ObjectName::new("default", "server"),
        ips: vec![pod.0.parse()?, pod.1.parse()?],
        ports: vec![port(Proto::TCP), port(Proto::UDP)],
    }]);
    lab.program()
}

#[test]
fn the_node_reaches_a_host_port_at_its_addresses_and_at_loopback() {
    isolated(
        "the_node_reaches_a_host_port_at_its_addresses_and_at_loopback",
        |lab| {
            let ends = ["10.244.0.2:8080", "[fd00:10:244::2]:8080"];
            for end in ends {
                tcp_server(lab, end)?;
                udp_echo(at(end))?;
            }
            host_port(lab, ("10.244.0.2", "fd00:10:244::2"))?;
            let knows_itself = agent_datapath::netns_cookie() != 0;
            let fronts = [
                ("192.0.2.1:8081", true),
                ("[2001:db8::1]:8081", true),
                ("127.0.0.1:8081", knows_itself),
                ("[::1]:8081", knows_itself),
            ];
            for (front, served) in fronts {
                let to = at(front);
                if !served {
                    ensure!(connect(to).is_err(), "{front} is served to nobody knows whom");
                    continue;
                }
                let end = if to.is_ipv4() { ends[0] } else { ends[1] };
                ensure!(ask(&mut connect(to)?)? == end, "{front} leads elsewhere");
                let client = udp_client(to.is_ipv4())?;
                client.send_to(b"who?", to)?;
                let mut buf = [0; 64];
                let (n, from) = client.recv_from(&mut buf).with_context(|| front.to_owned())?;
                ensure!(String::from_utf8_lossy(&buf[..n]) == end && from == to);
            }
            Ok(())
        },
    );
}

#[test]
fn the_loopback_address_of_a_pod_is_its_own_whatever_host_ports_there_are() {
    isolated(
        "the_loopback_address_of_a_pod_is_its_own_whatever_host_ports_there_are",
        |lab| {
            lab.forward()?;
            let pod = lab.pod("own", "10.244.0.9", "fd00:10:244::9")?;
            tcp_server(lab, "10.244.0.2:8080")?;
            host_port(lab, ("10.244.0.2", "fd00:10:244::2"))?;
            for own in ["127.0.0.1:8081", "[::1]:8081"] {
                let own = at(own);
                let refused = pod.within(move || TcpStream::connect_timeout(&own, DEADLINE))?;
                let e = refused.expect_err("nobody listens there");
                ensure!(e.kind() == ErrorKind::ConnectionRefused, "{own}: {e}");
                let listener = pod.within(move || TcpListener::bind(own))??;
                pod.within(move || TcpStream::connect_timeout(&own, DEADLINE))??;
                listener.accept()?;
            }
            Ok(())
        },
    );
}

#[test]
fn what_went_while_no_agent_ran_is_ended_by_the_next_one() {
    isolated("what_went_while_no_agent_ran_is_ended_by_the_next_one", |lab| {
        let (old, new) = (
            udp_server(lab, "10.244.0.2:8080")?,
            udp_server(lab, "10.244.0.3:8080")?,
        );
        let fronts = ["10.96.0.10:80", "10.96.0.11:80", "10.96.0.12:80"].map(at);
        for (name, front) in ["changed", "deleted", "kept"].into_iter().zip(fronts) {
            lab.serve(name, front, Proto::UDP, &[old])?;
        }
        let mut clients = Vec::new();
        for front in fronts {
            let client = udp_client(true)?;
            client.connect(front)?;
            client.send(b"who?")?;
            client.recv(&mut [0; 64])?;
            clients.push(client);
        }
        // The next agent finds one service with another endpoint, one gone, one as it was.
        lab.restart()?;
        for (name, front, endpoint) in [("changed", fronts[0], new), ("kept", fronts[2], old)] {
            lab.planner.service(tests_lab::service(name, front, Proto::UDP));
            lab.planner
                .slice(tests_lab::slice(name, true, Proto::UDP, &[endpoint]));
        }
        let begun = std::time::Instant::now();
        lab.program()?;
        for client in &clients[..2] {
            let e = client.recv(&mut [0; 64]).expect_err("its endpoint is gone");
            ensure!(e.kind() == ErrorKind::ConnectionAborted, "{e}");
        }
        ensure!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        clients[2].send(b"who?")?;
        clients[2].recv(&mut [0; 64]).context("the service that stayed")?;
        Ok(())
    });
}

#[test]
fn a_client_does_not_keep_an_endpoint_that_is_gone() {
    isolated("a_client_does_not_keep_an_endpoint_that_is_gone", |lab| {
        let servers = [
            tcp_server(lab, "10.244.0.2:8080")?,
            tcp_server(lab, "10.244.0.3:8080")?,
        ];
        lab.planner.service(agent_services::ServiceView {
            affinity: 600,
            ..tests_lab::service("web", at(V4.0), Proto::TCP)
        });
        lab.endpoints("web", true, Proto::TCP, &servers)?;
        let first = ask(&mut connect(at(V4.0))?)?;
        ensure!(ask(&mut connect(at(V4.0))?)? == first);
        let left: Vec<_> = servers.into_iter().filter(|s| s.to_string() != first).collect();
        // Every write is followed by a look at what the maps still name.
        lab.endpoints("web", true, Proto::TCP, &left)?;
        let second = ask(&mut connect(at(V4.0))?)?;
        ensure!(second == left[0].to_string());
        // It came back, and is not what the client keeps any more.
        lab.endpoints("web", true, Proto::TCP, &servers)?;
        for _ in 0..8 {
            ensure!(ask(&mut connect(at(V4.0))?)? == second);
        }
        lab.endpoints("web", true, Proto::TCP, &[])?;
        refused(at(V4.0))
    });
}
