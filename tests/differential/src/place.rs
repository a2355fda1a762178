//! The node's devices and what lies beyond them: a pod that asks, pods that are endpoints, and everybody else behind the uplink.
use crate::probe::Client;
use crate::wire::{FAR_MAC, NODE_MAC, Wire};
use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;
use tests_lab::run;

/// Where a packet can come out, or be sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The pod that asks.
    Client,
    /// The node's other pods.
    Ends,
    /// The far end of the uplink.
    Beyond,
}

impl At {
    pub const ALL: [Self; 3] = [Self::Client, Self::Ends, Self::Beyond];

    fn namespace(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Ends => "ends",
            Self::Beyond => "beyond",
        }
    }

    /// The node's device that leads there.
    pub fn device(self) -> &'static str {
        match self {
            Self::Client => "host-client",
            Self::Ends => "host-ends",
            Self::Beyond => tests_lab::UPLINK,
        }
    }

    /// Where a client's packets come from.
    pub fn of(client: Client) -> Self {
        match client {
            Client::PodPackets | Client::PodSelf | Client::PodSocket => Self::Client,
            Client::Node | Client::Outside | Client::Elsewhere | Client::RemotePod => Self::Beyond,
        }
    }
}

/// The node's addresses, the primary one of each family first; node ports are served at those.
pub const NODE_IPS: [&str; 4] = ["10.89.0.11", "fd89::11", "10.89.1.21", "fd89:1::21"];
/// The ranges of pods and of services.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// What nobody serves: routed to the uplink, and to the endpoints.
pub const FENCE_BEYOND: &str = "198.18.0.1";
pub const FENCE_ENDS: &str = "198.18.1.1";

/// `ip` commands, one in each line. `{near}` and `{far}` are Ethernet addresses.
const CLIENT: &str = "
-n client addr add 10.244.0.2/32 dev eth0
-n client addr add fd00:10:244::2/128 dev eth0 nodad
-n client neigh replace 169.254.1.1 lladdr {near} dev eth0 nud permanent
-n client neigh replace fe80::1 lladdr {near} dev eth0 nud permanent
-n client route add default via 169.254.1.1 dev eth0 onlink
-n client -6 route add default via fe80::1 dev eth0
neigh replace 169.254.1.2 lladdr {far} dev host-client nud permanent
neigh replace fe80::2 lladdr {far} dev host-client nud permanent
route add 10.244.0.2/32 via 169.254.1.2 dev host-client onlink
route add 10.244.0.32/32 via 169.254.1.2 dev host-client onlink
route add 10.244.0.64/26 via 169.254.1.2 dev host-client onlink
-6 route add fd00:10:244::2/128 via fe80::2 dev host-client
-6 route add fd00:10:244::3:0/112 via fe80::2 dev host-client
-6 route add fd00:10:244::4:0/112 via fe80::2 dev host-client";

const ENDS: &str = "
neigh replace 169.254.1.2 lladdr {far} dev host-ends nud permanent
neigh replace fe80::2 lladdr {far} dev host-ends nud permanent
route add 10.244.0.16/28 via 169.254.1.2 dev host-ends onlink
route add 198.18.1.1/32 via 169.254.1.2 dev host-ends onlink
-6 route add fd00:10:244::1:0/112 via fe80::2 dev host-ends";

const BEYOND: &str = "
addr add 10.89.0.11/24 dev up0
addr add fd89::11/64 dev up0 nodad
addr add 10.89.1.21/32 dev lo
addr add fd89:1::21/128 dev lo nodad
neigh replace 10.89.0.1 lladdr {far} dev up0 nud permanent
neigh replace fd89::1 lladdr {far} dev up0 nud permanent
route add default via 10.89.0.1
-6 route add default via fd89::1";

/// Every answer is told, however many there are; nobody looks for neighbours or doubles of addresses; packets may leave by the device
/// they came from, and come from where no route leads.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratemask", "200"),
];

/// The node's surroundings.
pub struct Place {
    namespaces: [File; 3],
    own: File,
    wires: [Wire; 3],
}

