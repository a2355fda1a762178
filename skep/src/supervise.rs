//! The supervisor of a cluster: owns the router's network namespace, keeps server and nodes running.
use crate::keeper::{Keeper, Step, logged};
use crate::layout::{Cluster, ETCD_PORT, Node, POD_RANGES, StoreKind, lan_addresses, lan_length};
use crate::process::Process;
use crate::{config, kernel, node};
use agent_network::Prefix;
use agent_network::link::{self, LinkError, Netlink, Route, VethEnd, Via};
use agent_network::netns::NetNs;
use agent_network::sysctl;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

/// The device in the router that all nodes are plugged into: the emulated switch.
const SWITCH: &str = "skep-lan";
/// The route protocol number of what the supervisor sets up in router and nodes ("static", as an operator would).
const STATIC: u8 = 4;

/// `skep supervise`: runs until it is told to stop. Standard input is the socket on which the API is reached from the
/// machine's own network.
///
/// # Errors
/// What keeps the cluster from being run at all; single processes are started again instead.
pub fn run(cluster: &Cluster) -> Result<()> {
    // Fails only if it leads a session already, which is as good.
    let _ = rustix::process::setsid();
    let api = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("standard input is not open")?;
    let mut steps = Vec::new();
    if !cluster.host {
        kernel::own_network()?;
        router().context("cannot set up the router")?;
    }
    if cluster.host && kernel::bpffs()? {
        std::fs::write(cluster.dirs().own_bpffs(), "").context("cannot note that the bpffs is ours")?;
    }
    if cluster.store == StoreKind::Etcd {
        steps.push(etcd(cluster));
    }
    steps.push(server(cluster, api));
    if cluster.host {
        steps.extend(cluster.nodes().iter().flat_map(|n| node::steps(cluster, n)));
    } else {
        for (number, member) in (1..).zip(cluster.nodes()) {
            let at = member.clone();
            steps.push(node::step(cluster, &member, move |pid| connect(number, &at, pid)));
        }
    }
    let record = cluster.dirs().processes();
    let keeper = Keeper::new(steps, move |running| {
        if let Err(e) = record_processes(&record, running) {
            tracing::error!("{e:#}");
        }
    })?;
    keeper.run();
    Ok(())
}

/// Writes which processes run, so that `skep down` finds them even when the supervisor is gone.
fn record_processes(path: &Path, running: &[(String, Process)]) -> Result<()> {
    let mut all: BTreeMap<&str, Process> = running.iter().map(|(name, p)| (name.as_str(), *p)).collect();
    if let Some(own) = Process::of(std::process::id()) {
        all.insert(SUPERVISOR, own);
    }
    config::write_private(path, serde_json::to_string_pretty(&all)?.as_bytes())
}

/// The supervisor's name among the recorded processes.
pub const SUPERVISOR: &str = "supervisor";

