//! A place for one test: a process in a network and mount namespace of its own, with a bpffs and a cgroup, all of which end
//! with it. No route leads out of it, so made-up addresses stay inside.
mod build;
mod lan;
mod load;
pub use build::*;
pub use lan::*;
pub use load::*;

use agent_datapath::{Datapath, DatapathConfig, Sizes};
use agent_services::{
    EndpointView, Existing, Node, ObjectName, Planner, PortView, ServiceView, SlicePort, SliceView,
};
use anyhow::{Context, Result, bail, ensure};
use datapath_abi::Proto;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const INSIDE: &str = "SKEP_TEST_INSIDE";

/// Runs `body` in namespaces of its own, as another process of this test binary. `test` is the test's name.
pub fn isolated(test: &str, body: impl FnOnce(&mut Lab) -> Result<()>) {
    run_isolated(test, true, body);
}

/// The same, where no socket hook serves anybody: everything goes the way of packets.
pub fn isolated_without_hooks(test: &str, body: impl FnOnce(&mut Lab) -> Result<()>) {
    run_isolated(test, false, body);
}

/// As [`isolated`], for a program that measures: what `body` printed goes to our own output.
pub fn isolated_and_shown(test: &str, body: impl FnOnce(&mut Lab) -> Result<()>) {
    print!("{}", run_isolated(test, true, body));
}

fn run_isolated(test: &str, hooks: bool, body: impl FnOnce(&mut Lab) -> Result<()>) -> String {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        let mut lab =
            Lab::enter(test, hooks).unwrap_or_else(|e| panic!("cannot make a place for the test: {e:?}"));
        body(&mut lab).unwrap_or_else(|e| panic!("{e:#}"));
        return String::new();
    }
    let cgroup = cgroup_path(test);
    // Its output is kept for a failure: mixed into ours, its results would be counted twice.
    let inner = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().expect("a test knows its own file"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .env("SKEP_TEST_CGROUP", &cgroup)
        .output();
    // The process is gone, its cgroup is empty.
    let _ = fs::remove_dir(&cgroup);
    let inner = inner.unwrap_or_else(|e| panic!("`unshare` is missing ({e}): run `cargo xtask setup`"));
    assert!(
        inner.status.success(),
        "{test} failed in its namespaces (needs root): {}\n{}{}",
        inner.status,
        String::from_utf8_lossy(&inner.stdout),
        String::from_utf8_lossy(&inner.stderr)
    );
    String::from_utf8_lossy(&inner.stdout).into_owned()
}

/// A cgroup2 folder of a unique name.
pub fn cgroup_path(test: &str) -> PathBuf {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|p| {
            Path::new(p).join("cgroup.procs").exists() && Path::new(p).join("cgroup.subtree_control").exists()
        })
        .unwrap_or_else(|| panic!("no cgroup2 is mounted: run `cargo xtask setup`"));
    Path::new(root).join(format!("skep-test-{}-{test}", std::process::id()))
}

/// The place itself, with a data path and a planner for the node `here`.
pub struct Lab {
    pub config: DatapathConfig,
    pub datapath: Datapath,
    pub planner: Planner,
    own_cgroup: PathBuf,
    /// Nothing was written yet by this agent.
    first: bool,
}

/// A node's name in tests.
pub const NODE: &str = "here";

