use super::*;
use crate::host::sample::{Host, host, ip};
use datapath_abi::{Maglev, Range, SourceRangeKey};

fn front(addr: &str, port: u16) -> Front {
    Front {
        addr: ip(addr),
        port: Be16::new(port),
        proto: Proto::TCP,
    }
}

fn inside() -> Client {
    client("10.0.0.7", Scope::Inside)
}

fn client(addr: &str, scope: Scope) -> Client {
    Client {
        scope,
        known_as: ip(addr),
        source: ip(addr),
        port: Be16::new(4000),
        of_node: false,
    }
}

/// The frontend of port 80, to be changed.
fn edit(h: &mut Host, change: impl FnOnce(&mut FrontendValue)) {
    let key = FrontendKey::new(ip("10.96.0.1"), Be16::new(80), Proto::TCP);
    change(h.maps.frontends.get_mut(&key).unwrap());
}

fn three() -> Host {
    host(
        "10.96.0.1",
        80,
        Proto::TCP,
        &[("10.0.0.1", 8080), ("10.0.0.2", 8080), ("10.0.0.3", 8081)],
    )
}

fn find80(h: &Host, addr: &str, port: u16, earlier: Option<Earlier>) -> Found {
    find(h, &front(addr, port), &inside(), &earlier.unwrap_or_default())
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
    let v = h.maps.frontends.get_mut(&key).unwrap();
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
    h.maps.backends.clear();
    assert_eq!(
        find80(&h, "10.96.0.1", 80, None),
        Found::Nowhere(Refusal::SlotMissing)
    );
}

fn slot(found: Found) -> u16 {
    match found {
        Found::Endpoint(c) => c.slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_outside_the_source_ranges_is_turned_away_before_anything_else() {
    let mut h = three();
    edit(&mut h, |v| {
        v.flags = FrontendFlags::RANGES;
        v.count = 0;
    });
    h.maps.ranges.push(SourceRangeKey::range(
        datapath_abi::SetId(7),
        &Range::new("10.0.0.0".parse().unwrap(), 30),
    ));
    let ask = |addr: &str| {
        find(
            &h,
            &front("10.96.0.1", 80),
            &client(addr, Scope::Outside),
            &Earlier::default(),
        )
    };
    assert_eq!(ask("10.0.0.4"), Found::Nowhere(Refusal::SourceNotAllowed));
    assert_eq!(ask("10.0.0.3"), Found::Nowhere(Refusal::NoEndpoint));
    let unknown = Client {
        source: Address::default(),
        ..inside()
    };
    assert_eq!(
        find(&h, &front("10.96.0.1", 80), &unknown, &Earlier::default()),
        Found::NotAService,
        "the packets are asked"
    );
}

#[test]
fn a_client_keeps_its_endpoint_until_its_time_is_over_or_the_endpoint_is_gone() {
    let mut h = three();
    edit(&mut h, |v| v.affinity = 10);
    h.maps.members_of_all();
    let ask = |h: &Host, addr: &str| {
        slot(find(
            h,
            &front("10.96.0.1", 80),
            &client(addr, Scope::Inside),
            &Earlier::default(),
        ))
    };
    let first = ask(&h, "10.0.0.7");
    for step in 0..20 {
        h.clock.set(step * 9_000_000_000);
        assert_eq!(ask(&h, "10.0.0.7"), first, "each connection renews it");
    }
    let others: std::collections::HashSet<_> =
        (1..40).map(|i| ask(&h, &std::format!("10.0.1.{i}"))).collect();
    assert_eq!(others.len(), 3, "other clients draw for themselves");
    h.clock.set(h.clock.get() + 11_000_000_000);
    let mut drawn = std::collections::HashSet::new();
    for _ in 0..20 {
        drawn.insert(ask(&h, "10.0.0.7"));
        h.clock.set(h.clock.get() + 11_000_000_000);
    }
    assert!(drawn.len() > 1, "the time is over at each of them");
    let kept = ask(&h, "10.0.0.7");
    h.maps.members.retain(|_, m| m.slot != kept);
    let again: std::collections::HashSet<_> = (0..20)
        .map(|_| {
            h.affinity
                .borrow_mut()
                .values_mut()
                .for_each(|a| a.addr = ip("10.0.0.200"));
            ask(&h, "10.0.0.7")
        })
        .collect();
    assert!(again.len() > 1, "it draws anew where the endpoint is no member");
}

#[test]
fn clients_from_outside_draw_the_same_endpoint_on_every_node() {
    let mut h = three();
    edit(&mut h, |v| {
        v.flags = FrontendFlags::MAGLEV.with(FrontendFlags::EXTERNAL)
    });
    let mut places = [0; MAGLEV_PLACES];
    places
        .iter_mut()
        .enumerate()
        .for_each(|(i, p)| *p = (i % 3) as u16);
    h.maps.maglev.push(Maglev(places));
    let mut seen = [0; 3];
    for port in 0..3000 {
        let c = Client {
            port: Be16::new(port),
            ..client("203.0.113.9", Scope::Outside)
        };
        let first = slot(find(&h, &front("10.96.0.1", 80), &c, &Earlier::default()));
        assert_eq!(
            slot(find(&h, &front("10.96.0.1", 80), &c, &Earlier::default())),
            first
        );
        seen[first as usize] += 1;
    }
    assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
}

#[test]
fn an_address_that_is_served_here_is_left_alone() {
    let mut h = three();
    edit(&mut h, |v| v.flags = FrontendFlags::HERE);
    assert_eq!(find80(&h, "10.96.0.1", 80, None), Found::NotAService);
}
