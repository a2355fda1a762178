//! From an address that a client uses to an endpoint, or to the reason why there is none.
use crate::Tables;
use datapath_abi::{
    Address, Backend, BackendKey, Be16, FrontendFlags, FrontendKey, FrontendValue, Proto, Scope,
};

/// An endpoint and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    pub frontend: FrontendValue,
    pub slot: u16,
    pub backend: Backend,
}

/// An earlier choice that shall be kept if its endpoint is still in the set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Earlier {
    pub slot: u16,
    pub addr: Address,
    pub port: Be16,
}

/// Why a service's address leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The service has no endpoint.
    NoEndpoint,
    /// It has some, but none on this node, and its policy is Local.
    NoLocalEndpoint,
    /// The address is a service's, the port is not.
    NoPort,
    /// The address is of the service range, and nobody's.
    NoService,
    /// The table changed twice during one look-up.
    SlotMissing,
}

/// What an address turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Not a service's: none of our business.
    NotAService,
    /// A service with this endpoint.
    Endpoint(Choice),
    /// A service, or an address reserved for one, that leads nowhere.
    Nowhere(Refusal),
}

/// Finds an endpoint for a new connection to `addr:port`.
///
/// Two look-ups for a service, one for any other address outside the service ranges.
#[inline(always)]
pub fn find<T: Tables>(
    tables: &T,
    addr: Address,
    port: Be16,
    proto: Proto,
    scope: Scope,
    earlier: Option<Earlier>,
) -> Found {
    let key = FrontendKey::new(addr, port, proto);
    // The frontend may flip to a new generation, and the old slots vanish, between the two look-ups; the second round
    // then reads the new frontend. Two flips within a microsecond do not happen, and are counted if they do.
    for _ in 0..2 {
        let Some(frontend) = tables.frontend(&key) else {
            return unknown(tables, addr);
        };
        let (first, usable) = frontend.usable(scope);
        if usable == 0 {
            return Found::Nowhere(empty(&frontend, scope));
        }
        if let Some(choice) = keep(tables, &frontend, scope, earlier) {
            return Found::Endpoint(choice);
        }
        let slot = first.wrapping_add(scale(tables.random(), usable));
        if let Some(backend) = tables.backend(&slot_key(&frontend, slot)) {
            return Found::Endpoint(Choice {
                frontend,
                slot,
                backend,
            });
        }
    }
    Found::Nowhere(Refusal::SlotMissing)
}

/// What an address without a frontend of this port is.
#[inline(always)]
pub fn unknown<T: Tables>(tables: &T, addr: Address) -> Found {
    if !tables.is_service_address(addr) {
        return Found::NotAService;
    }
    match tables.frontend(&FrontendKey::whole_address(addr)) {
        Some(_) => Found::Nowhere(Refusal::NoPort),
        None => Found::Nowhere(Refusal::NoService),
    }
}

/// The earlier endpoint, if it still is in the set: in its slot, or moved by one because one before it came or went.
#[inline(always)]
fn keep<T: Tables>(
    tables: &T,
    frontend: &FrontendValue,
    scope: Scope,
    earlier: Option<Earlier>,
) -> Option<Choice> {
    let e = earlier?;
    let (first, usable) = frontend.usable(scope);
    let here = |slot: u16| {
        if slot.wrapping_sub(first) >= usable {
            return None;
        }
        let backend = tables.backend(&slot_key(frontend, slot))?;
        (backend.addr == e.addr && backend.port == e.port).then_some(Choice {
            frontend: *frontend,
            slot,
            backend,
        })
    };
    here(e.slot)
        .or_else(|| here(e.slot.wrapping_sub(1)))
        .or_else(|| here(e.slot.wrapping_add(1)))
}

#[inline(always)]
fn empty(frontend: &FrontendValue, scope: Scope) -> Refusal {
    if frontend.is_local_for(scope) && frontend.flags.has(FrontendFlags::ELSEWHERE) {
        Refusal::NoLocalEndpoint
    } else {
        Refusal::NoEndpoint
    }
}

#[inline(always)]
fn slot_key(frontend: &FrontendValue, slot: u16) -> BackendKey {
    BackendKey {
        set: frontend.set,
        generation: frontend.generation,
        slot,
    }
}

