//! Maglev hashing (Eisenbud et al., NSDI 2016): a table in which each endpoint has about as many places, and in which few places change their endpoint when one comes
//! or goes.
use datapath_abi::{Backend, MAGLEV_PLACES, Maglev};

/// Beyond as many endpoints no table is made, and clients draw by chance: shares would differ by more than a fifth.
pub(crate) const MOST: usize = 50;

/// An endpoint's own order of places.
struct Preference {
    slot: u16,
    next: usize,
    skip: usize,
}

/// The table of the endpoints in these slots. It depends on their addresses and ports, not on the slots' order, which each node has for itself.
pub(crate) fn table(slots: &[Backend]) -> Maglev {
    let mut all: Vec<_> = slots.iter().zip(0_u16..).collect();
    all.sort_unstable_by_key(|(b, _)| (b.addr, b.port));
    let mut preferences: Vec<_> = all.iter().map(|(b, slot)| preference(b, *slot)).collect();
    let mut places = [u16::MAX; MAGLEV_PLACES];
    let mut left = if preferences.is_empty() { 0 } else { MAGLEV_PLACES };
    while left > 0 {
        for p in &mut preferences {
            // A prime number of places: every one comes up before one comes again.
            while places[p.next] != u16::MAX {
                p.next = (p.next + p.skip) % MAGLEV_PLACES;
            }
            places[p.next] = p.slot;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    Maglev(places)
}

fn preference(b: &Backend, slot: u16) -> Preference {
    let [w0, w1, w2, w3] = b.addr.words().map(|w| u64::from(u32::from_be(w)));
    let h = mix(mix(w0 << 32 | w1) ^ mix((w2 << 32 | w3).wrapping_add(u64::from(b.port.get()) << 40)));
    Preference {
        slot,
        next: (h as u32) as usize % MAGLEV_PLACES,
        skip: (h >> 32) as usize % (MAGLEV_PLACES - 1) + 1,
    }
}

/// The finisher of SplitMix64: every bit of the input changes half of the output.
fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_abi::Be16;
    use std::net::IpAddr;

    fn backends(n: u8) -> Vec<Backend> {
        (1..=n)
            .map(|i| Backend {
                addr: IpAddr::from([10, 244, i % 3, i]).into(),
                port: Be16::new(8080),
                flags: u16::from(i % 2),
                ..Backend::default()
            })
            .collect()
    }

    #[test]
    fn shares_differ_by_one_place_at_most() {
        for n in [1, 2, 3, 7, 25, 50] {
            let mut shares = vec![0; usize::from(n)];
            table(&backends(n))
                .0
                .iter()
                .for_each(|s| shares[usize::from(*s)] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
        }
    }

    #[test]
    fn nodes_with_another_order_of_slots_lead_to_the_same_endpoints() {
        let here = backends(9);
        let mut there = here.clone();
        there.reverse();
        there.iter_mut().for_each(|b| b.flags ^= 1);
        let (a, b) = (table(&here), table(&there));
        for (x, y) in a.0.iter().zip(&b.0) {
            assert_eq!(here[usize::from(*x)].addr, there[usize::from(*y)].addr);
        }
    }

    #[test]
    fn an_endpoint_that_goes_moves_little_else() {
        let before = backends(10);
        let after = &before[..9];
        let (a, b) = (table(&before), table(after));
        let moved = a.0.iter().zip(&b.0).filter(|(x, y)| **x != 9 && x != y).count();
        assert!(moved < MAGLEV_PLACES / 8, "{moved} places of others moved");
    }
}
