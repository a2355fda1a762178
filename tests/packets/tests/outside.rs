//! Clients outside of the cluster, over real devices: node ports, balancers' addresses, policies, restarts (root).
use agent_datapath::{XdpChoice, XdpMode};
use agent_services::{PortView, ServiceView};
use anyhow::{Context, Result, bail, ensure};
use datapath_abi::{Proto, Reason};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tests_lab::{
    BALANCER_IPS, Lab, Lan, NODE, NODE_IPS, OUTSIDE_IPS, Pod, REMOTE_IPS, UPLINK, isolated_without_hooks,
    service, slice,
};
use tests_packets::talk::{ask, connect, seen, seen_by_datagram, serve_in};
use tests_packets::{Frame, checksums_hold, flag};

const LOCAL_IPS: (&str, &str) = ("10.244.0.2", "fd00:10:244::2");
const VIPS: (&str, &str) = ("10.96.0.10", "fd00:10:96::10");
const NODE_PORT: u16 = 30080;

fn ip(pair: (&str, &str), v4: bool) -> IpAddr {
    let text = if v4 { pair.0 } else { pair.1 };
    text.parse().expect("an address of the test")
}

fn at(pair: (&str, &str), v4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(ip(pair, v4), port)
}

fn both(ips: (&str, &str)) -> [SocketAddr; 2] {
    [at(ips, true, 8080), at(ips, false, 8080)]
}

struct Place {
    lan: Lan,
    local: Pod,
}

/// A node with a pod, a second node with another, a machine outside; everybody serves.
fn place(lab: &mut Lab, xdp: XdpChoice) -> Result<Place> {
    lab.forward()?;
    let lan = lab.lan(xdp)?;
    let local = lab.pod("local", LOCAL_IPS.0, LOCAL_IPS.1)?;
    serve_in(&local, &both(LOCAL_IPS))?;
    serve_in(&lan.other, &both(REMOTE_IPS))?;
    Ok(Place { lan, local })
}

/// What a test wants of the service.
#[derive(Clone, Copy, Default)]
struct Wants {
    local: bool,
    remote: bool,
    external_local: bool,
    affinity: u32,
    ranges: Option<(&'static str, &'static str)>,
}

/// Programs the service in both families and protocols.
fn program(lab: &mut Lab, wants: Wants) -> Result<()> {
    for (v4, proto) in [
        (true, Proto::TCP),
        (true, Proto::UDP),
        (false, Proto::TCP),
        (false, Proto::UDP),
    ] {
        let name = format!("web-{}-{}", if v4 { 4 } else { 6 }, proto.0);
        let range = wants.ranges.map(|r| (ip(r, v4), if v4 { 32 } else { 128 }));
        let view = ServiceView {
            balancer_ips: vec![ip(BALANCER_IPS, v4)],
            ports: vec![PortView {
                name: "p".into(),
                proto,
                port: 80,
                node_port: NODE_PORT,
            }],
            external_local: wants.external_local,
            affinity: wants.affinity,
            source_ranges: range.into_iter().collect(),
            ..service(&name, at(VIPS, v4, 80), proto)
        };
        let mut ends = Vec::new();
        ends.extend(wants.local.then(|| at(LOCAL_IPS, v4, 8080)));
        ends.extend(wants.remote.then(|| at(REMOTE_IPS, v4, 8080)));
        let mut slice = slice(&name, v4, proto, &ends);
        for e in &mut slice.endpoints {
            let here = e.addr == ip(LOCAL_IPS, v4);
            e.node = Some(Arc::from(if here { NODE } else { "elsewhere" }));
        }
        lab.planner.service(view);
        lab.planner.slice(slice);
    }
    lab.program()
}

fn fronts(v4: bool) -> [SocketAddr; 2] {
    [at(NODE_IPS, v4, NODE_PORT), at(BALANCER_IPS, v4, 80)]
}

/// In both families, both protocols and by both fronts, servers see the client as `shown`.
fn all_see(place: &Place, shown: (&str, &str)) -> Result<()> {
    for v4 in [true, false] {
        let expected = ip(shown, v4).to_string();
        for to in fronts(v4) {
            let tcp = seen(&place.lan.outside, to)?;
            ensure!(tcp == expected, "{to} over TCP shows {tcp}");
            let udp = seen_by_datagram(&place.lan.outside, to)?;
            ensure!(udp == expected, "{to} over UDP shows {udp}");
        }
    }
    Ok(())
}