/// Maps 32 random bits onto `0..n` without a division.
#[inline(always)]
fn scale(random: u32, n: u16) -> u16 {
    ((random as u64 * n as u64) >> 32) as u16
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::packet::tests::ip;
    use datapath_abi::SetId;
    use std::cell::Cell;
    use std::collections::HashMap;

    /// Service tables on the host.
    #[derive(Default)]
    pub(crate) struct Host {
        pub frontends: HashMap<FrontendKey, FrontendValue>,
        pub backends: HashMap<BackendKey, Backend>,
        pub ranges: std::vec::Vec<datapath_abi::Range>,
        pub random: Cell<u32>,
    }

    impl Tables for Host {
        fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
            self.frontends.get(key).copied()
        }
        fn backend(&self, key: &BackendKey) -> Option<Backend> {
            self.backends.get(key).copied()
        }
        fn is_service_address(&self, addr: Address) -> bool {
            self.ranges.iter().any(|r| r.contains(addr))
        }
        fn random(&self) -> u32 {
            self.random.set(self.random.get().wrapping_add(0x9e37_79b9));
            self.random.get()
        }
    }

    pub(crate) fn host(vip: &str, port: u16, proto: Proto, backends: &[(&str, u16)]) -> Host {
        let mut h = Host::default();
        let frontend = FrontendValue {
            set: SetId(7),
            count: backends.len() as u16,
            ..FrontendValue::default()
        };
        h.frontends
            .insert(FrontendKey::new(ip(vip), Be16::new(port), proto), frontend);
        h.frontends
            .insert(FrontendKey::whole_address(ip(vip)), FrontendValue::default());
        for (slot, (addr, port)) in backends.iter().enumerate() {
            let backend = Backend {
                addr: ip(addr),
                port: Be16::new(*port),
                flags: 0,
            };
            h.backends.insert(slot_key(&frontend, slot as u16), backend);
        }
        h.ranges
            .push(datapath_abi::Range::new("10.96.0.0".parse().unwrap(), 16));
        h
    }

    fn find80(h: &Host, addr: &str, port: u16, earlier: Option<Earlier>) -> Found {
        find(h, ip(addr), Be16::new(port), Proto::TCP, Scope::Inside, earlier)
    }

    #[test]
    fn every_endpoint_is_chosen_about_equally_often() {
        let h = host(
            "10.96.0.1",
            80,
            Proto::TCP,
            &[("10.0.0.1", 8080), ("10.0.0.2", 8080), ("10.0.0.3", 8081)],
        );
        let mut seen = [0; 3];
        for _ in 0..3000 {
            match find80(&h, "10.96.0.1", 80, None) {
                Found::Endpoint(c) => seen[c.slot as usize] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.iter().all(|&n| (900..1100).contains(&n)), "{seen:?}");
    }

    #[test]
    fn an_earlier_endpoint_is_kept_even_if_it_moved_by_one() {
        let h = host(
            "10.96.0.1",
            80,
            Proto::TCP,
            &[("10.0.0.1", 8080), ("10.0.0.2", 8080), ("10.0.0.3", 8081)],
        );
        for slot in [0, 1, 2] {
            let earlier = Earlier {
                slot,
                addr: ip("10.0.0.2"),
                port: Be16::new(8080),
            };
            for _ in 0..20 {
                match find80(&h, "10.96.0.1", 80, Some(earlier)) {
                    Found::Endpoint(c) => assert_eq!(c.backend.addr, ip("10.0.0.2")),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn addresses_outside_the_ranges_are_left_alone() {
        let h = host("10.96.0.1", 80, Proto::TCP, &[("10.0.0.1", 8080)]);
        assert_eq!(find80(&h, "10.0.0.9", 80, None), Found::NotAService);
    }

    #[test]
    fn unused_ports_and_unallocated_addresses_lead_nowhere() {
        let h = host("10.96.0.1", 80, Proto::TCP, &[("10.0.0.1", 8080)]);
        assert_eq!(find80(&h, "10.96.0.1", 81, None), Found::Nowhere(Refusal::NoPort));
        assert_eq!(
            find80(&h, "10.96.0.2", 80, None),
            Found::Nowhere(Refusal::NoService)
        );
    }

    #[test]
    fn a_service_without_endpoints_refuses_and_a_local_one_drops_if_there_are_some_elsewhere() {
        let mut h = host("10.96.0.1", 80, Proto::TCP, &[]);
        assert_eq!(
            find80(&h, "10.96.0.1", 80, None),
            Found::Nowhere(Refusal::NoEndpoint)
        );
        let key = FrontendKey::new(ip("10.96.0.1"), Be16::new(80), Proto::TCP);
        let v = h.frontends.get_mut(&key).unwrap();
        v.count = 2;
        v.flags = FrontendFlags::LOCAL_ALWAYS.with(FrontendFlags::ELSEWHERE);
        assert_eq!(
            find80(&h, "10.96.0.1", 80, None),
            Found::Nowhere(Refusal::NoLocalEndpoint)
        );
    }

    #[test]
    fn a_slot_that_is_missing_twice_is_reported() {
        let mut h = host("10.96.0.1", 80, Proto::TCP, &[("10.0.0.1", 8080)]);
        h.backends.clear();
        assert_eq!(
            find80(&h, "10.96.0.1", 80, None),
            Found::Nowhere(Refusal::SlotMissing)
        );
    }
}
