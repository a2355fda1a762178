//! Connections go on, none is reset, none lost, none refused, while the agent is killed, started again, upgraded, downgraded, and
//! upgraded over another map layout: connections of sockets that a hook served, of pods by the packet path, and from outside through
//! a node port to an endpoint on another node.
use agent_datapath::{Datapath, DatapathConfig, Layout1, XdpChoice, built_in_object};
use agent_services::{Planner, PortView, ServiceView};
use anyhow::{Context, Result, ensure};
use datapath_abi::{Proto, Reason, SetId};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tests_lab::{
    Lab, Lan, Load, NODE, NODE_IPS, Pod, REMOTE_IPS, echo_on, isolated, isolated_without_hooks,
    layout_1_object, other_build, service, slice,
};

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const PODS: [(&str, &str); 2] = [("10.244.0.2", "fd00:10:244::2"), ("10.244.0.3", "fd00:10:244::3")];
const CLIENT: (&str, &str) = ("10.244.0.9", "fd00:10:244::9");
const NODE_PORT: u16 = 30080;
/// Words that each client exchanges before, between and after changes.
const WORDS: u64 = 20;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address of the test")
}

fn of(pair: (&str, &str), v4: bool, port: u16) -> SocketAddr {
    let text = if v4 { pair.0 } else { pair.1 };
    SocketAddr::new(text.parse().expect("an address of the test"), port)
}

/// Serves `web` in both families by the endpoints with these addresses.
fn serve(lab: &mut Lab, endpoints: &[(&str, &str)]) -> Result<()> {
    for vip in VIPS.map(at) {
        let v4 = vip.is_ipv4();
        let name = if v4 { "web" } else { "web6" };
        let view = ServiceView {
            ports: vec![PortView {
                name: "p".into(),
                proto: Proto::TCP,
                port: 80,
                node_port: NODE_PORT,
            }],
            ..service(name, vip, Proto::TCP)
        };
        let ends: Vec<_> = endpoints.iter().map(|ips| of(*ips, v4, 8080)).collect();
        let mut slice = slice(name, v4, Proto::TCP, &ends);
        for end in &mut slice.endpoints {
            let remote = end.addr == of(REMOTE_IPS, v4, 0).ip();
            end.node = Some(Arc::from(if remote { "elsewhere" } else { NODE }));
        }
        lab.planner.service(view);
        lab.planner.slice(slice);
    }
    lab.program()
}

/// Two pods that echo, and one that asks.
fn pods(lab: &Lab) -> Result<Pod> {
    lab.forward()?;
    for (name, ips) in ["one", "two"].into_iter().zip(PODS) {
        let pod = lab.pod(name, ips.0, ips.1)?;
        for v4 in [true, false] {
            echo_on(pod.within(move || TcpListener::bind(of(ips, v4, 8080)))??);
        }
    }
    lab.pod("client", CLIENT.0, CLIENT.1)
}

/// Each way to change the agent, while connections go on.
fn change_agents(lab: &mut Lab, load: &Load, wanted: &dyn Fn(&mut Lab) -> Result<()>) -> Result<()> {
    let other = other_build(built_in_object())?;
    load.progress(WORDS).context("before anything changes")?;
    for (how, object) in [
        ("restarted", built_in_object()),
        ("upgraded", &other),
        ("downgraded", built_in_object()),
    ] {
        lab.restart_as(object)?;
        load.progress(WORDS)
            .with_context(|| format!("{how}, before the new agent knows anything"))?;
        wanted(lab)?;
        load.progress(WORDS)
            .with_context(|| format!("{how}, when everything is written"))?;
    }
    Ok(())
}

#[test]
fn connections_of_sockets_go_on_while_agents_are_restarted_upgraded_and_downgraded() {
    let test = "connections_of_sockets_go_on_while_agents_are_restarted_upgraded_and_downgraded";
    isolated(test, |lab| {
        let client = pods(lab)?;
        serve(lab, &PODS)?;
        let mut load = Load::default();
        for vip in VIPS.map(at) {
            for place in [None, Some(&client)] {
                load.lasting(place, vip)?;
                load.fresh(place, vip)?;
            }
        }
        change_agents(lab, &load, &|lab| serve(lab, &PODS))?;
        load.finish()?;
        ensure!(lab.datapath.dump()?.counter(Reason::SocketConnected) > 8);
        Ok(())
    });
}

/// Clients in a pod and outside, on the packet path; the service has an endpoint here and one on the other node.
fn packet_clients(lab: &mut Lab) -> Result<(Lan, Load)> {
    let client = pods(lab)?;
    let lan = lab.lan(XdpChoice::Never)?;
    for v4 in [true, false] {
        echo_on(
            lan.other
                .within(move || TcpListener::bind(of(REMOTE_IPS, v4, 8080)))??,
        );
    }
    serve(lab, &MIXED)?;
    let mut load = Load::default();
    for vip in VIPS.map(at) {
        let node = of(NODE_IPS, vip.is_ipv4(), NODE_PORT);
        // Several of each: some have the endpoint here, others that on the other node.
        for _ in 0..3 {
            load.lasting(Some(&client), vip)?;
            load.lasting(Some(&lan.outside), node)?;
        }
        load.fresh(Some(&client), vip)?;
        load.fresh(Some(&lan.outside), node)?;
    }
    Ok((lan, load))
}

