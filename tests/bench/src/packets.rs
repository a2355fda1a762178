//! Nanoseconds per packet of the loaded programs, by test runs. A test run repeats a program on what its last run left, so packets go round in
//! circles here: each is rewritten into one that the next run finds another flow for. Nothing is sent anywhere.
use crate::net::sh;
use crate::peer::Measure;
use crate::place;
use crate::stats::{self, Row, Runs};
use agent_datapath::{Datapath, DatapathConfig, FlowMemory, Sizes, since_boot};
use agent_services::{
    EndpointView, Existing, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView,
};
use anyhow::{Context, Result, ensure};
use datapath_abi::{Address, Be16, Flow, FlowKey, FlowRole, FlowState, Proto, Reason, SetId, programs};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tests_packets::kernel::program;
use tests_packets::{Case, Frame, Names, cases, flag, node, settings};

/// The device of the XDP program.
const UPLINK: &str = "up0";
/// Flows among which packets are spread.
const MANY: u32 = 1 << 16;
/// A packet has 255 hops at most, and XDP takes one each time.
const HOPS: u32 = 200;
/// Repetitions.
const BLOCKS: usize = 40;

/// What one situation took.
#[derive(Serialize, Deserialize)]
struct Timed {
    program: String,
    case: String,
    runs: Runs,
}

/// Rows of all situations, measured in a process and namespaces of their own.
///
/// # Errors
/// It could not be measured.
pub fn rows() -> Result<Vec<Row>> {
    let timed: Vec<Timed> = serde_json::from_str(&place::packets()?).context("the measuring process")?;
    let row = |t: &Timed| Row {
        case: Some(format!("{} {}", t.program, t.case)),
        ..stats::row(
            Measure::NsPerPacket,
            crate::peer::Peer::SkepPackets,
            1,
            &t.runs,
            None,
        )
    };
    Ok(timed.iter().map(row).collect())
}

/// Measures and prints it as JSON. In namespaces of its own.
///
/// # Errors
/// The kernel refused something.
pub fn run() -> Result<()> {
    let datapath = Arc::new(place_of_one()?);
    let mut all = Vec::new();
    for (case, runs) in [
        ("hot", tc_hot(&datapath)?),
        ("64k_flows", Vec::new()),
        ("first", Vec::new()),
    ] {
        all.push(timed("tc", case, runs));
    }
    let (first, known) = tc_many(&datapath)?;
    (all[1].runs, all[2].runs) = (known, first);
    all.push(timed("tc", "fixtures", tc_fixtures(&datapath)?));
    all.push(timed("xdp", "hot", xdp_hot(&datapath)?));
    all.push(timed("xdp", "64k_flows", xdp_many(&datapath)?));
    all.push(timed("xdp", "first", xdp_first(&datapath)?));
    println!("{}", serde_json::to_string(&all)?);
    Datapath::remove(&pins())?;
    Ok(())
}

fn timed(program: &str, case: &str, runs: Runs) -> Timed {
    Timed {
        program: program.into(),
        case: case.into(),
        runs,
    }
}

fn pins() -> PathBuf {
    "/run/bpf/node".into()
}

/// A data path of the fixtures' node, with a device that leads everywhere.
fn place_of_one() -> Result<Datapath> {
    sh("mount -t tmpfs tmpfs /run")?;
    std::fs::create_dir_all("/run/bpf")?;
    sh("mount -t bpf bpf /run/bpf")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let [own, router] = ["node", "router"].map(|n| Names { v4: true }.ip(n));
    sh(&format!("ip link add {UPLINK} type veth peer name far"))?;
    sh(&format!("ip link set {UPLINK} up"))?;
    sh("ip link set far up")?;
    sh(&format!("ip addr add {own}/24 dev {UPLINK}"))?;
    sh(&format!(
        "ip neigh replace {router} lladdr 02:00:00:00:00:aa dev {UPLINK} nud permanent"
    ))?;
    sh(&format!("ip route add default via {router}"))?;
    let sizes = Sizes {
        frontends: 4 * MANY,
        backends: 4 * MANY,
        owners: 2 * MANY,
        flows: 8 * MANY,
        ..Sizes::for_memory(1 << 28)
    };
    let datapath = Datapath::open(&DatapathConfig {
        pin_dir: pins(),
        cgroup: None,
        service_ranges: Vec::new(),
        sizes: Some(sizes),
    })?;
    datapath.set_settings(&settings())?;
    Ok(datapath)
}

/// Services for as long as this lives.
struct Served<'a> {
    datapath: &'a Datapath,
    planner: Planner,
    names: Vec<ObjectName>,
}

