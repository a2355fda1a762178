//! The place of one peer: a node, a client pod and a server pod as network namespaces, joined by veth pairs and routed by
//! the node, with no way out. Everything in it ends with the process.
use crate::objects::{CLIENT, ENDPOINT_RANGE, NODE_ADDRESS, UDP_ENDPOINTS};
use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};
use std::fs;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

/// The node's side of the pods' devices.
pub const DEVICES: [&str; 2] = ["host-client", "host-server"];

/// Makes the namespaces. The caller has a network and a mount namespace of its own already.
///
/// # Errors
/// Whatever the kernel refused, by the command that asked for it.
pub fn build() -> Result<()> {
    // Locks, names of namespaces and pins of one peer are none of another's business.
    sh("mount -t tmpfs tmpfs /run")?;
    fs::create_dir_all("/run/netns")?;
    fs::create_dir_all("/run/bpf")?;
    sh("mount -t bpf bpf /run/bpf")?;
    sh("ip link set lo up")?;
    sh(&format!("ip addr add {NODE_ADDRESS}/32 dev lo"))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let [a, b] = UDP_ENDPOINTS;
    pod("client", &[CLIENT.to_owned()])?;
    pod("server", &[a.to_string(), b.to_string()])?;
    sh(&format!(
        "ip route add {ENDPOINT_RANGE} via {a} dev host-server onlink"
    ))?;
    sh(&format!("ip -n server route add local {ENDPOINT_RANGE} dev lo"))?;
    // The node's own processes may talk to services too.
    sh("ip route add unreachable default")
}

/// A process that does nothing in the client pod, as the pause container of a real one: whoever looks for the namespaces of
/// pods looks at processes, and the bench's clients are threads.
///
/// # Errors
/// It cannot be started.
pub fn pause() -> Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(["nsenter", "--net=/run/netns/client", "--", "sleep", "infinity"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("`setpriv` is missing: run `cargo xtask setup`")
}

fn pod(name: &str, addresses: &[String]) -> Result<()> {
    let device = format!("host-{name}");
    sh(&format!("ip netns add {name}"))?;
    sh(&format!(
        "ip link add {device} type veth peer name eth0 netns {name}"
    ))?;
    sh(&format!("ip addr add 169.254.1.1/32 dev {device}"))?;
    sh(&format!("ip link set {device} up"))?;
    sh(&format!("ip -n {name} link set lo up"))?;
    for address in addresses {
        sh(&format!("ip route add {address}/32 dev {device}"))?;
        sh(&format!("ip -n {name} addr add {address}/32 dev eth0"))?;
    }
    sh(&format!("ip -n {name} link set eth0 up"))?;
    sh(&format!("ip -n {name} route add 169.254.1.1 dev eth0"))?;
    sh(&format!(
        "ip -n {name} route add default via 169.254.1.1 dev eth0"
    ))
}

/// Runs a command of words without spaces.
///
/// # Errors
/// The command and what it said.
pub fn sh(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let out = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("{program} is missing: run `cargo xtask setup`"))?;
    if !out.status.success() {
        bail!("`{line}`: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Which processor a thread runs on: client and server each have one of their own.
#[derive(Clone, Copy, Debug)]
pub enum Cpu {
    Client,
    Server,
}

/// Runs `work` on a thread of its own in a pod, on one processor, and returns its handle.
///
/// # Errors
/// The pod does not exist.
pub fn within<T: Send + 'static>(
    pod: &str,
    cpu: Cpu,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<std::thread::JoinHandle<Result<T>>> {
    let namespace = fs::File::open(format!("/run/netns/{pod}")).context("the pod's namespace")?;
    Ok(std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        pin(cpu)?;
        work()
    }))
}

/// Binds the calling thread to its processor; a machine with one has nothing to choose.
fn pin(cpu: Cpu) -> Result<()> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(match cpu {
        Cpu::Client => 0,
        Cpu::Server => 1 % count,
    });
    sched_setaffinity(None, &set).context("the thread cannot be bound to a processor")
}
