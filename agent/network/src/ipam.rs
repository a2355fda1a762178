//! Which address a pod gets: pure, kept by [`crate::PodNetwork`].
use crate::Prefix;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// At most this many addresses of a range are ever used: a node does not run more pods than that, and searching a whole
/// /64 would not end.
const MOST: u64 = 1 << 16;

/// Every address of this range is taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("all {usable} pod addresses of {range} are in use: remove pods, or give the node a larger pod range")]
pub struct Exhausted {
    range: Prefix,
    usable: u64,
}

/// The addresses given to pods, one per range, keyed by the pod's uid.
///
/// An address that was released is handed out again as late as possible, so that a late packet or a stale cache entry
/// for the pod that had it does not meet a new pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    ranges: Vec<Prefix>,
    /// Offset behind the address given last, per range.
    next: Vec<u64>,
    pods: BTreeMap<String, Vec<IpAddr>>,
}

impl Ipam {
    /// An empty allocator over the node's pod ranges, at most one per family is usual.
    pub fn new(ranges: Vec<Prefix>) -> Self {
        let next = vec![0; ranges.len()];
        Self {
            ranges,
            next,
            pods: BTreeMap::new(),
        }
    }

    /// The same pods over other ranges: pods with an address outside of them are forgotten.
    pub fn with_ranges(mut self, ranges: Vec<Prefix>) -> Self {
        if self.ranges != ranges || self.next.len() != ranges.len() {
            self.next = vec![0; ranges.len()];
            self.ranges = ranges;
        }
        let ranges = &self.ranges;
        self.pods
            .retain(|_, ips| ips.iter().all(|ip| ranges.iter().any(|r| r.contains(*ip))));
        self
    }

    /// The addresses of this pod, in the order of the ranges; asked again, the same ones.
    ///
    /// # Errors
    /// [`Exhausted`] when a range is full; nothing is taken then.
    pub fn allocate(&mut self, pod_uid: &str) -> Result<Vec<IpAddr>, Exhausted> {
        if let Some(ips) = self.pods.get(pod_uid) {
            return Ok(ips.clone());
        }
        let taken: BTreeSet<IpAddr> = self.pods.values().flatten().copied().collect();
        let mut ips = Vec::with_capacity(self.ranges.len());
        for (range, next) in self.ranges.iter().zip(&mut self.next) {
            let (offset, ip) = free(*range, *next, &taken)?;
            *next = offset + 1;
            ips.push(ip);
        }
        self.pods.insert(pod_uid.to_owned(), ips.clone());
        Ok(ips)
    }

    /// Gives the pod's addresses back; whether it had any.
    pub fn release(&mut self, pod_uid: &str) -> bool {
        self.pods.remove(pod_uid).is_some()
    }

    /// Makes `in_use` the truth: what the runtime's sandboxes really hold. Pods that are not in it lose their addresses.
    pub fn restore(&mut self, in_use: BTreeMap<String, Vec<IpAddr>>) {
        self.pods = in_use;
    }

    /// Who has which addresses.
    pub fn pods(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.pods
    }
}

fn free(range: Prefix, next: u64, taken: &BTreeSet<IpAddr>) -> Result<(u64, IpAddr), Exhausted> {
    let (first, end) = usable(range);
    let start = next.max(first);
    (start..end)
        .chain(first..start.min(end))
        .filter_map(|offset| Some((offset, range.nth(offset)?)))
        .find(|(_, ip)| !taken.contains(ip))
        .ok_or(Exhausted {
            range,
            usable: end - first,
        })
}

/// Offsets that pods may have: not the network's own address, not the first one (a bridge or gateway of other
/// networks would take it, people expect it to be special), not IPv4's broadcast address. Ranges of up to four
/// addresses are used whole: there every address counts.
fn usable(range: Prefix) -> (u64, u64) {
    let size = range.size();
    if size <= 4 {
        return (0, size);
    }
    (2, (size - u64::from(range.is_v4())).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam() -> Ipam {
        Ipam::new(vec![
            "10.244.1.0/29".parse().unwrap(),
            "fd00:10:244:1::/64".parse().unwrap(),
        ])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pod_gets_one_address_of_each_range() {
        let ips = ipam().allocate("a").unwrap();
        assert_eq!(ips, [ip("10.244.1.2"), ip("fd00:10:244:1::2")]);
    }

    #[test]
    fn asked_again_the_answer_is_the_same() {
        let mut ipam = ipam();
        let first = ipam.allocate("a").unwrap();
        ipam.allocate("b").unwrap();
        assert_eq!(ipam.allocate("a").unwrap(), first);
    }

    #[test]
    fn a_released_address_comes_back_last() {
        let mut ipam = ipam();
        for pod in ["a", "b"] {
            ipam.allocate(pod).unwrap();
        }
        assert!(ipam.release("a"));
        assert_eq!(ipam.allocate("c").unwrap()[0], ip("10.244.1.4"));
        assert_eq!(ipam.allocate("d").unwrap()[0], ip("10.244.1.5"));
        assert_eq!(ipam.allocate("e").unwrap()[0], ip("10.244.1.6"));
        assert_eq!(ipam.allocate("f").unwrap()[0], ip("10.244.1.2"));
    }

    #[test]
    fn a_full_range_says_so_and_takes_nothing() {
        let mut ipam = ipam();
        for n in 0..5 {
            ipam.allocate(&n.to_string()).unwrap();
        }
        let before = ipam.pods().clone();
        let error = ipam.allocate("one more").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("all 5 pod addresses of 10.244.1.0/29")
        );
        assert_eq!(ipam.pods(), &before);
    }

    #[test]
    fn what_the_sandboxes_hold_is_never_given_twice() {
        let mut ipam = ipam();
        ipam.restore([("old".to_owned(), vec![ip("10.244.1.2"), ip("fd00:10:244:1::2")])].into());
        assert_eq!(
            ipam.allocate("new").unwrap(),
            [ip("10.244.1.3"), ip("fd00:10:244:1::3")]
        );
    }

    #[test]
    fn other_ranges_forget_the_pods_of_the_old_ones() {
        let mut ipam = ipam();
        ipam.allocate("a").unwrap();
        let mut ipam = ipam.with_ranges(vec!["10.244.7.0/24".parse().unwrap()]);
        assert!(ipam.pods().is_empty());
        assert_eq!(ipam.allocate("a").unwrap(), [ip("10.244.7.2")]);
    }

    #[test]
    fn a_tiny_range_is_used_whole() {
        let mut ipam = Ipam::new(vec!["10.9.9.4/31".parse().unwrap()]);
        assert_eq!(ipam.allocate("a").unwrap(), [ip("10.9.9.4")]);
        assert_eq!(ipam.allocate("b").unwrap(), [ip("10.9.9.5")]);
        assert!(ipam.allocate("c").is_err());
    }
}
