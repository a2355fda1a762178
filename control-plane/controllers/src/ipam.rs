//! Pod address ranges of nodes: every node gets one range of each family that the cluster has.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use machinery_plan::{Action, EventKind, Plan};
use serde_json::json;

/// An address range, such as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    first: u128,
    length: u8,
    v4: bool,
}

/// Why a range cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address range: write it as an address, a slash and the number of fixed bits")]
pub struct RangeError(String);

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        let (bits, width, v4) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32, true),
            IpAddr::V6(address) => (address.to_bits(), 128, false),
        };
        if length > width {
            return Err(wrong());
        }
        Ok(Self {
            first: bits & !host_mask(width - length),
            length,
            v4,
        })
    }
}

fn host_mask(bits: u8) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", address(self.v4, self.first), self.length)
    }
}

fn address(v4: bool, bits: u128) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

impl Range {
    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        let (bits, v4) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), true),
            IpAddr::V6(address) => (address.to_bits(), false),
        };
        v4 == self.v4 && bits & !host_mask(self.width() - self.length) == self.first
    }

    /// Whether this is a range of IPv4.
    #[must_use]
    pub fn is_v4(self) -> bool {
        self.v4
    }

    /// The addresses that a host can have, in order: all of them, but for the first and the last of an IPv4 network, which
    /// mean the network and everyone in it, and the first of an IPv6 one, which means its routers.
    pub fn hosts(self) -> impl Iterator<Item = IpAddr> {
        let last = host_mask(self.width() - self.length);
        let (from, to) = match (self.v4, last) {
            (_, 0 | 1) => (0, last),
            (true, last) => (1, last - 1),
            (false, last) => (1, last),
        };
        let first = self.first;
        let v4 = self.v4;
        (from..=to).map(move |offset| address(v4, first + offset))
    }

    fn width(self) -> u8 {
        if self.v4 { 32 } else { 128 }
    }

    /// The parts of `length` fixed bits, in order.
    fn parts(self, length: u8) -> impl Iterator<Item = Self> {
        let step = host_mask(self.width() - length) + 1;
        let count = 1u128 << (length.saturating_sub(self.length)).min(32);
        (0..count).map(move |index| Self {
            first: self.first + index * step,
            length,
            v4: self.v4,
        })
    }

    fn overlaps(self, other: Self) -> bool {
        let fewer = self.length.min(other.length);
        let mask = !host_mask(self.width() - fewer);
        self.v4 == other.v4 && self.first & mask == other.first & mask
    }
}

/// A range for the whole cluster, and how many fixed bits the part of one node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The whole.
    pub range: Range,
    /// Fixed bits of a part.
    pub node_length: u8,
}

/// Gives ranges to all nodes that have none. All nodes are planned for at once, so that none can get another's.
#[must_use]
pub fn plan(nodes: &[Arc<Node>], pools: &[Pool]) -> Plan {
    let mut plan = Plan::nothing();
    let mut taken: Vec<Range> = nodes.iter().flat_map(|node| ranges(node)).collect();
    let mut given = HashSet::new();
    let mut actions = Vec::new();
    for node in nodes
        .iter()
        .filter(|node| ranges(node).is_empty() && node.metadata.deletion_timestamp.is_none())
    {
        let parts: Option<Vec<Range>> = pools.iter().map(|pool| free(*pool, &taken, &given)).collect();
        match parts.filter(|parts| !parts.is_empty()) {
            Some(parts) => {
                taken.extend(&parts);
                given.extend(parts.iter().copied());
                actions.push(assign(node, &parts));
            }
            None => {
                let message = "No pod address range is left for this node";
                actions.push(Action::event(
                    node.as_ref(),
                    EventKind::Warning,
                    "CIDRNotAvailable",
                    message,
                ));
            }
        }
    }
    plan.together(actions);
    plan
}

fn ranges(node: &Node) -> Vec<Range> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|range| range.parse().ok()).collect()
}

fn free(pool: Pool, taken: &[Range], given: &HashSet<Range>) -> Option<Range> {
    let exact: HashSet<Range> = taken.iter().copied().collect();
    let odd: Vec<Range> = taken
        .iter()
        .copied()
        .filter(|range| range.length != pool.node_length)
        .collect();
    let free = |part: &Range| {
        !exact.contains(part) && !given.contains(part) && !odd.iter().any(|range| range.overlaps(*part))
    };
    pool.range.parts(pool.node_length).find(free)
}

fn assign(node: &Arc<Node>, parts: &[Range]) -> Action {
    let all: Vec<String> = parts.iter().map(ToString::to_string).collect();
    Action::merge(
        node.as_ref(),
        json!({"spec": {"podCIDR": all[0], "podCIDRs": all}}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn pools(v4: &str, length: u8) -> Vec<Pool> {
        vec![
            Pool {
                range: v4.parse().unwrap(),
                node_length: length,
            },
            Pool {
                range: "fd00:10:244::/48".parse().unwrap(),
                node_length: 64,
            },
        ]
    }

    fn world(nodes: &[(&str, Option<[&str; 2]>)]) -> World {
        let mut world = World::default();
        for (name, ranges) in nodes {
            let spec = ranges.map_or(json!({}), |all| json!({"podCIDR": all[0], "podCIDRs": all}));
            world.put::<Node>(json!({"metadata": {"name": name}, "spec": spec}));
        }
        world
    }

    fn ranges_of(world: &World, node: &str) -> Vec<String> {
        let node = world.get::<Node>("", node).unwrap();
        node.spec
            .as_ref()
            .and_then(|spec| spec.pod_cidrs.clone())
            .unwrap_or_default()
    }

    #[test]
    fn every_node_gets_the_first_free_range_of_each_family() {
        let mut world = world(&[
            ("a", None),
            ("b", Some(["10.244.0.0/24", "fd00:10:244::/64"])),
            ("c", None),
        ]);
        world.apply(&plan(&world.all(), &pools("10.244.0.0/16", 24)));
        assert_eq!(ranges_of(&world, "a"), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(ranges_of(&world, "c"), ["10.244.2.0/24", "fd00:10:244:2::/64"]);
        assert!(plan(&world.all(), &pools("10.244.0.0/16", 24)).is_empty());
    }

    #[test]
    fn a_range_of_another_size_is_not_given_away_in_part() {
        let mut world = world(&[("a", None), ("b", Some(["10.244.0.0/23", "fd00:10:244::/64"]))]);
        world.apply(&plan(&world.all(), &pools("10.244.0.0/16", 24)));
        assert_eq!(ranges_of(&world, "a")[0], "10.244.2.0/24");
    }

    #[test]
    fn when_none_is_left_the_node_is_told() {
        let mut world = world(&[("a", None), ("b", None)]);
        world.apply(&plan(&world.all(), &pools("10.244.0.0/24", 24)));
        assert_eq!(ranges_of(&world, "b"), Vec::<String>::new());
        assert!(world.events[0].starts_with("CIDRNotAvailable"));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["10.244.0.0", "10.244.0.0/33", "x/8", "fd00::/129"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
        assert_eq!(
            "10.244.7.9/16".parse::<Range>().unwrap().to_string(),
            "10.244.0.0/16"
        );
    }
}
