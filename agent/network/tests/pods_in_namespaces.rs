//! The plugin and the node routes with real kernel namespaces. Needs root, `unshare`, `nsenter`, `ip`: `cargo xtask
//! setup` installs them.
//!
//! Each test makes its own namespaces, which have no way out, and ends them by ending the process that holds them.
#![allow(clippy::unwrap_used)]

use agent_network::link::{LinkError, Netlink, Route, VethEnd, Via};
use agent_network::netns::NetNs;
use agent_network::{Config, PeerNode, PodNetwork, cni, host_device, routes, sysctl};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A network namespace that lives as long as this value.
struct Space {
    holder: Child,
    path: PathBuf,
}

impl Space {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there: cargo xtask setup");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "these tests need root");
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        Self { holder, path }
    }

    fn run<T: Send>(&self, work: impl FnOnce(Netlink) -> Result<T, LinkError> + Send) -> T {
        NetNs::open(&self.path)
            .unwrap()
            .run(|netlink| async move { work(netlink) })
            .unwrap()
    }

    fn shell(&self, command: &str) -> String {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .args(["sh", "-c", command])
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(out.status.success(), "{command}: {text}");
        text
    }

    /// A node: loopback up, settings made, a pod network over `n`'s ranges.
    fn node(n: u8, dir: &Path) -> (Self, PodNetwork) {
        let space = Self::new();
        space.shell("ip link set lo up");
        let config = Config {
            pod_cidrs: vec![
                format!("10.244.{n}.0/24").parse().unwrap(),
                format!("fd00:10:244:{n}::/64").parse().unwrap(),
            ],
            state_file: dir.join(format!("ipam-{n}.json")),
            cni_conf_dir: dir.join(format!("net.d-{n}")),
            mtu: None,
        };
        let network = space.run(|_| Ok(PodNetwork::open(config).unwrap()));
        (space, network)
    }

    /// Calls the plugin as the container runtime would, in this namespace.
    fn cni(
        &self,
        command: &str,
        container: &str,
        uid: &str,
        pod: Option<&Space>,
        network: &PodNetwork,
    ) -> (bool, Value) {
        let addresses = network.allocate(uid).unwrap();
        let conf = json!({
            "cniVersion": "1.0.0", "name": "skep", "type": cni::PLUGIN,
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": PodNetwork::annotations(&addresses)},
        });
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .arg(env!("CARGO_BIN_EXE_skep-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env(
                "CNI_NETNS",
                pod.map_or_else(String::new, |p| p.path.display().to_string()),
            )
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_UID={uid}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(conf.to_string().as_bytes())
            .unwrap();
        let out = child.wait_with_output().unwrap();
        (
            out.status.success(),
            serde_json::from_slice(&out.stdout).unwrap_or(Value::Null),
        )
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Opens a TCP connection from one namespace to an address of the other, and sees who it comes from.
fn reach(from: &Space, to: &Space, ip: IpAddr) -> IpAddr {
    let listener = to.run(|_| Ok(TcpListener::bind((ip, 0)).unwrap()));
    let address = listener.local_addr().unwrap();
    let _open = from.run(|_| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap()));
    listener.accept().unwrap().1.ip()
}

#[test]
fn a_pod_is_reachable_from_its_node_at_once_over_both_families() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    let pod = Space::new();
    let (ok, result) = node.cni("ADD", "c1", "uid-1", Some(&pod), &network);
    assert!(ok, "{result}");
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    node.shell("ip address add 10.89.0.11/32 dev lo; ip address add fd89::11/128 dev lo");
    for ip in network.allocate("uid-1").unwrap().ips {
        reach(&node, &pod, ip);
    }
    let ips = network.allocate("uid-1").unwrap().ips;
    assert_eq!(reach(&pod, &node, "10.89.0.11".parse().unwrap()), ips[0]);
    assert_eq!(reach(&pod, &node, "fd89::11".parse().unwrap()), ips[1]);
    assert!(node.cni("CHECK", "c1", "uid-1", Some(&pod), &network).0);
}

#[test]
fn two_pods_of_a_node_reach_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    let (a, b) = (Space::new(), Space::new());
    assert!(node.cni("ADD", "ca", "a", Some(&a), &network).0);
    assert!(node.cni("ADD", "cb", "b", Some(&b), &network).0);
    for ip in network.allocate("b").unwrap().ips {
        reach(&a, &b, ip);
    }
}

#[test]
fn removing_is_idempotent_and_needs_no_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    let pod = Space::new();
    assert!(node.cni("DEL", "c1", "uid-1", None, &network).0);
    assert!(node.cni("ADD", "c1", "uid-1", Some(&pod), &network).0);
    assert!(node.cni("DEL", "c1", "uid-1", Some(&pod), &network).0);
    assert!(node.cni("DEL", "c1", "uid-1", None, &network).0);
    assert!(!node.shell("ip -o link").contains("skep-"));
    let (ok, broken) = node.cni("CHECK", "c1", "uid-1", Some(&pod), &network);
    assert!(
        !ok && broken["msg"].as_str().unwrap().contains("is gone"),
        "{broken}"
    );
}

#[test]
fn a_late_removal_of_an_old_sandbox_leaves_the_new_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    let (old, new) = (Space::new(), Space::new());
    assert!(node.cni("ADD", "old", "uid-1", Some(&old), &network).0);
    assert!(node.cni("ADD", "new", "uid-1", Some(&new), &network).0);
    assert!(node.cni("DEL", "old", "uid-1", None, &network).0);
    assert!(node.cni("CHECK", "new", "uid-1", Some(&new), &network).0);
    assert!(node.shell("ip -o link").contains(&host_device("uid-1")));
}

