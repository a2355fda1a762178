//! What is counted for each service port and each endpoint, and where.
//!
//! The planner gives each of them a dense number; its counts lie in an array, found without a hash and without making an
//! entry. The array comes in pages that are made as numbers are needed. Each number has a few places, one for every so many CPUs: additions are
//! atomic, so nothing is lost, and rarely meet another CPU's, so they are cheap.
use crate::SetId;
use core::mem::{align_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of a service port in one family, or of an endpoint of it; 0 for none. Given again once what was counted
/// for the last owner is cleared.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct CountNumber(pub u32);

impl CountNumber {
    /// Nothing is counted.
    pub const NONE: Self = Self(0);
}

/// Places of one page.
pub const COUNT_PAGE: u32 = 4096;
/// Pages at most: sixteen million places.
pub const COUNT_PAGES: u32 = 4096;
/// Most places of one number, as a power of two: more CPUs than eight share them.
pub const COUNT_SHARDS: u8 = 3;

/// Whose something is: what was chosen for a connection, as far as counting goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    pub set: SetId,
    pub service: CountNumber,
    pub backend: CountNumber,
}

impl CountNumber {
    /// The place of this CPU's counts: a page, and where in it. `shards` is the power of two of places per number.
    #[inline(always)]
    pub const fn place(self, shards: u8, cpu: u32) -> (u32, u32) {
        let bits = if shards > COUNT_SHARDS {
            COUNT_SHARDS
        } else {
            shards
        };
        let place = (self.0 << bits) | (cpu & ((1 << bits) - 1));
        (place / COUNT_PAGE, place % COUNT_PAGE)
    }

    /// How many numbers a page has room for.
    pub const fn per_page(shards: u8) -> u32 {
        COUNT_PAGE
            >> (if shards > COUNT_SHARDS {
                COUNT_SHARDS
            } else {
                shards
            })
    }

    /// How many places each number gets on a machine of so many CPUs, as a power of two.
    pub const fn shards(cpus: usize) -> u8 {
        match cpus {
            0 | 1 => 0,
            2 => 1,
            3 | 4 => 2,
            _ => COUNT_SHARDS,
        }
    }
}

/// What became of the traffic of one service port or one endpoint, in one place. A cache line of its own.
///
/// Connections of sockets that were sent to the endpoint itself are counted when they begin; their packets are not seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counts {
    /// For whose set was counted here last: a flow that is older than the present owner of the number does not count.
    pub set: SetId,
    pub zero: u32,
    /// New connections, or choices for a datagram socket or flow.
    pub connections: u64,
    /// Connections and packets that were refused because there is no endpoint.
    pub refusals: u64,
    /// Connections and packets that were refused or dropped for another reason.
    pub drops: u64,
    /// Packets that were translated, both ways together.
    pub packets: u64,
    pub bytes: u64,
    /// Connections that the endpoint refused or did not answer, as far as that is seen.
    pub failures: u64,
    /// Connections that were reset after they had come to be, as far as that is seen.
    pub resets: u64,
}

impl Counts {
    /// Both together, whoever's they are.
    #[must_use]
    pub const fn plus(self, other: &Self) -> Self {
        Self {
            set: self.set,
            zero: 0,
            connections: self.connections.wrapping_add(other.connections),
            refusals: self.refusals.wrapping_add(other.refusals),
            drops: self.drops.wrapping_add(other.drops),
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            failures: self.failures.wrapping_add(other.failures),
            resets: self.resets.wrapping_add(other.resets),
        }
    }
}

const _: () = assert!(size_of::<Counts>() == 64 && align_of::<Counts>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_and_cpu_has_a_place_that_no_other_number_has() {
        let shards = CountNumber::shards(4);
        let mut seen = [false; COUNT_PAGE as usize * 2];
        for number in 0..2 * CountNumber::per_page(shards) {
            for cpu in 0..4 {
                let (page, index) = CountNumber(number).place(shards, cpu);
                let place = (page * COUNT_PAGE + index) as usize;
                assert!(!core::mem::replace(&mut seen[place], true));
            }
        }
        assert!(seen.iter().all(|s| *s));
    }

    #[test]
    fn cpus_beyond_the_places_share_them() {
        let at = |cpu| CountNumber(5).place(CountNumber::shards(64), cpu);
        assert_eq!(at(1), at(9));
        assert_ne!(at(1), at(2));
    }
}