const MIXED: [(&str, &str); 2] = [PODS[0], REMOTE_IPS];

fn serve_mixed(lab: &mut Lab) -> Result<()> {
    lab.planner.set_node(tests_lab::lan_node());
    serve(lab, &MIXED)
}

#[test]
fn connections_of_pods_and_from_outside_go_on_while_agents_are_restarted_upgraded_and_downgraded() {
    let test =
        "connections_of_pods_and_from_outside_go_on_while_agents_are_restarted_upgraded_and_downgraded";
    isolated_without_hooks(test, |lab| {
        let (_lan, load) = packet_clients(lab)?;
        change_agents(lab, &load, &serve_mixed)?;
        load.finish()?;
        ensure!(lab.datapath.dump()?.counter(Reason::PacketMasqueraded) > 4);
        Ok(())
    });
}

const KILLED: &str = "connections_go_on_while_agents_are_killed_at_whatever_they_do";

/// An agent that starts, writes one thing and then another, and starts again, until it is killed.
fn agent_to_be_killed(pins: &str) -> Result<()> {
    let other = other_build(built_in_object())?;
    let config = DatapathConfig {
        pin_dir: pins.into(),
        cgroup: None,
        service_ranges: Vec::new(),
        sizes: None,
    };
    println!("at work");
    // Bounded: whoever started it ends it long before.
    for round in 0..10_000 {
        let object = if round % 2 == 0 {
            &other[..]
        } else {
            built_in_object()
        };
        let datapath = Datapath::open_build(&config, object)?;
        let planner = Planner::new(tests_lab::lan_node(), datapath.existing()?);
        let mut agent = Agent { datapath, planner };
        for ends in [&MIXED[..1], &MIXED, &MIXED[1..], &MIXED] {
            agent.serve(ends)?;
        }
    }
    Ok(())
}

/// What the killed process has of a lab.
struct Agent {
    datapath: Datapath,
    planner: Planner,
}

impl Agent {
    fn serve(&mut self, endpoints: &[(&str, &str)]) -> Result<()> {
        for vip in VIPS.map(at) {
            let v4 = vip.is_ipv4();
            let name = if v4 { "web" } else { "web6" };
            let mut view = service(name, vip, Proto::TCP);
            view.ports[0].node_port = NODE_PORT;
            let ends: Vec<_> = endpoints.iter().map(|ips| of(*ips, v4, 8080)).collect();
            let mut slice = slice(name, v4, Proto::TCP, &ends);
            for end in &mut slice.endpoints {
                let remote = end.addr == of(REMOTE_IPS, v4, 0).ip();
                end.node = Some(Arc::from(if remote { "elsewhere" } else { NODE }));
            }
            self.planner.service(view);
            self.planner.slice(slice);
        }
        Ok(self.datapath.apply(&self.planner.plan())?)
    }
}

