//! Answers for addresses that no device has, between two real kernel namespaces. Needs root, `unshare`, `nsenter`, `ip`:
//! `cargo xtask setup` installs them.
#![allow(clippy::unwrap_used)]

use agent_network::announce::{self, Owned};
use agent_network::interfaces;
use agent_network::netns::NetNs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

const OWNER_MAC: &str = "02:00:00:00:77:01";
const V4: &str = "10.77.0.50";
const V6: &str = "fd77::50";

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

    fn shell(&self, command: &str) -> String {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .args(["sh", "-ec", command])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{command}: {error}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Sends a datagram, so that the kernel asks who has the address.
    fn ask_for(&self, address: &str) {
        let (path, to) = (self.path.clone(), (address.parse::<IpAddr>().unwrap(), 9));
        std::thread::spawn(move || {
            NetNs::open(&path).unwrap().enter().unwrap();
            let any: IpAddr = if to.0.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let _ = UdpSocket::bind((any, 0)).unwrap().send_to(b"x", to);
        })
        .join()
        .unwrap();
    }

    fn neighbour(&self, address: &str) -> String {
        self.shell(&format!("ip neigh show {address} dev eth0"))
    }

    /// Looks, by a process each time, until the neighbour entry is as wanted.
    fn wait_for(&self, address: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let entry = self.neighbour(address);
            if wanted(&entry) {
                return entry;
            }
            assert!(Instant::now() < end, "{address} is {entry:?}");
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The owner's namespace with its announcer, and another on the same link.
struct World {
    owned: watch::Sender<Owned>,
    other: Space,
    _owner: Space,
    _stop: oneshot::Sender<()>,
}

fn world() -> World {
    let (owner, other) = (Space::new(), Space::new());
    other.shell(&format!(
        "ip link add eth0 type veth peer name uplink address {OWNER_MAC}; ip link set uplink netns {}; ip link set eth0 up; \
         ip addr add 10.77.0.2/24 dev eth0; ip addr add fd77::2/64 dev eth0 nodad",
        owner.holder.id()
    ));
    owner.shell(
        "sysctl -qw net.ipv6.conf.uplink.accept_dad=0; ip link set uplink up; ip addr add 10.77.0.1/24 dev uplink; \
         ip addr add fd77::1/64 dev uplink nodad",
    );
    other.shell(
        "sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 down; ip link set eth0 up; \
         ip addr replace fd77::2/64 dev eth0 nodad",
    );
    let (owned, answered) = watch::channel(Owned::new());
    let (stop, stopped) = oneshot::channel::<()>();
    let path = owner.path.clone();
    std::thread::spawn(move || {
        NetNs::open(&path).unwrap().enter().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (devices, work) = interfaces::watch().await.unwrap();
            tokio::select! {
                () = work => panic!("the watch of devices ended"),
                () = announce::run(devices, answered) => panic!("it never ends"),
                _ = stopped => {}
            }
        });
    });
    World {
        owned,
        other,
        _owner: owner,
        _stop: stop,
    }
}

/// Both addresses, claimed so often.
fn both(times: u64) -> Owned {
    let addresses = [V4, V6].iter();
    addresses.map(|ip| (ip.parse().unwrap(), times)).collect()
}

#[test]
fn whoever_asks_for_an_owned_address_hears_where_it_is_and_nothing_once_it_is_not() {
    let world = world();
    world.owned.send_replace(both(0));
    for address in [V4, V6] {
        world.other.ask_for(address);
        world.other.wait_for(address, |entry| entry.contains(OWNER_MAC));
    }
    world.owned.send_replace(Owned::new());
    for address in [V4, V6] {
        world
            .other
            .shell(&format!("ip neigh flush to {address} dev eth0"));
        world.other.ask_for(address);
        let entry = world.other.wait_for(address, |entry| entry.contains("FAILED"));
        assert!(!entry.contains(OWNER_MAC), "{entry}");
    }
}

#[test]
fn an_address_that_nobody_gave_this_node_is_not_answered_for() {
    let world = world();
    world.owned.send_replace(both(0));
    for address in ["10.77.0.51", "fd77::51"] {
        world.other.ask_for(address);
        world.other.wait_for(address, |entry| entry.contains("FAILED"));
    }
}

#[test]
fn a_new_owner_takes_over_from_the_old_one_without_being_asked() {
    let world = world();
    for address in [V4, V6] {
        let stale = format!("ip neigh replace {address} lladdr 02:00:00:00:77:99 dev eth0 nud stale");
        world.other.shell(&stale);
    }
    let begun = Instant::now();
    world.owned.send_replace(both(0));
    for address in [V4, V6] {
        world.other.wait_for(address, |entry| entry.contains(OWNER_MAC));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn an_owner_that_claims_its_addresses_anew_takes_them_back_without_being_asked() {
    let world = world();
    world.owned.send_replace(both(0));
    for address in [V4, V6] {
        world.other.ask_for(address);
        world.other.wait_for(address, |entry| entry.contains(OWNER_MAC));
        let other = format!("ip neigh replace {address} lladdr 02:00:00:00:77:99 dev eth0 nud stale");
        world.other.shell(&other);
    }
    let begun = Instant::now();
    world.owned.send_replace(both(1));
    for address in [V4, V6] {
        world.other.wait_for(address, |entry| entry.contains(OWNER_MAC));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