#[test]
fn an_endpoint_on_this_node_sees_the_clients_own_address() {
    isolated_without_hooks("an_endpoint_on_this_node_sees_the_clients_own_address", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        let wants = Wants {
            local: true,
            ..Wants::default()
        };
        program(lab, wants)?;
        all_see(&place, OUTSIDE_IPS)?;
        program(
            lab,
            Wants {
                external_local: true,
                remote: true,
                ..wants
            },
        )?;
        for _ in 0..8 {
            all_see(&place, OUTSIDE_IPS).context("policy Local")?;
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_on_another_node_sees_this_node() {
    isolated_without_hooks("an_endpoint_on_another_node_sees_this_node", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        ensure!(place.lan.xdp == XdpMode::None("it is switched off".into()));
        program(
            lab,
            Wants {
                remote: true,
                ..Wants::default()
            },
        )?;
        all_see(&place, NODE_IPS)?;
        let dump = lab.datapath.dump()?;
        ensure!(dump.counter(Reason::PacketMasqueraded) > 0);
        ensure!(
            dump.traffic
                .services
                .iter()
                .any(|t| t.owner == "default/web-4-6:p" && t.counts.connections >= 2)
        );
        Ok(())
    });
}

/// A veth leaves checksums to be filled in later, which XDP does not know of: what comes out is looked at by test runs, with the
/// node's real routes and neighbours, and the device only has to take the program.
#[test]
fn xdp_sends_back_what_only_passes_the_node() {
    isolated_without_hooks("xdp_sends_back_what_only_passes_the_node", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        program(
            lab,
            Wants {
                remote: true,
                ..Wants::default()
            },
        )?;
        // So that the node knows its neighbours.
        all_see(&place, NODE_IPS)?;
        // Before Linux 5.15 a test run cannot name the device; then only the device is asked.
        for v4 in [true, false].into_iter().filter(|_| kernel_is_at_least((5, 15))) {
            let (client, node) = (at(OUTSIDE_IPS, v4, 4000), at(NODE_IPS, v4, NODE_PORT));
            for proto in [Proto::TCP, Proto::UDP] {
                let syn = Frame::new(proto, flag::SYN, client, node);
                let sent = passed(lab, &syn)?;
                ensure!(
                    sent.to == at(REMOTE_IPS, v4, 8080) && sent.from.ip() == node.ip(),
                    "{sent:?}"
                );
                let answer = Frame::new(proto, flag::SYN | flag::ACK, sent.to, sent.from);
                let back = passed(lab, &answer)?;
                ensure!(back.from == node && back.to == client, "{back:?}");
            }
        }
        let sent_back = if kernel_is_at_least((5, 15)) { 8 } else { 0 };
        ensure!(lab.datapath.dump()?.counter(Reason::PacketSentBack) == sent_back);
        let mode = lab.datapath.attach_uplink(UPLINK, XdpChoice::Always)?;
        ensure!(mode == XdpMode::Native, "{mode}");
        ensure!(lab.datapath.attach_uplink(UPLINK, XdpChoice::Auto)? != XdpMode::Native);
        Ok(())
    });
}

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel tells its version");
    let mut numbers = release.split('.').map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

/// Runs the XDP program on a frame that the uplink received: it goes back out, one hop older, with right checksums.
fn passed(lab: &Lab, frame: &Frame) -> Result<Frame> {
    const XDP_TX: u32 = 3;
    let sent = frame.bytes();
    let (verdict, got) = lab.datapath.try_uplink_packet(UPLINK, &sent)?;
    ensure!(verdict == XDP_TX, "verdict {verdict}");
    ensure!(got[..6] != sent[..6], "sent to the same machine");
    ensure!(checksums_hold(&got), "wrong checksum in {got:02x?}");
    let hops = if frame.from.is_ipv4() { 22 } else { 21 };
    ensure!(got[hops] == sent[hops] - 1);
    let p = datapath_logic::packet::parse(&got[..]).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(Frame {
        from: SocketAddr::new(p.src.to_ip(), p.sport.get()),
        to: SocketAddr::new(p.dst.to_ip(), p.dport.get()),
        ..frame.clone()
    })
}

#[test]
fn clients_are_refused_or_kept_out_as_the_service_says() {
    isolated_without_hooks("clients_are_refused_or_kept_out_as_the_service_says", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        program(lab, Wants::default())?;
        for to in fronts(true).into_iter().chain(fronts(false)) {
            let e = connect(&place.lan.outside, to)?.expect_err("nobody serves it");
            ensure!(
                e.kind() == ErrorKind::ConnectionRefused,
                "{to} without endpoints: {e}"
            );
        }
        program(
            lab,
            Wants {
                remote: true,
                external_local: true,
                ..Wants::default()
            },
        )?;
        dropped(&place, fronts(true)[0]).context("policy Local, endpoints elsewhere only")?;
        // The outside machine is none of those that may.
        program(
            lab,
            Wants {
                local: true,
                ranges: Some(("192.0.2.1", "2001:db8::1")),
                ..Wants::default()
            },
        )?;
        dropped(&place, fronts(true)[1]).context("source ranges")?;
        dropped(&place, fronts(false)[1]).context("source ranges over IPv6")?;
        seen(&place.lan.outside, fronts(true)[0]).context("ranges say nothing about node ports")?;
        program(
            lab,
            Wants {
                local: true,
                ranges: Some(OUTSIDE_IPS),
                ..Wants::default()
            },
        )?;
        all_see(&place, OUTSIDE_IPS).context("within the ranges")
    });
}