impl Lab {
    /// The place that the caller's namespaces become, with socket hooks on the cgroup that `SKEP_TEST_CGROUP` names, if there shall be
    /// any. [`isolated`] does this for a test.
    pub fn enter(test: &str, hooks: bool) -> Result<Self> {
        let pins = std::env::temp_dir().join(format!("skep-test-bpf-{}", std::process::id()));
        fs::create_dir_all(&pins)?;
        run(&["mount", "-t", "bpf", "bpf", &pins.to_string_lossy()])?;
        // The mount is private to this process; the empty folder under it would stay.
        run(&["ip", "link", "set", "lo", "up"])?;
        without_waiting()?;
        let cgroup = PathBuf::from(std::env::var("SKEP_TEST_CGROUP").context("set by the outer process")?);
        fs::create_dir(&cgroup).with_context(|| format!("cannot make {} for {test}", cgroup.display()))?;
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())?;
        let config = DatapathConfig {
            pin_dir: pins.join("node"),
            cgroup: hooks.then(|| cgroup.clone()),
            service_ranges: vec![("10.96.0.0".parse()?, 16), ("fd00:10:96::".parse()?, 112)],
            sizes: Some(Sizes {
                frontends: 1 << 17,
                backends: 1 << 18,
                owners: 1 << 16,
                replies: 1 << 10,
                flows: 1 << 16,
                ..Sizes::for_memory(1 << 28)
            }),
        };
        let datapath = Datapath::open(&config)?;
        Ok(Self {
            datapath,
            planner: Planner::new(node(), Existing::default()),
            config,
            own_cgroup: cgroup,
            first: true,
        })
    }

    /// Gives loopback an address.
    pub fn address(&self, ip: &str) -> Result<()> {
        let v6 = ip.contains(':');
        let bits = if v6 { "128" } else { "32" };
        let mut args = vec!["ip", "addr", "add"];
        let with_bits = format!("{ip}/{bits}");
        args.extend([with_bits.as_str(), "dev", "lo"]);
        if v6 {
            args.push("nodad");
        }
        run(&args)?;
        reachable(ip.parse()?)
    }

    /// Plans and writes a service `default/<name>` at `vip` with these endpoints; none removes nothing but its endpoints.
    pub fn serve(
        &mut self,
        name: &str,
        vip: SocketAddr,
        proto: Proto,
        endpoints: &[SocketAddr],
    ) -> Result<()> {
        self.planner.service(service(name, vip, proto));
        self.endpoints(name, vip.is_ipv4(), proto, endpoints)
    }

    /// Replaces the endpoints of a service.
    pub fn endpoints(&mut self, name: &str, v4: bool, proto: Proto, endpoints: &[SocketAddr]) -> Result<()> {
        self.planner.slice(slice(name, v4, proto, endpoints));
        self.program()
    }

    /// Carries out what the planner wants, as an agent does, and looks whether anything is left of what is gone.
    pub fn program(&mut self) -> Result<()> {
        self.datapath.apply(&self.planner.plan())?;
        let in_use = self.planner.in_use();
        if std::mem::take(&mut self.first) {
            self.datapath.commit()?;
            self.datapath.end_others(&in_use)?;
        }
        let found = self.datapath.audit(&in_use)?;
        ensure!(found.is_empty(), "what is gone is still named: {found:#?}");
        Ok(())
    }

    /// Another agent on the same pins, as after a restart.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_as(agent_datapath::built_in_object())
    }

    /// The same with the programs of another build.
    pub fn restart_as(&mut self, object: &[u8]) -> Result<()> {
        self.datapath = Datapath::open_build(&self.config, object)?;
        self.first = true;
        self.planner = Planner::new(node(), self.datapath.existing()?);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mount = self
            .config
            .pin_dir
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        let _ = Datapath::remove(&self.config.pin_dir);
        // Back to the parent, so that the outer process can remove the folder at once.
        if let Some(parent) = self.own_cgroup.parent() {
            let _ = fs::write(parent.join("cgroup.procs"), std::process::id().to_string());
        }
        let _ = run(&["umount", &mount.to_string_lossy()]);
        let _ = fs::remove_dir(&mount);
    }
}

fn node() -> Node {
    Node {
        name: NODE.into(),
        ..Node::default()
    }
}

/// A service of one port named `p`.
pub fn service(name: &str, vip: SocketAddr, proto: Proto) -> ServiceView {
    ServiceView {
        cluster_ips: vec![vip.ip()],
        ports: vec![PortView {
            name: "p".into(),
            proto,
            port: vip.port(),
            node_port: 0,
        }],
        ..ServiceView::new(ObjectName::new("default", name))
    }
}