/// Starts it, in the same namespaces, and hears that it is at work.
fn start_agent(lab: &Lab) -> Result<Child> {
    use std::io::{BufRead as _, BufReader};
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", KILLED, "--nocapture"])
        .env("SKEP_TEST_AGENT", &lab.config.pin_dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("its output is a pipe")?;
    for line in BufReader::new(output).lines() {
        if line?.contains("at work") {
            return Ok(child);
        }
    }
    child.wait()?;
    anyhow::bail!("the agent ended before it was at work")
}

/// How many agents are killed; each at another point of its work.
fn killed_agents() -> Result<u64> {
    let asked = std::env::var("SKEP_KILLED_AGENTS").ok();
    asked
        .map_or(Ok(8), |number| number.parse())
        .context("SKEP_KILLED_AGENTS is a number")
}

#[test]
fn connections_go_on_while_agents_are_killed_at_whatever_they_do() {
    if let Ok(pins) = std::env::var("SKEP_TEST_AGENT") {
        agent_to_be_killed(&pins).expect("it works until it is killed");
        return;
    }
    isolated_without_hooks(KILLED, |lab| {
        let (_lan, load) = packet_clients(lab)?;
        load.progress(WORDS)?;
        for round in 0..killed_agents()? {
            let mut agent = start_agent(lab)?;
            // How far it comes until it is killed is the load's progress: another point of its work each time.
            load.progress(1 + 3 * round)
                .with_context(|| format!("agent {round} at work"))?;
            agent.kill()?;
            let status = agent.wait()?;
            ensure!(status.code().is_none(), "it had ended by itself: {status}");
            load.progress(WORDS)
                .with_context(|| format!("agent {round} killed"))?;
        }
        lab.restart()?;
        serve_mixed(lab)?;
        load.progress(WORDS)?;
        load.finish()?;
        let left = lab.datapath.existing()?.inconsistencies();
        ensure!(left.is_empty(), "what the killed agents left: {left:?}");
        Ok(())
    });
}

/// Takes everything of today's away, and puts layout 1 in its place: the same services and devices, other numbers of sets.
fn back_to_layout_1(lab: &Lab, datagrams: &[SocketAddr]) -> Result<Layout1> {
    Datapath::remove(&lab.config.pin_dir)?;
    let mut old = Layout1::open(&layout_1_object()?, &lab.config)?;
    for device in ["host-one", "host-two", "host-client"] {
        old.attach_pod_device(device)?;
    }
    for (vip, set) in VIPS.map(at).into_iter().zip([71, 72]) {
        let ends = PODS.map(|ips| of(ips, vip.is_ipv4(), 8080));
        old.serve(SetId(set), vip, Proto::TCP, &ends)?;
    }
    old.serve(SetId(73), at(DNS), Proto::UDP, datagrams)?;
    Ok(old)
}

const DNS: &str = "10.96.0.53:53";

/// Today's agent on those pins: everything that is wanted is written, then it takes over.
fn take_over(lab: &mut Lab, load: &Load, datagrams: &[SocketAddr]) -> Result<()> {
    lab.restart()?;
    for device in ["host-one", "host-two", "host-client"] {
        lab.datapath.attach_pod_device(device)?;
    }
    ensure!(lab.config.pin_dir.join("v1").is_dir());
    load.progress(WORDS).context("opened")?;
    want_datagrams(lab, datagrams);
    serve(lab, &PODS)?;
    load.progress(WORDS).context("taken over")?;
    ensure!(!lab.config.pin_dir.join("v1").exists());
    // From here on it is a restart like any other.
    lab.restart()?;
    want_datagrams(lab, datagrams);
    serve(lab, &PODS)?;
    load.progress(WORDS).context("started again")
}

fn want_datagrams(lab: &mut Lab, endpoints: &[SocketAddr]) {
    lab.planner.service(service("dns", at(DNS), Proto::UDP));
    lab.planner.slice(slice("dns", true, Proto::UDP, endpoints));
}

#[test]
fn connections_of_pods_go_on_while_layout_1_is_taken_over() {
    let test = "connections_of_pods_go_on_while_layout_1_is_taken_over";
    isolated_without_hooks(test, |lab| {
        let client = pods(lab)?;
        let _old = back_to_layout_1(lab, &[])?;
        let mut load = Load::default();
        for vip in VIPS.map(at) {
            for _ in 0..8 {
                load.lasting(Some(&client), vip)?;
            }
            load.fresh(Some(&client), vip)?;
        }
        load.progress(WORDS).context("under layout 1")?;
        take_over(lab, &load, &[])?;
        let dump = lab.datapath.dump()?;
        load.finish()?;
        let nobodys = dump.flows.iter().find(|f| !f.owner.starts_with("default/web"));
        ensure!(nobodys.is_none(), "{nobodys:?}");
        Ok(())
    });
}

#[test]
fn connections_of_sockets_go_on_and_keep_their_names_while_layout_1_is_taken_over() {
    let test = "connections_of_sockets_go_on_and_keep_their_names_while_layout_1_is_taken_over";
    isolated(test, |lab| {
        let client = pods(lab)?;
        let server = UdpSocket::bind("127.0.0.1:0")?;
        let endpoint = server.local_addr()?;
        let _old = back_to_layout_1(lab, &[endpoint])?;
        let mut load = Load::default();
        for vip in VIPS.map(at) {
            for place in [None, Some(&client)] {
                load.lasting(place, vip)?;
                load.fresh(place, vip)?;
            }
        }
        let stream = TcpStream::connect(at(VIPS[0]))?;
        let asking = UdpSocket::bind("0.0.0.0:0")?;
        asking.set_read_timeout(Some(Duration::from_secs(3)))?;
        asking.connect(at(DNS))?;
        ensure!(stream.peer_addr()? == at(VIPS[0]), "under layout 1");
        load.progress(WORDS).context("under layout 1")?;
        take_over(lab, &load, &[endpoint])?;
        ensure!(stream.peer_addr()? == at(VIPS[0]), "{}", stream.peer_addr()?);
        ensure!(asking.peer_addr()? == at(DNS), "{}", asking.peer_addr()?);
        load.finish()?;
        // A socket of that time is found when its endpoint goes.
        lab.endpoints("dns", true, Proto::UDP, &[])?;
        let error = asking.recv(&mut [0; 8]).expect_err("its endpoint is gone");
        ensure!(error.kind() == std::io::ErrorKind::ConnectionAborted, "{error}");
        Ok(())
    });
}
