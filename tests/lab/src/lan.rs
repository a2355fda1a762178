//! A network around the node: a second node, and a machine outside of the cluster.
use crate::{Lab, Pod, run};
use agent_datapath::{XdpChoice, XdpMode, netns_cookie};
use agent_services::Node;
use anyhow::Result;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// The node's own addresses on the network.
pub const NODE_IPS: (&str, &str) = ("10.89.0.11", "fd89::11");
/// Those of the second node, whose pods are in 10.244.1.0/24 and fd00:10:244:1::/64.
pub const OTHER_IPS: (&str, &str) = ("10.89.0.12", "fd89::12");
/// Those of the machine outside.
pub const OUTSIDE_IPS: (&str, &str) = ("10.89.0.100", "fd89::100");
/// Where balancers' addresses are; the outside machine has a route there through the node.
pub const BALANCER_IPS: (&str, &str) = ("203.0.113.10", "2001:db8:113::10");
/// A pod of the second node.
pub const REMOTE_IPS: (&str, &str) = ("10.244.1.2", "fd00:10:244:1::2");
/// The node's device on the network.
pub const UPLINK: &str = "up0";

/// The machines around the node.
pub struct Lan {
    pub outside: Pod,
    /// The second node; a pod of it is an address of its loopback device.
    pub other: Pod,
    pub xdp: XdpMode,
}

fn sh(line: &str) -> Result<()> {
    run(&line.split(' ').collect::<Vec<_>>())
}

fn inside(namespace: &str, line: &str) -> Result<()> {
    sh(&format!("ip -n {namespace} {line}"))
}

impl Lab {
    /// Connects the node ([`Lab::forward`] comes first) with the two machines, and serves the device that leads there.
    pub fn lan(&mut self, xdp: XdpChoice) -> Result<Lan> {
        sh("ip netns add lan")?;
        inside("lan", "link add br0 type bridge")?;
        inside("lan", "link set br0 up")?;
        plug(None, "here", UPLINK, NODE_IPS)?;
        for (name, ips) in [("other", OTHER_IPS), ("outside", OUTSIDE_IPS)] {
            sh(&format!("ip netns add {name}"))?;
            inside(name, "link set lo up")?;
            machine(name).within(crate::without_waiting)??;
            plug(Some(name), name, "eth0", ips)?;
        }
        routes()?;
        self.planner.set_node(lan_node());
        let settings = lan_node().settings(&self.config.service_ranges, true, netns_cookie());
        self.datapath.set_settings(&settings)?;
        let xdp = self.datapath.attach_uplink(UPLINK, xdp)?;
        Ok(Lan {
            outside: machine("outside"),
            other: machine("other"),
            xdp,
        })
    }
}

/// What the node is to the planner.
pub fn lan_node() -> Node {
    let ips = |pair: (&str, &str)| -> Vec<IpAddr> {
        [pair.0, pair.1].iter().filter_map(|a| a.parse().ok()).collect()
    };
    let range = |a: &str, bits| a.parse().ok().map(|a: IpAddr| (a, bits));
    Node {
        name: Arc::from(crate::NODE),
        addresses: ips(NODE_IPS),
        node_port_addresses: ips(NODE_IPS),
        pod_ranges: [range("10.244.0.0", 16), range("fd00:10:244::", 48)]
            .into_iter()
            .flatten()
            .collect(),
        ..Node::default()
    }
}

fn machine(name: &str) -> Pod {
    Pod {
        device: "eth0".into(),
        namespace: Path::new("/run/netns").join(name),
    }
}

/// A device with these addresses, its other end in the bridge.
fn plug(namespace: Option<&str>, port: &str, device: &str, ips: (&str, &str)) -> Result<()> {
    let place = namespace.map_or(String::new(), |n| format!(" netns {n}"));
    let here = |line: &str| match namespace {
        Some(n) => inside(n, line),
        None => sh(&format!("ip {line}")),
    };
    sh(&format!(
        "ip link add {device}{place} type veth peer name port-{port} netns lan"
    ))?;
    inside("lan", &format!("link set port-{port} master br0 up"))?;
    here(&format!("addr add {}/24 dev {device}", ips.0))?;
    here(&format!("addr add {}/64 dev {device} nodad", ips.1))?;
    here(&format!("link set {device} up"))
}

fn routes() -> Result<()> {
    sh(&format!("ip route add 10.244.1.0/24 via {}", OTHER_IPS.0))?;
    sh(&format!("ip -6 route add fd00:10:244:1::/64 via {}", OTHER_IPS.1))?;
    for name in ["other", "outside"] {
        inside(name, &format!("route add 10.244.0.0/24 via {}", NODE_IPS.0))?;
        inside(name, &format!("-6 route add fd00:10:244::/64 via {}", NODE_IPS.1))?;
    }
    inside("outside", &format!("route add 203.0.113.0/24 via {}", NODE_IPS.0))?;
    inside(
        "outside",
        &format!("-6 route add 2001:db8:113::/64 via {}", NODE_IPS.1),
    )?;
    inside("other", &format!("addr add {}/32 dev lo", REMOTE_IPS.0))?;
    inside("other", &format!("addr add {}/128 dev lo nodad", REMOTE_IPS.1))
}