/// A slice of endpoints that share one port.
pub fn slice(name: &str, v4: bool, proto: Proto, endpoints: &[SocketAddr]) -> SliceView {
    let port = endpoints.first().map_or(1, SocketAddr::port);
    SliceView {
        name: format!("{name}-{}", if v4 { 4 } else { 6 }).into(),
        service: ObjectName::new("default", name),
        ports: vec![SlicePort {
            name: "p".into(),
            proto,
            port,
        }],
        endpoints: endpoints.iter().map(|e| endpoint(e.ip())).collect(),
    }
}

fn endpoint(addr: IpAddr) -> EndpointView {
    EndpointView {
        addr,
        ready: true,
        serving: true,
        terminating: false,
        node: Some(Arc::from(NODE)),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

/// Until an address that was just added receives: for IPv6 the kernel makes it a local one a moment later, on a worker of its own.
fn reachable(ip: IpAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !hears_itself(ip).unwrap_or(false) {
        if Instant::now() > deadline {
            bail!("{ip} does not become an address of this node");
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn hears_itself(ip: IpAddr) -> std::io::Result<bool> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    socket.send_to(b"?", socket.local_addr()?)?;
    Ok(socket.recv(&mut [0; 8]).is_ok())
}

/// In the calling thread's network namespace, devices use their IPv6 addresses at once: the kernel would look for a second or two
/// first whether somebody else has them, and ask for no neighbour until then.
pub(crate) fn without_waiting() -> std::io::Result<()> {
    for of in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0")?;
    }
    Ok(())
}

/// Runs a command in this thread's namespaces.
pub fn run(args: &[&str]) -> Result<()> {
    let out = Command::new(args[0])
        .args(&args[1..])
        .output()
        .with_context(|| format!("{} is missing: run `cargo xtask setup`", args[0]))?;
    if !out.status.success() {
        bail!(
            "`{}`: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// A pod: a network namespace with one device, routed by the node, whose side of it is served per packet.
pub struct Pod {
    /// The host's side of the device.
    pub device: String,
    namespace: PathBuf,
}

impl Lab {
    /// Makes the node forward, and gives it a place for the names of namespaces that ends with the test.
    pub fn forward(&self) -> Result<()> {
        fs::create_dir_all("/run/netns")?;
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        Ok(())
    }

    /// Adds a pod with these two addresses.
    pub fn pod(&self, name: &str, v4: &str, v6: &str) -> Result<Pod> {
        let device = format!("host-{name}");
        let sh = |line: &str| run(&line.split(' ').collect::<Vec<_>>());
        sh(&format!("ip netns add {name}"))?;
        let pod = Pod {
            device: device.clone(),
            namespace: Path::new("/run/netns").join(name),
        };
        pod.within(without_waiting)??;
        sh(&format!(
            "ip link add {device} type veth peer name eth0 netns {name}"
        ))?;
        sh(&format!("ip addr add 169.254.1.1/32 dev {device}"))?;
        sh(&format!("ip addr add fe80::1/64 dev {device} nodad"))?;
        sh(&format!("ip link set {device} up"))?;
        sh(&format!("ip route add {v4}/32 dev {device}"))?;
        sh(&format!("ip -6 route add {v6}/128 dev {device}"))?;
        for line in [
            "link set lo up".to_owned(),
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "route add 169.254.1.1 dev eth0".to_owned(),
            "route add default via 169.254.1.1 dev eth0".to_owned(),
            "-6 route add default via fe80::1 dev eth0".to_owned(),
        ] {
            sh(&format!("ip -n {name} {line}"))?;
        }
        self.datapath.attach_pod_device(&device)?;
        Ok(pod)
    }
}

impl Pod {
    /// Runs something in the pod, on a thread of its own; sockets it returns stay in the pod.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        match self.start(work)?.join() {
            Ok(result) => result,
            Err(_) => bail!("the work in the pod panicked"),
        }
    }

    /// The same without waiting for its end.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let namespace = fs::File::open(&self.namespace)?;
        Ok(std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            use std::os::fd::AsFd as _;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        }))
    }
}
