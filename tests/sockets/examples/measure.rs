//! Figures of the data path, in namespaces of its own (root):
//! `cargo run --release -p tests-sockets --example measure`.
//!
//! connect() through a service against connect() to the endpoint itself, interleaved in one run, at several numbers of
//! services; and the time to program all of them from nothing, to change one endpoint, and to delete everything.
use agent_services::ObjectName;
use anyhow::{Context, Result, ensure};
use datapath_abi::Proto;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tests_lab::{Lab, isolated_and_shown, service, slice};

const ENDPOINT: &str = "10.244.0.2:8080";
const VIP: &str = "10.96.0.1:80";
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
    let mut have = 0;
    for count in [1, 1_000, 10_000] {
        if count > have {
            println!(
                "{count} services of 2 endpoints programmed from {have}: {:?}",
                program(lab, have, count)?
            );
            have = count;
        }
        connects(count, endpoint)?;
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

/// Both kinds in turns; prints the median of each and their quotient.
fn connects(count: u32, endpoint: SocketAddr) -> Result<()> {
    let vip: SocketAddr = VIP.parse()?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (to, times) in [(endpoint, &mut direct), (vip, &mut through)] {
            for _ in 0..IN_A_ROW {
                let start = Instant::now();
                let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
                times.push(start.elapsed());
                ensure!(stream.peer_addr()? == to);
            }
        }
    }
    let (d, t) = (median(direct), median(through));
    let quotient = t.as_secs_f64() / d.as_secs_f64();
    println!("connect() p50 at {count} services: direct {d:?}, through the service {t:?} ({quotient:.3} ×)");
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