impl Place {
    /// Makes it in the caller's namespaces, which are its own and have nothing but loopback. `/run` becomes a folder that ends with them.
    pub fn build() -> Result<Self> {
        ip("link set lo up")?;
        for (file, value) in SETTINGS {
            std::fs::write(format!("/proc/sys/net/{file}"), value).with_context(|| format!("net/{file}"))?;
        }
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run"])?;
        std::fs::create_dir_all("/run/netns")?;
        for at in At::ALL {
            veth(at)?;
        }
        for script in [CLIENT, ENDS, BEYOND] {
            script.lines().filter(|l| !l.is_empty()).try_for_each(ip)?;
        }
        let namespaces = [0, 1, 2].map(|i| File::open(format!("/run/netns/{}", At::ALL[i].namespace())));
        let [client, ends, beyond] = namespaces;
        let namespaces = [client?, ends?, beyond?];
        let own = File::open("/proc/self/ns/net")?;
        let open = |i: usize| within(&own, &namespaces[i], || Wire::open(index(At::ALL[i])?));
        Ok(Self {
            wires: [open(0)?, open(1)?, open(2)?],
            namespaces,
            own,
        })
    }

    pub fn wire(&self, at: At) -> &Wire {
        &self.wires[at as usize]
    }

    pub fn wires(&self) -> impl Iterator<Item = (At, &Wire)> {
        At::ALL.into_iter().zip(&self.wires)
    }

    /// Does something in the network namespace of a client's sockets.
    pub fn among<T>(&self, client: Client, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match client {
            Client::Node => work(),
            _ => within(&self.own, &self.namespaces[At::of(client) as usize], work),
        }
    }
}

/// Does something in another network namespace, and returns.
fn within<T>(own: &File, namespace: &File, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let enter = |file: &File| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("a network namespace cannot be entered")
    };
    enter(namespace)?;
    let done = work();
    enter(own)?;
    done
}

/// A pair of devices; beyond it nobody has addresses of IPv6 by himself but the pod that asks.
fn veth(at: At) -> Result<()> {
    let (name, device) = (at.namespace(), at.device());
    ip(&format!("netns add {name}"))?;
    let quiet = ["default", "all"].map(|of| format!("net.ipv6.conf.{of}.disable_ipv6=1"));
    if at != At::Client {
        run(&["ip", "netns", "exec", name, "sysctl", "-qw", &quiet[0], &quiet[1]])?;
    } else {
        run(&[
            "ip",
            "netns",
            "exec",
            name,
            "sysctl",
            "-qw",
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
        ])?;
    }
    ip(&format!(
        "link add {device} address {{near}} type veth peer name eth0 address {{far}} netns {name}"
    ))?;
    ip(&format!("link set {device} up"))?;
    ip(&format!("-n {name} link set lo up"))?;
    ip(&format!("-n {name} link set eth0 up"))
}

fn ip(line: &str) -> Result<()> {
    let mac = |bytes: [u8; 6]| bytes.map(|b| format!("{b:02x}")).join(":");
    let line = line
        .replace("{near}", &mac(NODE_MAC))
        .replace("{far}", &mac(FAR_MAC));
    let words = ["ip"].into_iter().chain(line.split(' '));
    run(&words.collect::<Vec<_>>())
}

/// The number of the far device.
fn index(at: At) -> Result<u32> {
    let out = Command::new("ip").args(["-o", "link", "show", "eth0"]).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    match text.split(':').next().and_then(|n| n.parse().ok()) {
        Some(index) => Ok(index),
        None => bail!("the far end of {} has no number: {text}", at.device()),
    }
}

/// Whether an address is the node's.
pub fn is_node(ip: IpAddr) -> bool {
    NODE_IPS.iter().any(|own| own.parse() == Ok(ip))
}

/// Whether an endpoint with this address is on the node.
pub fn is_local(ip: IpAddr) -> bool {
    let there = ["10.244.1.", "fd00:10:244:1:"];
    !there.iter().any(|start| ip.to_string().starts_with(start))
}

/// Whether an address is in a range of cluster addresses.
pub fn is_service(ip: IpAddr) -> bool {
    ["10.96.", "fd00:10:96:"]
        .iter()
        .any(|start| ip.to_string().starts_with(start))
}
