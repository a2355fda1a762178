//! The node for which is planned.
use datapath_abi::{Address, Range, Settings, SettingsFlags};
use std::net::IpAddr;
use std::sync::Arc;

/// What of a node decides about its packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; without it zone hints are ignored.
    pub zone: Option<Arc<str>>,
    /// Its own addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Those at which node ports are served; see [`node_port_addresses`].
    pub node_port_addresses: Vec<IpAddr>,
    /// Ranges of the cluster's pods, as address and prefix length: traffic from there is from inside.
    pub pod_ranges: Vec<(IpAddr, u8)>,
    /// Addresses of services that this node answers itself: packets to them are left to its own stack.
    pub dns: Vec<IpAddr>,
}

impl Node {
    /// The first address of the family.
    pub fn primary(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// What the programs are told; more ranges and addresses than there is room for are left out. `uplink`: see
    /// [`SettingsFlags::UPLINK`].
    pub fn settings(&self, service_ranges: &[(IpAddr, u8)], uplink: bool, netns: u64) -> Settings {
        let mut s = Settings {
            layout: datapath_abi::LAYOUT,
            flags: SettingsFlags(if uplink { SettingsFlags::UPLINK.0 } else { 0 }),
            host_netns_cookie: netns,
            ..Settings::default()
        };
        fill(&mut s.service_ranges, service_ranges.iter().map(range));
        fill(&mut s.pod_ranges, self.pod_ranges.iter().map(range));
        fill(
            &mut s.node_addrs,
            self.addresses.iter().map(|ip| Address::from(*ip)),
        );
        for (place, v4) in s.masquerade.iter_mut().zip([true, false]) {
            *place = self.primary(v4).map(Address::from).unwrap_or_default();
        }
        s
    }
}

fn range((addr, bits): &(IpAddr, u8)) -> Range {
    Range::new(*addr, *bits)
}

fn fill<T>(places: &mut [T], with: impl Iterator<Item = T>) {
    places.iter_mut().zip(with).for_each(|(place, t)| *place = t);
}

/// Which of a node's addresses serve node ports, by kube-proxy's flag `--nodeport-addresses`: nothing or `primary` means the
/// primary ones; ranges mean those in them, and all addresses of a family of which no range is given. Loopback addresses never
/// serve any.
pub fn node_port_addresses(own: &[IpAddr], flag: &[String]) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let primary = flag.is_empty() || flag.iter().any(|f| f == "primary");
    for v4 in [true, false] {
        let of_family = || own.iter().filter(move |ip| ip.is_ipv4() == v4);
        if primary {
            found.extend(of_family().next());
            continue;
        }
        let ranges: Vec<Range> = flag
            .iter()
            .filter_map(|f| crate::view::parse_range(f))
            .filter(|(addr, _)| addr.is_ipv4() == v4)
            .map(|r| range(&r))
            .collect();
        let everything = |r: &Range| r.bits <= if v4 { 96 } else { 0 };
        let all = ranges.is_empty() || ranges.iter().any(everything);
        found.extend(of_family().filter(|ip| all || ranges.iter().any(|r| r.contains(Address::from(**ip)))));
    }
    found.retain(|ip| !ip.is_loopback());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(flag: &[&str]) -> Vec<String> {
        let own: Vec<IpAddr> = ["192.168.0.2", "192.168.1.2", "127.0.0.1", "2001:db8::1", "::1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        let flag: Vec<String> = flag.iter().map(|f| (*f).to_owned()).collect();
        node_port_addresses(&own, &flag)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn node_ports_are_served_at_the_primary_addresses_unless_told_otherwise() {
        assert_eq!(resolved(&[]), ["192.168.0.2", "2001:db8::1"]);
        assert_eq!(resolved(&["primary"]), ["192.168.0.2", "2001:db8::1"]);
        assert_eq!(resolved(&["192.168.1.0/24"]), ["192.168.1.2", "2001:db8::1"]);
        assert_eq!(
            resolved(&["0.0.0.0/0", "::/0"]),
            ["192.168.0.2", "192.168.1.2", "2001:db8::1"]
        );
        assert_eq!(resolved(&["127.0.0.0/8", "2001:db8::/64"]), ["2001:db8::1"]);
    }
}
