//! Who is who in the fixtures.
use agent_services::Node;
use datapath_abi::{Settings, SettingsFlags};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Name, address in either family.
const ADDRESSES: [(&str, &str, &str); 17] = [
    ("node", "10.89.0.11", "fd89::11"),
    ("router", "10.89.0.1", "fd89::1"),
    ("multicast", "224.0.0.251", "ff02::fb"),
    ("everybody", "255.255.255.255", "ff02::1"),
    ("other-node", "10.89.0.12", "fd89::12"),
    ("outside", "198.51.100.7", "2001:db8:51::7"),
    ("stranger", "192.0.2.9", "2001:db8:2::9"),
    ("client", "10.244.0.9", "fd00:10:244::9"),
    ("pod", "10.244.0.2", "fd00:10:244::2"),
    ("pod2", "10.244.0.3", "fd00:10:244::3"),
    ("remote", "10.244.1.2", "fd00:10:244:1::2"),
    ("remote2", "10.244.1.3", "fd00:10:244:1::3"),
    ("far-client", "10.244.1.9", "fd00:10:244:1::9"),
    ("vip", "10.96.0.10", "fd00:10:96::10"),
    ("nobody", "10.96.0.99", "fd00:10:96::99"),
    ("balancer", "203.0.113.10", "2001:db8:113::10"),
    ("external", "203.0.113.20", "2001:db8:113::20"),
];

/// The names in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    pub v4: bool,
}

impl Names {
    /// The address of a name.
    pub fn ip(self, name: &str) -> IpAddr {
        let found = ADDRESSES.iter().find(|(n, ..)| *n == name);
        let (_, v4, v6) = found.unwrap_or_else(|| panic!("nobody is called {name} in the fixtures"));
        let text = if self.v4 { v4 } else { v6 };
        text.parse().expect("the table's addresses are addresses")
    }

    /// `name:port`.
    pub fn at(self, text: &str) -> SocketAddr {
        let (name, port) = text
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{text} has no port"));
        let port = port.parse().unwrap_or_else(|e| panic!("the port of {text}: {e}"));
        SocketAddr::new(self.ip(name), port)
    }

    /// A range around a name's address.
    pub fn range(self, name: &str) -> (IpAddr, u8) {
        (self.ip(name), if self.v4 { 24 } else { 64 })
    }
}

fn both(name: &str) -> Vec<IpAddr> {
    [true, false]
        .into_iter()
        .map(|v4| Names { v4 }.ip(name))
        .collect()
}

fn ranges(of: &[(&str, u8)]) -> Vec<(IpAddr, u8)> {
    of.iter()
        .map(|(a, bits)| (a.parse().expect("an address of the table"), *bits))
        .collect()
}

/// The node on which the packets are met.
pub fn node() -> Node {
    Node {
        name: Arc::from(tests_lab::NODE),
        addresses: both("node"),
        node_port_addresses: both("node"),
        pod_ranges: ranges(&[("10.244.0.0", 16), ("fd00:10:244::", 48)]),
        ..Node::default()
    }
}

/// What its programs are told, or told themselves.
pub fn settings() -> Settings {
    let services = ranges(&[("10.96.0.0", 16), ("fd00:10:96::", 112)]);
    let mut settings = node().settings(&services, true, 0);
    settings.flags.0 |= SettingsFlags::OWN.0;
    settings
}
