//! Which node answers for a LoadBalancer address: every node works it out for itself, and all come to the same.
//!
//! Each address has its own order of the nodes, by a hash of both: one node more or less moves no other address. The first
//! one that is Ready answers. Until the API knows that a node is lost takes most of a minute, so the next in the order looks
//! after the one before it, and steps in within a second. Both answering for a while does no harm: each can serve.

use super::facts;
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The label that keeps a node out of it.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Addresses to be answered for. Where a set of nodes is given, by one of them only: those with a ready endpoint, under
/// external policy Local.
pub type Addresses = BTreeMap<IpAddr, Option<BTreeSet<Arc<str>>>>;

/// Nodes that may answer, with the address at which each is looked after.
pub type Candidates = BTreeMap<String, Option<IpAddr>>;

/// What one node has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duty {
    /// Answer for these.
    pub owned: BTreeSet<IpAddr>,
    /// Look after these nodes.
    pub watched: BTreeSet<String>,
    /// For each owned address, the nodes that step in for this one: the next in the order, and those after it as far as
    /// these are lost. They are looked after too, since who was silent to them has to tell anew where the address is.
    pub followers: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// The nodes that may answer at all.
#[must_use]
pub fn candidates(nodes: &[Arc<Node>]) -> Candidates {
    let fit = nodes.iter().filter(|n| is_fit(n));
    fit.filter_map(|n| {
        Some((
            n.metadata.name.clone()?,
            facts::internal_addresses(n).first().copied(),
        ))
    })
    .collect()
}

fn is_fit(node: &Node) -> bool {
    let excluded = node
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(EXCLUDED));
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !excluded && !facts::is_leaving(node)
}

/// What `own` has to do, if `lost` are the nodes that it found not to answer.
#[must_use]
pub fn duty(own: &str, addresses: &Addresses, candidates: &Candidates, lost: &BTreeSet<String>) -> Duty {
    let mut duty = Duty::default();
    for (address, only) in addresses {
        let fit = |name: &&str| only.as_ref().is_none_or(|set| set.contains(*name));
        let order = order(*address, candidates.keys().map(String::as_str).filter(fit));
        let Some(place) = order.iter().position(|name| *name == own) else {
            continue;
        };
        let before = as_far_as_lost(order[..place].iter().rev(), lost);
        let alone = before.iter().all(|name| lost.contains(*name));
        duty.watched.extend(before.iter().map(|name| (*name).to_owned()));
        if alone {
            let after = as_far_as_lost(order[place + 1..].iter(), lost);
            let after: BTreeSet<String> = after.iter().map(|name| (*name).to_owned()).collect();
            duty.watched.extend(after.iter().cloned());
            duty.owned.insert(*address);
            duty.followers.insert(*address, after);
        }
    }
    duty
}

/// The names up to the first one that is not lost, that one included.
fn as_far_as_lost<'a>(names: impl Iterator<Item = &'a &'a str>, lost: &BTreeSet<String>) -> Vec<&'a str> {
    let mut all = Vec::new();
    for name in names {
        all.push(*name);
        if !lost.contains(*name) {
            break;
        }
    }
    all
}

/// The nodes in the order in which they answer for the address.
fn order<'a>(address: IpAddr, nodes: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all: Vec<(u64, &str)> = nodes.map(|name| (weight(address, name), name)).collect();
    all.sort_unstable();
    all.into_iter().map(|(_, name)| name).collect()
}

