//! Ports of the node that lead to one of its pods, over real devices (root).
use agent_datapath::XdpChoice;
use agent_services::{HostPort, HostPortsView, ObjectName};
use anyhow::{Context, Result, ensure};
use datapath_abi::Proto;
use std::net::{IpAddr, SocketAddr};
use tests_lab::{Lab, NODE_IPS, OUTSIDE_IPS, Pod, isolated_without_hooks};
use tests_packets::talk::{ask, connect, seen, seen_by_datagram, serve_in};

const SERVER: (&str, &str) = ("10.244.0.2", "fd00:10:244::2");
const CLIENT: (&str, &str) = ("10.244.0.3", "fd00:10:244::3");
const HOST_PORT: u16 = 8081;

fn at(pair: (&str, &str), v4: bool, port: u16) -> SocketAddr {
    let text = if v4 { pair.0 } else { pair.1 };
    let ip: IpAddr = text.parse().expect("an address of the test");
    SocketAddr::new(ip, port)
}

/// What the server's pod has of the node, over both protocols.
fn view(addr: Option<&str>) -> HostPortsView {
    let ips = [SERVER.0, SERVER.1].map(|ip| ip.parse().expect("an address of the test"));
    let port = |proto| HostPort {
        addr: addr.and_then(|a| a.parse().ok()),
        port: HOST_PORT,
        proto,
        pod_port: 8080,
    };
    HostPortsView {
        pod: ObjectName::new("default", "server"),
        ips: ips.to_vec(),
        ports: vec![port(Proto::TCP), port(Proto::UDP)],
    }
}

struct Place {
    outside: Pod,
    server: Pod,
    client: Pod,
}

fn place(lab: &mut Lab) -> Result<Place> {
    lab.forward()?;
    let lan = lab.lan(XdpChoice::Never)?;
    let server = lab.pod("server", SERVER.0, SERVER.1)?;
    let client = lab.pod("client", CLIENT.0, CLIENT.1)?;
    serve_in(&server, &[at(SERVER, true, 8080), at(SERVER, false, 8080)])?;
    Ok(Place {
        outside: lan.outside,
        server,
        client,
    })
}

/// Over both protocols the pod sees the client as `shown`.
fn sees(from: &Pod, v4: bool, shown: (&str, &str)) -> Result<()> {
    let (to, expected) = (at(NODE_IPS, v4, HOST_PORT), at(shown, v4, 0).ip().to_string());
    let tcp = seen(from, to)?;
    ensure!(tcp == expected, "{to} over TCP shows {tcp}");
    let udp = seen_by_datagram(from, to)?;
    ensure!(udp == expected, "{to} over UDP shows {udp}");
    Ok(())
}

#[test]
fn a_host_port_leads_clients_outside_pods_and_the_pod_itself_to_the_pod() {
    let test = "a_host_port_leads_clients_outside_pods_and_the_pod_itself_to_the_pod";
    isolated_without_hooks(test, |lab| {
        let place = place(lab)?;
        lab.planner.host_ports(&[view(None)]);
        lab.program()?;
        for v4 in [true, false] {
            sees(&place.outside, v4, OUTSIDE_IPS).context("from outside")?;
            sees(&place.client, v4, CLIENT).context("from a pod of the node")?;
            sees(&place.server, v4, NODE_IPS).context("from the pod itself")?;
        }
        Ok(())
    });
}

#[test]
fn a_host_port_is_there_at_its_own_address_only_and_goes_with_its_pod() {
    let test = "a_host_port_is_there_at_its_own_address_only_and_goes_with_its_pod";
    isolated_without_hooks(test, |lab| {
        let place = place(lab)?;
        lab.planner.host_ports(&[view(Some(NODE_IPS.0))]);
        lab.program()?;
        sees(&place.outside, true, OUTSIDE_IPS)?;
        let mut open = connect(&place.outside, at(NODE_IPS, true, HOST_PORT))??;
        ask(&mut open)?;
        let other = connect(&place.outside, at(NODE_IPS, false, HOST_PORT))?;
        ensure!(other.is_err(), "it is served at the other family's address too");
        lab.planner.host_ports(&[]);
        lab.program()?;
        let gone = connect(&place.outside, at(NODE_IPS, true, HOST_PORT))?;
        ensure!(gone.is_err(), "it is served after its pod");
        ask(&mut open).context("a connection that is older than the end of its front")?;
        Ok(())
    });
}
