//! What the operator decides about services on a node.

use agent_network::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// kube-proxy's port of `/healthz` and `/livez`.
const HEALTH_PORT: u16 = 10256;
/// kube-proxy's port of `/metrics`.
const METRICS_PORT: u16 = 10249;

/// Which of the node's addresses serve node ports (kube-proxy's `--nodeport-addresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's primary address of each family, as the Node object names them.
    #[default]
    Primary,
    /// Those of the node's addresses that lie in one of the ranges. A family without a range serves on all its addresses.
    Ranges(Vec<Prefix>),
}

/// Why a list of node port addresses cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no choice of node port addresses: write `primary`, or ranges such as 192.0.2.0/24,2001:db8::/64"
)]
pub struct ParseAddressesError(String);

impl FromStr for NodePortAddresses {
    type Err = ParseAddressesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "" | "primary") {
            return Ok(Self::Primary);
        }
        let wrong = || ParseAddressesError(text.to_owned());
        let ranges: Result<Vec<Prefix>, _> = text.split(',').map(|r| r.trim().parse()).collect();
        ranges.map(Self::Ranges).map_err(|_| wrong())
    }
}

impl NodePortAddresses {
    /// The addresses that serve node ports, out of those the node's devices have; `primary` are the Node object's.
    #[must_use]
    pub fn choose(&self, own: &[IpAddr], primary: &[IpAddr]) -> Vec<IpAddr> {
        let usable = |ip: &&IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        match self {
            Self::Primary => primary.iter().filter(usable).copied().collect(),
            Self::Ranges(ranges) => own
                .iter()
                .filter(usable)
                .filter(|ip| in_ranges(ranges, **ip))
                .copied()
                .collect(),
        }
    }

    /// Where health-check ports listen: the whole family where every address of it was chosen.
    #[must_use]
    pub fn listen(&self, chosen: &[IpAddr]) -> Vec<IpAddr> {
        let any = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let families = any.into_iter().flat_map(|any| {
            let of_family = chosen.iter().filter(|ip| ip.is_ipv4() == any.is_ipv4()).copied();
            if self.takes_all(any) {
                vec![any]
            } else {
                of_family.collect()
            }
        });
        families.collect()
    }

    fn takes_all(&self, any: IpAddr) -> bool {
        let Self::Ranges(ranges) = self else { return false };
        let mut of_family = ranges.iter().filter(|r| r.is_v4() == any.is_ipv4()).peekable();
        of_family.peek().is_none() || of_family.any(|r| r.length() == 0)
    }
}

fn in_ranges(ranges: &[Prefix], ip: IpAddr) -> bool {
    let mut of_family = ranges.iter().filter(|r| r.is_v4() == ip.is_ipv4()).peekable();
    of_family.peek().is_none() || of_family.any(|r| r.contains(ip))
}

/// Settings of the services part of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSettings {
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// The ranges of all pods of the cluster; where empty, the ranges of the nodes' own pods are taken.
    pub cluster_cidrs: Vec<Prefix>,
    /// Where `/healthz` and `/livez` are answered; nowhere if absent.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` is answered; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// Whether `/metrics` has rows for each endpoint too.
    pub endpoint_metrics: bool,
    /// Whether LoadBalancer addresses are announced by ARP and NDP from this node when it is elected.
    pub announce: bool,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            node_port_addresses: NodePortAddresses::Primary,
            cluster_cidrs: Vec::new(),
            health: Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, HEALTH_PORT))),
            metrics: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT))),
            endpoint_metrics: false,
            announce: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn own() -> Vec<IpAddr> {
        ips(&[
            "127.0.0.1",
            "192.0.2.2",
            "198.51.100.2",
            "2001:db8::1",
            "2001:db8:1::2",
        ])
    }

    fn parse(text: &str) -> NodePortAddresses {
        text.parse().unwrap()
    }

    #[test]
    fn the_primary_addresses_serve_unless_told_otherwise() {
        let primary = ips(&["192.0.2.2", "2001:db8::1"]);
        assert_eq!(parse("primary"), NodePortAddresses::default());
        assert_eq!(parse("primary").choose(&own(), &primary), primary);
        assert_eq!(parse("primary").listen(&primary), primary);
    }

    #[test]
    fn a_family_without_a_range_serves_on_all_its_addresses_but_loopback() {
        let chosen = parse("198.51.100.0/24").choose(&own(), &[]);
        assert_eq!(chosen, ips(&["198.51.100.2", "2001:db8::1", "2001:db8:1::2"]));
        assert_eq!(
            parse("198.51.100.0/24").listen(&chosen),
            ips(&["198.51.100.2", "::"])
        );
    }

    #[test]
    fn a_range_of_everything_listens_on_the_whole_family() {
        assert_eq!(parse("0.0.0.0/0,::/0").listen(&[]), ips(&["0.0.0.0", "::"]));
    }

    #[test]
    fn what_is_neither_a_range_nor_the_keyword_is_refused() {
        assert!("192.0.2.1".parse::<NodePortAddresses>().is_err());
        assert!("primary,192.0.2.0/24".parse::<NodePortAddresses>().is_err());
    }
}