/// FNV-1a over both, well stirred: the same on every node and in every version.
fn weight(address: IpAddr, node: &str) -> u64 {
    let octets = match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let bytes = octets.iter().chain(node.as_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    for _ in 0..2 {
        hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn some(count: usize) -> Candidates {
        (0..count).map(|n| (format!("node-{n}"), None)).collect()
    }

    fn addresses(count: u8) -> Addresses {
        (1..=count)
            .map(|n| (IpAddr::from([198, 51, 100, n]), None))
            .collect()
    }

    fn owners(
        addresses: &Addresses,
        candidates: &Candidates,
        lost: &[&str],
    ) -> BTreeMap<IpAddr, Vec<String>> {
        let lost = lost.iter().map(|n| (*n).to_owned()).collect();
        let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for name in candidates.keys().filter(|n| !BTreeSet::contains(&lost, *n)) {
            for ip in duty(name, addresses, candidates, &lost).owned {
                owners.entry(ip).or_default().push(name.clone());
            }
        }
        owners
    }

    #[test]
    fn each_address_has_one_owner_and_the_nodes_share_them() {
        let (addresses, nodes) = (addresses(200), some(4));
        let owners = owners(&addresses, &nodes, &[]);
        assert_eq!(owners.len(), 200);
        assert!(owners.values().all(|o| o.len() == 1));
        for node in nodes.keys() {
            let share = owners.values().filter(|o| o[0] == *node).count();
            assert!((25..=75).contains(&share), "{node} has {share} of 200");
        }
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_addresses() {
        let (addresses, nodes) = (addresses(100), some(4));
        let before = owners(&addresses, &nodes, &[]);
        let mut fewer = nodes.clone();
        fewer.remove("node-2");
        let after = owners(&addresses, &fewer, &[]);
        for (ip, owner) in &before {
            assert!(
                owner[0] == "node-2" || after[ip] == *owner,
                "{ip} moved from {owner:?}"
            );
        }
        assert_eq!(after.len(), 100);
    }

    #[test]
    fn the_next_in_the_order_looks_after_the_first_and_steps_in() {
        let (addresses, nodes) = (addresses(50), some(3));
        let before = owners(&addresses, &nodes, &[]);
        let after = owners(&addresses, &nodes, &["node-0"]);
        for (ip, owner) in &before {
            assert_eq!(after[ip].len(), 1, "{ip}");
            assert_ne!(after[ip][0], "node-0");
            assert!(owner[0] == "node-0" || after[ip] == *owner);
        }
        let one: Addresses = addresses.iter().take(1).map(|(a, o)| (*a, o.clone())).collect();
        let owner = before.values().next().unwrap()[0].clone();
        let duties: BTreeMap<_, _> = nodes
            .keys()
            .map(|n| (n.clone(), duty(n, &one, &nodes, &BTreeSet::new())))
            .collect();
        let watching: Vec<_> = duties
            .iter()
            .filter(|(_, d)| d.watched.contains(&owner))
            .collect();
        assert_eq!(
            watching.len(),
            1,
            "exactly one looks after the owner of an address"
        );
        // And the owner after that one, which steps in when it is not heard.
        let follower = BTreeSet::from([watching[0].0.clone()]);
        assert_eq!(duties[&owner].watched, follower);
        assert!(duties[&owner].followers.values().all(|f| *f == follower));
    }

    #[test]
    fn under_policy_local_only_nodes_with_an_endpoint_answer() {
        let only: BTreeSet<Arc<str>> = BTreeSet::from(["node-1".into()]);
        let address = IpAddr::from([198, 51, 100, 1]);
        let limited = Addresses::from([(address, Some(only))]);
        assert_eq!(owners(&limited, &some(3), &[])[&address], ["node-1"]);
        let nobody = Addresses::from([(address, Some(BTreeSet::new()))]);
        assert!(owners(&nobody, &some(3), &[]).is_empty());
    }

    #[test]
    fn nodes_that_are_not_ready_leaving_or_excluded_are_no_candidates() {
        let node = |name: &str, ready: &str, meta: serde_json::Value| {
            let mut body = json!({"metadata": {"name": name}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "status": ready}]}});
            for (key, value) in meta.as_object().unwrap() {
                body["metadata"][key.as_str()] = value.clone();
            }
            Arc::new(serde_json::from_value::<Node>(body).unwrap())
        };
        let nodes = [
            node("good", "True", json!({})),
            node("lost", "Unknown", json!({})),
            node("kept-out", "True", json!({"labels": {EXCLUDED: ""}})),
            node(
                "leaving",
                "True",
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            ),
        ];
        let found = candidates(&nodes);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["good"]);
        assert!(found["good"].is_some());
    }
}