fn dropped(place: &Place, to: SocketAddr) -> Result<()> {
    let outcome = place
        .lan
        .outside
        .within(move || TcpStream::connect_timeout(&to, Duration::from_millis(400)))?;
    match outcome {
        Ok(_) => bail!("{to} accepted"),
        Err(e) => ensure!(e.kind() == ErrorKind::TimedOut, "{to}: {e}"),
    }
    Ok(())
}

#[test]
fn an_outside_client_keeps_its_endpoint_where_the_service_says_so() {
    isolated_without_hooks(
        "an_outside_client_keeps_its_endpoint_where_the_service_says_so",
        |lab| {
            let place = place(lab, XdpChoice::Never)?;
            program(
                lab,
                Wants {
                    local: true,
                    remote: true,
                    affinity: 60,
                    ..Wants::default()
                },
            )?;
            for v4 in [true, false] {
                let first = seen(&place.lan.outside, fronts(v4)[0])?;
                for i in 0..12 {
                    let now = seen(&place.lan.outside, fronts(v4)[i % 2])?;
                    ensure!(now == first, "{now} after {first}");
                }
            }
            Ok(())
        },
    );
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself() {
    isolated_without_hooks("a_pod_that_calls_its_own_service_reaches_itself", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        program(
            lab,
            Wants {
                local: true,
                ..Wants::default()
            },
        )?;
        for v4 in [true, false] {
            let vip = at(VIPS, v4, 80);
            let by = seen(&place.local, vip)?;
            ensure!(by == ip(NODE_IPS, v4).to_string(), "the pod sees {by}");
            seen_by_datagram(&place.local, vip)?;
        }
        Ok(())
    });
}

#[test]
fn outside_connections_go_on_while_agents_change() {
    isolated_without_hooks("outside_connections_go_on_while_agents_change", |lab| {
        let place = place(lab, XdpChoice::Never)?;
        for remote in [false, true] {
            program(
                lab,
                Wants {
                    local: !remote,
                    remote,
                    ..Wants::default()
                },
            )?;
            for v4 in [true, false] {
                let mut stream = connect(&place.lan.outside, fronts(v4)[0])??;
                ask(&mut stream)?;
                lab.restart()?;
                ask(&mut stream).context("after the restart")?;
                lab.planner.set_node(tests_lab::lan_node());
                seen(&place.lan.outside, fronts(v4)[1])
                    .context("a new connection before the new agent knows")?;
                program(
                    lab,
                    Wants {
                        local: remote,
                        remote: !remote,
                        ..Wants::default()
                    },
                )?;
                ask(&mut stream).context("after its endpoint left the service")?;
                program(
                    lab,
                    Wants {
                        local: !remote,
                        remote,
                        ..Wants::default()
                    },
                )?;
            }
        }
        Ok(())
    });
}