impl<'a> Served<'a> {
    /// Each front leads to one endpoint. `here`: on this node, so that nothing is masqueraded.
    fn new(datapath: &'a Datapath, pairs: &[(SocketAddr, SocketAddr)], here: bool) -> Result<Self> {
        let mut planner = Planner::new(node(), Existing::default());
        let mut names = Vec::new();
        for (i, (front, endpoint)) in pairs.iter().enumerate() {
            let text = format!("s{i}");
            let name = ObjectName::new("bench", &text);
            planner.service(service(&name, *front));
            planner.slice(SliceView {
                name: text.as_str().into(),
                ..slice(&name, *endpoint, here)
            });
            names.push(name);
        }
        datapath.apply(&planner.plan())?;
        Ok(Self {
            datapath,
            planner,
            names,
        })
    }

    fn end(mut self) -> Result<()> {
        for name in &self.names {
            self.planner.service_gone(name);
        }
        self.datapath.apply(&self.planner.plan())?;
        Ok(self.datapath.forget_flows()?)
    }
}

fn service(name: &ObjectName, front: SocketAddr) -> ServiceView {
    ServiceView {
        cluster_ips: vec![front.ip()],
        ports: vec![PortView {
            name: "p".into(),
            proto: Proto::TCP,
            port: front.port(),
            node_port: 0,
        }],
        ..ServiceView::new(name.clone())
    }
}

fn slice(name: &ObjectName, endpoint: SocketAddr, here: bool) -> SliceView {
    SliceView {
        name: "s".into(),
        service: name.clone(),
        ports: vec![SlicePort {
            name: "p".into(),
            proto: Proto::TCP,
            port: endpoint.port(),
        }],
        endpoints: vec![EndpointView {
            addr: endpoint.ip(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(if here { node().name } else { Arc::from("elsewhere") }),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }],
    }
}

fn at(name: &str) -> SocketAddr {
    Names { v4: true }.at(name)
}

/// An address of the service range.
fn vip(i: u32) -> SocketAddr {
    let first = u32::from(Ipv4Addr::new(10, 96, 0, 0));
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(first + i)), 80)
}

fn frame(flags: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut frame = Frame::new(Proto::TCP, flags, from, to);
    frame.shape.hops = 255;
    frame.bytes()
}

/// All of them once, in an order by chance.
fn shuffled(n: u32) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n).collect();
    fastrand::Rng::with_seed(4).shuffle(&mut all);
    all
}

/// Two services, each the other's endpoint: the packet goes to and fro between two flows.
fn tc_hot(datapath: &Datapath) -> Result<Runs> {
    let (a, b) = (vip(1), vip(2));
    let served = Served::new(datapath, &[(a, b), (b, a)], true)?;
    let bytes = frame(flag::ACK, at("outside:4000"), a);
    let mut runs = Runs::new();
    for _ in 0..=BLOCKS {
        let time = datapath.time_packet(programs::FROM_UPLINK, &bytes, 10_000)?;
        runs.push(vec![time.as_nanos() as f64]);
    }
    // The first one opened the flows.
    runs.remove(0);
    let flows = datapath.flow_memory()?.flows;
    ensure!(flows.iter().any(|(_, f)| f.packets > 4000 * BLOCKS as u64));
    served.end()?;
    Ok(runs)
}

/// As many services in one circle: the first time round every packet is the first of its flow, then all are known, and each
/// meets its entries after all the others were met.
fn tc_many(datapath: &Datapath) -> Result<(Runs, Runs)> {
    const CHUNK: usize = 4096;
    let order = shuffled(MANY - 1);
    let next = |i: usize| vip(1 + order[(i + 1) % order.len()]);
    let pairs: Vec<_> = (0..order.len()).map(|i| (vip(1 + order[i]), next(i))).collect();
    let served = Served::new(datapath, &pairs, true)?;
    let (mut first, mut known) = (Runs::new(), Runs::new());
    for round in 0..4 {
        for (front, _) in pairs.iter().step_by(CHUNK) {
            let bytes = frame(flag::ACK, at("outside:4000"), *front);
            let time = datapath.time_packet(programs::FROM_UPLINK, &bytes, CHUNK as u32)?;
            let runs = if round == 0 { &mut first } else { &mut known };
            runs.push(vec![time.as_nanos() as f64]);
        }
    }
    let flows = datapath.remembered()?.0;
    ensure!(
        flows >= 2 * pairs.len() * 9 / 10,
        "only {flows} entries: the map is too small"
    );
    served.end()?;
    Ok((first, known))
}

/// Every packet of the fixtures, one run after the other on the same bytes; with the clock that the kernel reads for each.
fn tc_fixtures(datapath: &Datapath) -> Result<Runs> {
    let mut runs = Runs::new();
    for case in cases() {
        let mut planner = Planner::new(node(), Existing::default());
        for s in &case.services {
            planner.service(s.view.clone());
            planner.slice(s.slice.clone());
        }
        datapath.apply(&planner.plan())?;
        runs.extend(fixture(datapath, &case)?);
        for s in &case.services {
            planner.service_gone(&s.view.name);
        }
        datapath.apply(&planner.plan())?;
        datapath.forget_flows()?;
    }
    Ok(runs)
}

