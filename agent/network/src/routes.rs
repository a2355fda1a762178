//! Routes to the other nodes' pods.
use crate::Prefix;
use crate::link::{LinkError, Netlink, Route, Via};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The number our routes carry in the kernel's table (`ip route show proto 83`), so that nobody else's are touched.
/// Chosen among the values that `/etc/iproute2/rt_protos` leaves free.
pub const NODE_ROUTES: u8 = 83;
/// The number of routes to this node's own pods, which the plugin writes and removes.
pub const POD_ROUTES: u8 = 82;

/// Another node, as far as routing to its pods needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Its name, for messages.
    pub name: String,
    /// The ranges its pods have (`spec.podCIDRs`).
    pub pod_cidrs: Vec<Prefix>,
    /// Its own addresses (`status.addresses`, InternalIP).
    pub node_ips: Vec<IpAddr>,
}

/// The routes this node should have: one per range of each peer through the peer's first address of that family, and
/// an unreachable one over each range of its own, which ends packets to pod addresses nobody has.
pub fn wanted(own: &[Prefix], peers: &[PeerNode]) -> BTreeMap<Prefix, Route> {
    let unreachable = own.iter().map(|to| Route {
        to: *to,
        via: Via::Unreachable,
    });
    let remote = peers.iter().flat_map(|peer| {
        peer.pod_cidrs
            .iter()
            .filter(|to| !own.contains(to))
            .filter_map(|to| {
                let gateway = peer.node_ips.iter().find(|ip| ip.is_ipv4() == to.is_v4())?;
                Some(Route {
                    to: *to,
                    via: Via::Gateway(*gateway),
                })
            })
    });
    remote.chain(unreachable).map(|route| (route.to, route)).collect()
}

/// What leads from the routes that stand to the wanted ones. Additions come first and replace, so that a peer whose
/// address changed is never without a route.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// To add, replacing what leads to the same range.
    pub add: Vec<Route>,
    /// To remove.
    pub remove: Vec<Route>,
}

/// Compares the routes that stand with the wanted ones.
pub fn diff(standing: &[Route], wanted: &BTreeMap<Prefix, Route>) -> Diff {
    let present: BTreeSet<&Route> = standing.iter().collect();
    Diff {
        add: wanted
            .values()
            .filter(|r| !present.contains(r))
            .cloned()
            .collect(),
        remove: standing
            .iter()
            .filter(|r| wanted.get(&r.to) != Some(r))
            .cloned()
            .collect(),
    }
}

/// Makes the kernel's table match `wanted`; one route that fails does not keep the others from being written.
///
/// # Errors
/// The first refusal, after everything has been tried.
pub async fn sync(netlink: &Netlink, wanted: &BTreeMap<Prefix, Route>) -> Result<Diff, LinkError> {
    let diff = diff(&netlink.routes(NODE_ROUTES).await?, wanted);
    let mut first = None;
    // IPv6 keeps several routes to one range side by side instead of replacing: there the old one goes first.
    for old in diff.remove.iter() {
        if !old.to.is_v4() || !wanted.contains_key(&old.to) {
            first = first.or(netlink.delete_route(old, NODE_ROUTES).await.err());
        }
    }
    for new in &diff.add {
        first = first.or(netlink.add_route(new, NODE_ROUTES).await.err());
    }
    first.map_or(Ok(diff), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn peer(n: u8) -> PeerNode {
        PeerNode {
            name: format!("n{n}"),
            pod_cidrs: vec![
                prefix(&format!("10.244.{n}.0/24")),
                prefix(&format!("fd00:10:244:{n}::/64")),
            ],
            node_ips: vec![
                format!("10.89.0.1{n}").parse().unwrap(),
                format!("fd89::1{n}").parse().unwrap(),
            ],
        }
    }

    fn gateway(to: &str, via: &str) -> Route {
        Route {
            to: prefix(to),
            via: Via::Gateway(via.parse().unwrap()),
        }
    }

    #[test]
    fn each_range_of_a_peer_goes_through_its_address_of_that_family() {
        let wanted = wanted(&[], &[peer(2)]);
        assert_eq!(
            wanted.into_values().collect::<Vec<_>>(),
            [
                gateway("10.244.2.0/24", "10.89.0.12"),
                gateway("fd00:10:244:2::/64", "fd89::12")
            ]
        );
    }

    #[test]
    fn own_ranges_end_here_even_if_a_peer_claims_them() {
        let wanted = wanted(&[prefix("10.244.2.0/24")], &[peer(2)]);
        assert_eq!(wanted[&prefix("10.244.2.0/24")].via, Via::Unreachable);
    }

    #[test]
    fn a_peer_without_an_address_of_the_family_gets_no_route() {
        let lame = PeerNode {
            node_ips: vec![],
            ..peer(2)
        };
        assert!(wanted(&[], &[lame]).is_empty());
    }

    #[test]
    fn nothing_changes_when_everything_stands() {
        let wanted = wanted(&[prefix("10.244.1.0/24")], &[peer(2)]);
        let standing: Vec<Route> = wanted.values().cloned().collect();
        assert_eq!(diff(&standing, &wanted), Diff::default());
    }

    #[test]
    fn a_peer_that_left_takes_its_routes_along_and_a_moved_one_is_replaced() {
        let wanted = wanted(&[], &[peer(2)]);
        let standing = [
            gateway("10.244.2.0/24", "10.89.0.99"),
            gateway("10.244.3.0/24", "10.89.0.13"),
        ];
        let diff = diff(&standing, &wanted);
        assert_eq!(diff.remove, standing);
        assert!(diff.add.contains(&gateway("10.244.2.0/24", "10.89.0.12")));
    }
}
