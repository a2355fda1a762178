//! How long planning takes: `cargo run --release -p agent-services --example plan [services]`.
//!
//! Prints microseconds on a processor, medians of several runs: everything from cold, from the maps of an earlier agent, and one endpoint that changed.
use agent_services::{
    EndpointView, Existing, Node, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView,
};
use datapath_abi::Proto;
use std::net::IpAddr;
use std::time::Duration;

const RUNS: usize = 11;

fn main() {
    let services = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    for external in [false, true] {
        let mut cold = Vec::new();
        let mut adopted = Vec::new();
        let mut changed = Vec::new();
        for _ in 0..RUNS {
            let mut planner = told(services, external, Existing::default());
            let (took, changes) = timed(|| planner.plan());
            cold.push(took);
            let mut maps = Existing::default();
            maps.apply(&changes);
            planner.slice(slice(7, 3));
            changed.push(timed(|| planner.plan()).0);
            let mut next = told(services, external, maps);
            adopted.push(timed(|| next.plan()).0);
        }
        let kind = if external { "LoadBalancer" } else { "ClusterIP" };
        println!(
            "{services} {kind} services x 2 endpoints: cold {} us, adopted {} us, one endpoint {} us",
            median(cold),
            median(adopted),
            median(changed)
        );
    }
}

/// Time on a processor, so that whatever else runs does not count.
fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = on_processor();
    let result = run();
    (on_processor().saturating_sub(start), result)
}

fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstats");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first field is a number"))
}

fn median(mut all: Vec<Duration>) -> u128 {
    all.sort();
    all[all.len() / 2].as_micros()
}

/// A planner that observed everything.
fn told(services: u32, external: bool, existing: Existing) -> Planner {
    let own: IpAddr = [192, 168, 0, 2].into();
    let node = Node {
        name: "here".into(),
        addresses: vec![own],
        node_port_addresses: vec![own],
        ..Node::default()
    };
    let mut planner = Planner::new(node, existing);
    for i in 0..services {
        planner.service(service(i, external));
        planner.slice(slice(i, 2));
    }
    planner
}

fn address(net: u8, i: u32) -> IpAddr {
    let [_, b, c, d] = i.to_be_bytes();
    [net, b, c, d].into()
}

fn name(i: u32) -> ObjectName {
    ObjectName::new("default", &format!("service-{i}"))
}

fn service(i: u32, external: bool) -> ServiceView {
    ServiceView {
        cluster_ips: vec![address(10, i)],
        balancer_ips: if external {
            vec![address(11, i)]
        } else {
            Vec::new()
        },
        ports: vec![PortView {
            name: "http".into(),
            proto: Proto::TCP,
            port: 80,
            node_port: if external { 1024 + i as u16 } else { 0 },
        }],
        ..ServiceView::new(name(i))
    }
}

fn slice(i: u32, endpoints: u32) -> SliceView {
    let endpoint = |n: u32| EndpointView {
        addr: address(12, i * 4 + n),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(if n == 0 { "here" } else { "there" }.into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    SliceView {
        name: format!("service-{i}-x").into(),
        service: name(i),
        ports: vec![SlicePort {
            name: "http".into(),
            proto: Proto::TCP,
            port: 8080,
        }],
        endpoints: (0..endpoints).map(endpoint).collect(),
    }
}
