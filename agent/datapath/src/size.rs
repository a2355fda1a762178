//! Sizes of the maps, from the machine's memory.
use std::fs;

/// How many entries each map has room for.
///
/// Hash maps take memory per entry in use, and 16 bytes for each possible one; LRU maps take all of it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub frontends: u32,
    pub backends: u32,
    pub owners: u32,
    pub replies: u32,
    pub flows: u32,
    /// Endpoints of services with session affinity.
    pub members: u32,
    /// Clients of such services.
    pub affinity: u32,
    /// Services with external fronts and more than one endpoint.
    pub maglev: u32,
    pub ranges: u32,
    pub fragments: u32,
}

const KIB: u64 = 1024;

impl Sizes {
    /// For a machine with this many bytes of memory: at most about a thousandth of it is taken before the first service.
    pub fn for_memory(bytes: u64) -> Self {
        Self {
            frontends: power(bytes / (64 * KIB), 1 << 16, 1 << 19),
            backends: power(bytes / (16 * KIB), 1 << 18, 1 << 21),
            owners: power(bytes / (64 * KIB), 1 << 16, 1 << 19),
            replies: power(bytes / (256 * KIB), 1 << 13, 1 << 17),
            flows: power(bytes / (128 * KIB), 1 << 14, 1 << 19),
            members: power(bytes / (64 * KIB), 1 << 14, 1 << 19),
            affinity: power(bytes / (512 * KIB), 1 << 12, 1 << 17),
            maglev: power(bytes / (256 * KIB), 1 << 12, 1 << 16),
            ranges: power(bytes / (64 * KIB), 1 << 14, 1 << 18),
            fragments: power(bytes / (4096 * KIB), 1 << 10, 1 << 14),
        }
    }

    /// For this machine.
    pub fn of_this_machine() -> Self {
        Self::for_memory(memory().unwrap_or(0))
    }
}

/// The power of two below `n`, within bounds: the kernel rounds the number of buckets up to one anyway.
fn power(n: u64, least: u32, most: u32) -> u32 {
    let n = n.clamp(u64::from(least), u64::from(most)) as u32;
    1 << n.ilog2()
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_machine_still_has_room_for_ten_thousand_services() {
        let s = Sizes::for_memory(256 << 20);
        assert!(s.frontends >= 20_000 && s.backends >= 20_000);
    }

    #[test]
    fn maps_grow_with_memory_up_to_a_limit() {
        assert!(Sizes::for_memory(8 << 30).frontends > Sizes::for_memory(1 << 30).frontends);
        assert_eq!(Sizes::for_memory(1 << 40), Sizes::for_memory(1 << 45));
    }
}