#[test]
fn a_failed_add_leaves_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    let pod = Space::new();
    pod.shell("ip link add eth0 type veth peer name other");
    let (ok, error) = node.cni("ADD", "c1", "uid-1", Some(&pod), &network);
    assert!(!ok);
    assert!(
        error["msg"].as_str().unwrap().contains("make the veth pair"),
        "{error}"
    );
    assert!(!node.shell("ip -o link").contains("skep-"));
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_plain_routes() {
    let dir = tempfile::tempdir().unwrap();
    let ((a, net_a), (b, net_b)) = (Space::node(1, dir.path()), Space::node(2, dir.path()));
    let there = NetNs::open(&b.path).unwrap();
    NetNs::open(&a.path)
        .unwrap()
        .run(|netlink| async move {
            let (here, peer) = (
                VethEnd {
                    name: "eth0",
                    mac: [2, 0, 0, 0, 0, 1],
                },
                VethEnd {
                    name: "eth0",
                    mac: [2, 0, 0, 0, 0, 2],
                },
            );
            netlink.add_veth(&here, &peer, there.raw(), "wire", None).await
        })
        .unwrap();
    for (space, n) in [(&a, 1), (&b, 2)] {
        space.shell(&format!(
            "ip address add 10.89.0.1{n}/24 dev eth0; ip address add fd89::1{n}/64 dev eth0 nodad; ip link set eth0 up"
        ));
    }
    sync(&a, &net_a, &[peer(2)]);
    sync(&b, &net_b, &[peer(1)]);
    let (pod_a, pod_b) = (Space::new(), Space::new());
    assert!(a.cni("ADD", "ca", "a", Some(&pod_a), &net_a).0);
    assert!(b.cni("ADD", "cb", "b", Some(&pod_b), &net_b).0);
    for ip in net_b.allocate("b").unwrap().ips {
        reach(&pod_a, &pod_b, ip);
    }
}

fn peer(n: u8) -> PeerNode {
    PeerNode {
        name: format!("n{n}"),
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().unwrap(),
            format!("fd00:10:244:{n}::/64").parse().unwrap(),
        ],
        node_ips: vec![
            format!("10.89.0.1{n}").parse().unwrap(),
            format!("fd89::1{n}").parse().unwrap(),
        ],
    }
}

fn sync(space: &Space, network: &PodNetwork, peers: &[PeerNode]) {
    NetNs::open(&space.path)
        .unwrap()
        .run(|_| async { Ok::<_, LinkError>(network.sync_node_routes(peers).await) })
        .unwrap()
        .unwrap();
}

#[test]
fn node_routes_follow_the_peers_and_foreign_routes_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    node.shell("ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up");
    node.shell("ip address add 10.89.0.11/24 dev eth0; ip address add fd89::11/64 dev eth0 nodad");
    node.shell("ip route add 10.200.0.0/16 via 10.89.0.77");
    sync(&node, &network, &[peer(2), peer(3)]);
    let table = node.shell("ip route; ip -6 route");
    assert!(table.contains("10.244.2.0/24 via 10.89.0.12"), "{table}");
    assert!(table.contains("fd00:10:244:3::/64 via fd89::13"), "{table}");
    assert!(table.contains("unreachable 10.244.1.0/24"), "{table}");
    let moved = PeerNode {
        node_ips: peer(4).node_ips,
        ..peer(2)
    };
    sync(&node, &network, &[moved]);
    let table = node.shell("ip route; ip -6 route");
    assert!(table.contains("10.244.2.0/24 via 10.89.0.14"), "{table}");
    assert!(table.contains("fd00:10:244:2::/64 via fd89::14"), "{table}");
    assert!(
        !table.contains("10.89.0.12") && !table.contains("fd89::12"),
        "{table}"
    );
    assert!(!table.contains("10.244.3.0"), "{table}");
    assert!(table.contains("10.200.0.0/16 via 10.89.0.77"), "{table}");
}

#[test]
fn a_second_sync_finds_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (node, network) = Space::node(1, dir.path());
    node.shell("ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up");
    node.shell("ip address add 10.89.0.11/24 dev eth0; ip address add fd89::11/64 dev eth0 nodad");
    sync(&node, &network, &[peer(2)]);
    let wanted = routes::wanted(network.pod_cidrs(), &[peer(2)]);
    let again = NetNs::open(&node.path)
        .unwrap()
        .run(|netlink| async move { routes::sync(&netlink, &wanted).await })
        .unwrap();
    assert_eq!(again, routes::Diff::default());
}

#[test]
fn addresses_survive_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (space, network) = Space::node(1, dir.path());
    let before = network.allocate("uid-1").unwrap();
    let config = Config {
        pod_cidrs: network.pod_cidrs().to_vec(),
        state_file: dir.path().join("ipam-1.json"),
        cni_conf_dir: dir.path().join("net.d-1"),
        mtu: None,
    };
    drop(network);
    let network = space.run(|_| {
        sysctl::forward().unwrap();
        Ok(PodNetwork::open(config).unwrap())
    });
    assert_eq!(network.allocate("uid-1").unwrap(), before);
    assert_ne!(network.allocate("uid-2").unwrap().ips, before.ips);
    assert!(dir.path().join("net.d-1").join(cni::CONF_FILE).is_file());
}

#[test]
fn a_route_through_a_gateway_of_the_other_family_is_refused_in_words() {
    let space = Space::new();
    let route = Route {
        to: "10.0.0.0/24".parse().unwrap(),
        via: Via::Gateway("fd89::1".parse().unwrap()),
    };
    let error = NetNs::open(&space.path)
        .unwrap()
        .run(|netlink| async move { Ok::<_, LinkError>(netlink.add_route(&route, 83).await) })
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/24"), "{error}");
}
