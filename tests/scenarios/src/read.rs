//! What the maps say, in the words of [`rules`](crate::rules).
use crate::rules::{Fate, Front, Rule};
use agent_services::Existing;
use datapath_abi::{BackendKey, FrontendFlags, FrontendKey, FrontendValue, MaglevKey, Proto, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// All fronts of the maps.
pub fn read(maps: &Existing) -> BTreeMap<Front, Rule> {
    let ports = maps.frontends.iter().filter(|(k, _)| k.proto != Proto::ANY);
    ports.map(|(k, v)| (front(k), rule(maps, v))).collect()
}

/// Addresses of which every other port is refused.
pub fn whole_addresses(maps: &Existing) -> BTreeSet<IpAddr> {
    let whole = maps.frontends.keys().filter(|k| k.proto == Proto::ANY);
    whole.map(|k| k.addr.to_ip()).collect()
}

fn front(key: &FrontendKey) -> Front {
    (
        key.addr.to_ip(),
        key.proto.name().expect("a service's protocol"),
        key.port.get(),
    )
}

fn rule(maps: &Existing, v: &FrontendValue) -> Rule {
    Rule {
        service: maps.owners.get(&v.set).map_or("?", |o| o.text()).to_owned(),
        inside: fate(maps, v, Scope::Inside),
        outside: fate(maps, v, Scope::Outside),
        affinity: v.affinity,
        sources: v.flags.has(FrontendFlags::RANGES).then(|| sources(maps, v)),
    }
}

fn fate(maps: &Existing, v: &FrontendValue, scope: Scope) -> Fate {
    let (first, n) = v.usable(scope);
    if n == 0 {
        let elsewhere = v.is_local_for(scope) && v.flags.has(FrontendFlags::ELSEWHERE);
        return if elsewhere { Fate::Dropped } else { Fate::Rejected };
    }
    if v.flags.has(FrontendFlags::MAGLEV) && scope == Scope::Outside {
        return Fate::OneOf(through_table(maps, v));
    }
    Fate::OneOf((first..first + n).map(|slot| endpoint(maps, v, slot)).collect())
}

fn through_table(maps: &Existing, v: &FrontendValue) -> BTreeSet<(IpAddr, u16)> {
    let key = MaglevKey {
        set: v.set,
        generation: v.generation,
        zero: 0,
    };
    maps.maglev[&key]
        .0
        .iter()
        .map(|slot| endpoint(maps, v, *slot))
        .collect()
}

fn endpoint(maps: &Existing, v: &FrontendValue, slot: u16) -> (IpAddr, u16) {
    let b = maps.backends[&BackendKey {
        set: v.set,
        generation: v.generation,
        slot,
    }];
    (b.addr.to_ip(), b.port.get())
}

fn sources(maps: &Existing, v: &FrontendValue) -> BTreeSet<(IpAddr, u8)> {
    let of_set = maps.ranges.iter().filter(|r| r.set == v.set.0.to_be_bytes());
    of_set
        .map(|r| {
            let ip = r.addr.to_ip();
            let family = if ip.is_ipv4() { 96 } else { 0 };
            (ip, (r.bits - 32 - family) as u8)
        })
        .collect()
}
