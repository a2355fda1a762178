//! Figures of the data path, in namespaces of its own (root):
//! `cargo run --release -p tests-sockets --example measure`.
//!
//! connect() through a service against connect() to the endpoint itself, and against a process that no hook serves, interleaved in
//! one run, at several numbers of services; the same of connect, request, response and close; and the time to program all services
//! from nothing, to change one endpoint, and to delete everything.
use agent_services::ObjectName;
use anyhow::{Context, Result, ensure};
use datapath_abi::Proto;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tests_lab::{Lab, isolated_and_shown, service, slice};

const ENDPOINT: &str = "10.244.0.2:8080";
const VIP: &str = "10.96.0.1:80";
/// Answers one byte with one byte.
const ASKED: &str = "10.244.0.2:8081";
const ASKED_VIP: &str = "10.96.0.2:80";
/// Connections of one kind before it is the other's turn, and how often.
const IN_A_ROW: usize = 100;
const TURNS: usize = 30;

fn main() {
    isolated_and_shown("measure", run);
}

fn run(lab: &mut Lab) -> Result<()> {
    let endpoint: SocketAddr = ENDPOINT.parse()?;
    lab.address("10.244.0.2")?;
    let listener = TcpListener::bind(endpoint)?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    lab.serve("measured", VIP.parse()?, Proto::TCP, &[endpoint])?;
    let asked: SocketAddr = ASKED.parse()?;
    let listener = TcpListener::bind(asked)?;
    std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
    lab.serve("asked", ASKED_VIP.parse()?, Proto::TCP, &[asked])?;
    let mut have = 0;
    for count in [1, 1_000, 10_000, 50_000] {
        if count > have {
            println!(
                "{count} services of 2 endpoints programmed from {have}: {:?}",
                program(lab, have, count)?
            );
            have = count;
        }
        connects(lab, count, endpoint)?;
        exchanges(lab, count, asked)?;
    }
    println!("one endpoint changed at {have} services: {:?}", change(lab)?);
    println!("all {have} services deleted: {:?}", delete(lab, have)?);
    Ok(())
}

fn name(i: u32) -> String {
    format!("s{i}")
}

/// Plans and writes services `from..to`.
fn program(lab: &mut Lab, from: u32, to: u32) -> Result<Duration> {
    let views: Vec<_> = (from..to)
        .map(|i| {
            let vip = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a60_1000 + i)), 80);
            let ends =
                [1, 2].map(|e| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + 2 * i + e)), 80));
            (
                service(&name(i), vip, Proto::TCP),
                slice(&name(i), true, Proto::TCP, &ends),
            )
        })
        .collect();
    let start = Instant::now();
    for (service, slice) in views {
        lab.planner.service(service);
        lab.planner.slice(slice);
    }
    let changes = lab.planner.plan();
    let planned = start.elapsed();
    lab.datapath.apply(&changes)?;
    println!(
        "  of that planning {planned:?}, writing {} entries {:?}",
        changes.entries(),
        start.elapsed() - planned
    );
    Ok(start.elapsed())
}

fn change(lab: &mut Lab) -> Result<Duration> {
    let start = Instant::now();
    lab.endpoints(&name(7), true, Proto::TCP, &["10.244.9.9:80".parse()?])?;
    Ok(start.elapsed())
}

fn delete(lab: &mut Lab, count: u32) -> Result<Duration> {
    let start = Instant::now();
    for i in 0..count {
        lab.planner.service_gone(&ObjectName::new("default", &name(i)));
    }
    lab.program()?;
    Ok(start.elapsed())
}

/// What a connection is to, and whether a hook sees it.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    to: SocketAddr,
    served: bool,
}

/// The endpoint without any hook, the endpoint past the hooks, the service.
fn kinds(endpoint: SocketAddr, vip: SocketAddr) -> [Kind; 3] {
    let kind = |name, to, served| Kind { name, to, served };
    [
        kind("without hooks", endpoint, false),
        kind("direct", endpoint, true),
        kind("through the service", vip, true),
    ]
}

/// This process enters the cgroup that is served, or the one around it.
fn enter(lab: &Lab, served: bool) -> Result<()> {
    let own = lab.config.cgroup.as_deref().context("the lab has a cgroup")?;
    let cgroup = if served { Some(own) } else { own.parent() };
    let procs = cgroup.context("a cgroup has a parent")?.join("cgroup.procs");
    Ok(std::fs::write(procs, std::process::id().to_string())?)
}

/// All kinds in turns; the median of each.
fn in_turns(
    lab: &Lab,
    kinds: [Kind; 3],
    mut once: impl FnMut(SocketAddr) -> Result<Duration>,
) -> Result<[Duration; 3]> {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (kind, times) in kinds.iter().zip(&mut times) {
            enter(lab, kind.served)?;
            for _ in 0..IN_A_ROW {
                times.push(once(kind.to).with_context(|| format!("to {} ({})", kind.to, kind.name))?);
            }
        }
    }
    enter(lab, true)?;
    Ok(times.map(median))
}

fn report(what: &str, count: u32, kinds: [Kind; 3], medians: [Duration; 3]) {
    let seconds = medians.map(|m| m.as_secs_f64());
    let each: Vec<_> = kinds
        .iter()
        .zip(medians)
        .map(|(k, m)| format!("{} {m:?}", k.name))
        .collect();
    println!(
        "{what} p50 at {count} services: {} ({:.3} × direct, {:.3} × without hooks)",
        each.join(", "),
        seconds[2] / seconds[1],
        seconds[2] / seconds[0],
    );
}

fn connects(lab: &Lab, count: u32, endpoint: SocketAddr) -> Result<()> {
    let kinds = kinds(endpoint, VIP.parse()?);
    let medians = in_turns(lab, kinds, |to| {
        let start = Instant::now();
        let stream = TcpStream::connect(to)?;
        let took = start.elapsed();
        ensure!(stream.peer_addr()? == to);
        Ok(took)
    })?;
    report("connect()", count, kinds, medians);
    Ok(())
}

/// Connect, request, response, close.
fn exchanges(lab: &Lab, count: u32, endpoint: SocketAddr) -> Result<()> {
    let kinds = kinds(endpoint, ASKED_VIP.parse()?);
    let medians = in_turns(lab, kinds, |to| {
        let start = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        stream.write_all(b"?")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        drop(stream);
        Ok(start.elapsed())
    })?;
    report("connect, request, response", count, kinds, medians);
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    if stream.read_exact(&mut byte).is_ok() {
        let _ = stream.write_all(&byte);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