/// The recorded processes of a cluster, the supervisor among them; empty when none were.
pub fn recorded(path: &Path) -> BTreeMap<String, Process> {
    std::fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn etcd(cluster: &Cluster) -> Step {
    let (data, log) = (cluster.dirs().etcd(), cluster.dirs().log("etcd"));
    Step::keep("etcd", move || {
        std::fs::create_dir_all(&data)?;
        let url = format!("http://127.0.0.1:{ETCD_PORT}");
        let peers = format!("http://127.0.0.1:{}", ETCD_PORT + 1);
        let mut command = crate::tethered();
        command
            .args(["etcd", "--name", "skep"])
            .arg("--data-dir")
            .arg(&data);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args([
            "--listen-peer-urls",
            &peers,
            "--initial-advertise-peer-urls",
            &peers,
        ]);
        command
            .arg("--initial-cluster")
            .arg(format!("skep={peers}"))
            .args(["--log-level", "warn"]);
        logged(command, &log)
    })
}

fn server(cluster: &Cluster, api: std::os::fd::OwnedFd) -> Step {
    let (config, log) = (
        cluster.dirs().run.join("server.yaml"),
        cluster.dirs().log("server"),
    );
    Step::keep("server", move || {
        let mut command = crate::tethered();
        command
            .arg(crate::binary())
            .arg("server")
            .arg("--config")
            .arg(&config);
        let mut command = logged(command, &log)?;
        // The supervisor keeps the socket open: connections wait in it while the server is started again.
        command.stdin(Stdio::from(api.try_clone()?));
        Ok(command)
    })
}

fn prefix_of_all(v4: bool) -> Prefix {
    let any: IpAddr = if v4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    Prefix::containing(any, 0).expect("zero bits fit every address")
}

/// Sets up this network namespace as router: the switch with the router's addresses, and an end for everything that is
/// meant for elsewhere.
fn router() -> Result<(), LinkError> {
    sysctl::forward()
        .and_then(|()| sysctl::no_address_probing())
        .map_err(LinkError::Setting)?;
    link::block_on(|netlink| async move {
        netlink.up(netlink.get("lo").await?.index).await?;
        netlink.add_bridge(SWITCH, [0x02, 0x89, 0, 0, 0, 1]).await?;
        let switch = netlink.get(SWITCH).await?.index;
        netlink.up(switch).await?;
        for ip in lan_addresses(1) {
            netlink.add_address(switch, ip, lan_length(ip)).await?;
            netlink
                .add_route(
                    &Route {
                        to: prefix_of_all(ip.is_ipv4()),
                        via: Via::Unreachable,
                    },
                    STATIC,
                )
                .await?;
        }
        // The API server forwards requests to pods; the first node knows the way to those of all others.
        for (range, via) in POD_RANGES.iter().zip(lan_addresses(11)) {
            if let Ok(to) = range.parse() {
                let via = Via::GatewayOn(via, switch);
                netlink.add_route(&Route { to, via }, STATIC).await?;
            }
        }
        Ok(())
    })
}

/// Plugs a node into the switch and gives it its addresses.
fn connect(number: u8, node: &Node, pid: u32) -> Result<()> {
    let space = NetNs::open(Path::new(&format!("/proc/{pid}/ns/net")))?;
    let port = format!("skep-n{number}");
    let raw = space.raw();
    link::block_on(|netlink| async move {
        // A node that is started again: its old end may still be on its way out.
        netlink.delete(&port).await?;
        let here = VethEnd {
            name: &port,
            mac: [0x02, 0x89, 0, 1, 0, number],
        };
        let there = VethEnd {
            name: "eth0",
            mac: [0x02, 0x89, 0, 2, 0, number],
        };
        netlink.add_veth(&here, &there, raw, "node", None).await?;
        let end = netlink.get(&port).await?.index;
        netlink.join_bridge(end, netlink.get(SWITCH).await?.index).await?;
        netlink.up(end).await
    })
    .and_then(|()| space.run(|netlink| inside(netlink, &node.ips)))
    .with_context(|| format!("cannot connect {} to the cluster's network", node.name))
}

async fn inside(netlink: Netlink, ips: &[IpAddr]) -> Result<(), LinkError> {
    sysctl::no_address_probing().map_err(LinkError::Setting)?;
    sysctl::set_if_there("ipv6/conf/eth0/accept_dad", "0").map_err(LinkError::Setting)?;
    netlink.up(netlink.get("lo").await?.index).await?;
    let device = netlink.get("eth0").await?.index;
    netlink.up(device).await?;
    for ip in ips {
        netlink.add_address(device, *ip, lan_length(*ip)).await?;
    }
    for gateway in lan_addresses(1) {
        let to = prefix_of_all(gateway.is_ipv4());
        netlink
            .add_route(
                &Route {
                    to,
                    via: Via::Gateway(gateway),
                },
                STATIC,
            )
            .await?;
    }
    Ok(())
}

/// Starts the supervisor of a prepared cluster in the background, with the listening socket of the API.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(cluster: &Cluster, api: std::net::TcpListener) -> Result<std::process::Child> {
    let log = crate::keeper::open_log(&cluster.dirs().log(SUPERVISOR))?;
    let mut command = Command::new(crate::binary());
    command.args(["supervise", "--name", &cluster.name.to_string()]);
    command
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(api)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .env("NO_COLOR", "1");
    command.spawn().context("cannot start the supervisor")
}
