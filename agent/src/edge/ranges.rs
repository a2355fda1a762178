//! Few ranges that cover many: the data path has room for a handful, a cluster may have a range per node.

use agent_network::Prefix;

/// Ranges of each family that are passed on.
const PER_FAMILY: usize = 2;

/// The ranges, merged until there are at most two per family. Each merge takes the two whose common range is smallest, so
/// the ranges of nodes, which are cut from one, come back to a part of it.
#[must_use]
pub fn cover(ranges: &[Prefix]) -> Vec<Prefix> {
    let mut all = Vec::new();
    for v4 in [true, false] {
        let mut family: Vec<Prefix> = ranges.iter().filter(|r| r.is_v4() == v4).copied().collect();
        // Sorted, the closest neighbours stand side by side.
        family.sort_unstable_by_key(|r| (r.base(), r.length()));
        family.dedup();
        while family.len() > PER_FAMILY {
            let pairs = family.windows(2).map(|pair| common(pair[0], pair[1]));
            let Some((place, merged)) = pairs.enumerate().max_by_key(|(_, range)| range.length()) else {
                break;
            };
            family[place] = merged;
            family.remove(place + 1);
        }
        all.append(&mut family);
    }
    all
}

/// The smallest range that holds both.
fn common(a: Prefix, b: Prefix) -> Prefix {
    let shorter = a.length().min(b.length());
    (0..=shorter)
        .rev()
        .filter_map(|length| Prefix::containing(a.base(), length))
        .find(|range| range.contains(b.base()))
        .unwrap_or(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|r| r.parse().unwrap()).collect()
    }

    #[test]
    fn a_few_ranges_stay_as_they_are() {
        let few = ranges(&["10.244.0.0/24", "10.244.7.0/24", "fd00:10:244::/64"]);
        assert_eq!(cover(&few), few);
    }

    #[test]
    fn the_ranges_of_many_nodes_come_back_to_a_part_of_the_pool_they_are_cut_from() {
        let nodes: Vec<Prefix> = (0..200)
            .map(|n| format!("10.244.{n}.0/24").parse().unwrap())
            .chain((0..200).map(|n| format!("fd00:10:244:{n:x}::/64").parse().unwrap()))
            .collect();
        let covered = cover(&nodes);
        assert!(covered.len() <= 4);
        assert!(nodes.iter().all(|n| covered.iter().any(|c| c.contains(n.base()))));
        let pool: Vec<Prefix> = ranges(&["10.244.0.0/16", "fd00:10:244::/56"]);
        assert!(covered.iter().all(|c| {
            pool.iter()
                .any(|p| p.contains(c.base()) && p.length() <= c.length())
        }));
    }

    #[test]
    fn ranges_far_apart_are_merged_last() {
        let covered = cover(&ranges(&["10.0.0.0/24", "10.0.1.0/24", "172.16.0.0/24"]));
        assert_eq!(covered, ranges(&["10.0.0.0/23", "172.16.0.0/24"]));
    }
}