fn fixture(datapath: &Datapath, case: &Case) -> Result<Runs> {
    const TIMES: usize = 9;
    let mut runs = Runs::new();
    for step in case.steps.iter().filter(|s| !s.uses_given()) {
        let (name, bytes) = (program(step.hook), step.frame(0).bytes());
        datapath.try_packet(name, &bytes)?;
        let times = (0..TIMES).map(|_| Ok(datapath.time_packet(name, &bytes, 1)?.as_nanos() as f64));
        runs.push(times.collect::<Result<_>>()?);
    }
    Ok(runs)
}

/// A flow as the XDP program uses it: both ends change at once.
fn through(from: SocketAddr, to: SocketAddr, next: (SocketAddr, SocketAddr)) -> (FlowKey, Flow) {
    let key = FlowKey {
        src: Address::from(from.ip()),
        dst: Address::from(to.ip()),
        sport: Be16::new(from.port()),
        dport: Be16::new(to.port()),
        proto: Proto::TCP,
        changes: FlowKey::DESTINATION,
        zero: 0,
    };
    let flow = Flow {
        addr: Address::from(next.1.ip()),
        nat: Address::from(next.0.ip()),
        port: Be16::new(next.1.port()),
        nat_port: Be16::new(next.0.port()),
        set: SetId(1),
        state: FlowState::ESTABLISHED,
        role: FlowRole::FORWARD,
        seen: since_boot().as_nanos() as u64,
        ..Flow::default()
    };
    (key, flow)
}

/// Runs frames through the XDP program, and makes sure that every run sent its packet on.
fn xdp(datapath: &Datapath, frames: impl Iterator<Item = Vec<u8>>) -> Result<Runs> {
    let sent = || -> Result<u64> { Ok(datapath.dump()?.counter(Reason::PacketSentBack)) };
    let before = sent()?;
    let mut runs = Runs::new();
    for bytes in frames {
        let time = datapath.time_uplink_packet(UPLINK, &bytes, HOPS)?;
        runs.push(vec![time.as_nanos() as f64]);
    }
    let wanted = u64::from(HOPS) * runs.len() as u64;
    ensure!(
        sent()? - before == wanted,
        "{} of {wanted} packets were sent on",
        sent()? - before
    );
    Ok(runs)
}

fn remember(datapath: &Datapath, flows: Vec<(FlowKey, Flow)>) -> Result<()> {
    Ok(datapath.set_flow_memory(&FlowMemory {
        flows,
        ..FlowMemory::default()
    })?)
}

/// A flow, and one that makes of its packets what they were.
fn xdp_hot(datapath: &Datapath) -> Result<Runs> {
    let (client, front) = (at("outside:4000"), at("balancer:80"));
    let (own, endpoint) = (at("node:2000"), at("remote:8080"));
    let flows = vec![
        through(client, front, (own, endpoint)),
        through(own, endpoint, (client, front)),
    ];
    remember(datapath, flows)?;
    let frames = std::iter::repeat_with(|| frame(flag::ACK, client, front));
    let runs = xdp(datapath, frames.take(BLOCKS))?;
    datapath.forget_flows()?;
    Ok(runs)
}

/// A circle of clients.
fn xdp_many(datapath: &Datapath) -> Result<Runs> {
    let front = at("balancer:80");
    let mut rng = fastrand::Rng::with_seed(5);
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    let clients: Vec<SocketAddr> = shuffled(MANY)
        .into_iter()
        .map(|i| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(first + i)), rng.u16(1024..)))
        .collect();
    let next = |i: usize| clients[(i + 1) % clients.len()];
    let flows = clients
        .iter()
        .enumerate()
        .map(|(i, c)| through(*c, front, (next(i), front)));
    remember(datapath, flows.collect())?;
    let starts = clients.iter().step_by(HOPS as usize);
    let runs = xdp(datapath, starts.map(|c| frame(flag::ACK, *c, front)))?;
    datapath.forget_flows()?;
    Ok(runs)
}

/// Two services, each the other's endpoint: what comes out is asked by this node from a port of its choice, and a new
/// flow to the other one.
fn xdp_first(datapath: &Datapath) -> Result<Runs> {
    let (a, b) = (vip(1), vip(2));
    let served = Served::new(datapath, &[(a, b), (b, a)], false)?;
    let frames = (0..BLOCKS).map(|i| {
        frame(
            flag::SYN,
            SocketAddr::new(at("outside:0").ip(), 5000 + i as u16),
            a,
        )
    });
    let runs = xdp(datapath, frames)?;
    served.end()?;
    Ok(runs)
}
