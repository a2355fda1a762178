//! One set as it stands in the maps, and the step from there to what is wanted.
use crate::changes::{Changes, EndedBackend};
use crate::endpoints::Usable;
use crate::existing::Existing;
use datapath_abi::{
    Backend, BackendKey, FrontendFlags, FrontendKey, FrontendValue, Generation, Owner, Proto, SetId,
};
use std::collections::BTreeMap;

/// Which set of a service: a port in a family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetKey {
    pub port: crate::view::PortView,
    pub v4: bool,
}

/// What a set shall be.
pub(crate) struct Wanted {
    pub key: SetKey,
    pub frontends: Vec<FrontendKey>,
    pub local_only: bool,
    pub usable: Usable,
}

/// What a set is, in the maps.
#[derive(Debug)]
pub(crate) struct Programmed {
    pub id: SetId,
    generation: Generation,
    backends: Vec<Backend>,
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    /// Get no new connections any more, but still serve the ones they have.
    lingering: Vec<Backend>,
}

impl Programmed {
    /// A set of which nothing stands in the maps yet; writes its owner.
    pub fn new(id: SetId, owner: &str, out: &mut Changes) -> Self {
        out.owners.push((id, Owner::new(owner)));
        Self {
            id,
            generation: Generation(0),
            backends: Vec::new(),
            frontends: BTreeMap::new(),
            lingering: Vec::new(),
        }
    }

    /// A set that an earlier agent wrote.
    pub fn adopt(
        id: SetId,
        owner: &str,
        wanted: &[FrontendKey],
        existing: &Existing,
        out: &mut Changes,
    ) -> Self {
        let frontends: BTreeMap<_, _> = wanted
            .iter()
            .filter_map(|k| Some((*k, *existing.frontends.get(k)?)))
            .filter(|(_, v)| v.set == id)
            .collect();
        let of_ports = || {
            frontends
                .iter()
                .filter(|(k, _)| k.proto != Proto::ANY)
                .map(|(_, v)| v)
        };
        // After a stop in the middle of a flip, frontends may name two generations: the newer one is complete.
        let newest = of_ports().map(|v| v.generation).reduce(newer);
        let slots = of_ports()
            .filter(|v| Some(v.generation) == newest)
            .map(|v| v.count.max(v.local))
            .max();
        let generation = newest.unwrap_or_default();
        let backends = (0..slots.unwrap_or(0)).map_while(|slot| {
            existing
                .backends
                .get(&BackendKey {
                    set: id,
                    generation,
                    slot,
                })
                .copied()
        });
        let owner = Owner::new(owner);
        if existing.owners.get(&id) != Some(&owner) {
            out.owners.push((id, owner));
        }
        Self {
            id,
            generation,
            backends: backends.collect(),
            frontends,
            lingering: Vec::new(),
        }
    }

    /// Changes what stands into what is wanted.
    pub fn become_(&mut self, wanted: Wanted, proto: Proto, out: &mut Changes) {
        let Wanted {
            frontends,
            local_only,
            usable,
            ..
        } = wanted;
        self.end_flows(&usable, proto, out);
        let value = FrontendValue {
            set: self.id,
            generation: self.write_slots(usable.backends, out),
            flags: flags(local_only, usable.elsewhere),
            count: self.backends.len() as u16,
            local: usable.local as u16,
            ..FrontendValue::default()
        };
        let mut next = BTreeMap::new();
        for key in frontends {
            let value = if key.proto == Proto::ANY {
                self.whole_address()
            } else {
                value
            };
            if self.frontends.get(&key) != Some(&value) {
                out.frontends.push((key, value));
            }
            next.insert(key, value);
        }
        let gone = self.frontends.keys().filter(|k| !next.contains_key(k));
        out.gone_frontends.extend(gone);
        self.frontends = next;
    }

    /// Removes everything of this set.
    pub fn vanish(self, proto: Proto, out: &mut Changes) {
        out.gone_frontends.extend(self.frontends.keys());
        out.gone_backends
            .extend(slots(self.id, self.generation, self.backends.len()));
        out.gone_owners.push(self.id);
        for b in self.backends.iter().chain(&self.lingering) {
            out.ended.push(ended(self.id, b, proto));
        }
    }

    /// All slots of this set that are to stand.
    pub fn slot_keys(&self) -> impl Iterator<Item = BackendKey> {
        slots(self.id, self.generation, self.backends.len())
    }

    /// Writes other endpoints under a new generation; the same ones are left alone.
    fn write_slots(&mut self, backends: Vec<Backend>, out: &mut Changes) -> Generation {
        if self.backends != backends {
            out.gone_backends.extend(self.slot_keys());
            self.generation = self.generation.next();
            self.backends = backends;
            out.backends
                .extend(self.slot_keys().zip(self.backends.iter().copied()));
        }
        self.generation
    }

    /// The address itself is known, and no port of it is served by this entry.
    fn whole_address(&self) -> FrontendValue {
        FrontendValue {
            set: self.id,
            ..FrontendValue::default()
        }
    }

    fn end_flows(&mut self, usable: &Usable, proto: Proto, out: &mut Changes) {
        let before = self.backends.iter().chain(&self.lingering).copied();
        let (lingering, gone): (Vec<_>, Vec<_>) = before
            .filter(|b| !usable.backends.contains(b))
            .partition(|b| usable.serving.contains(b));
        out.ended.extend(gone.iter().map(|b| ended(self.id, b, proto)));
        self.lingering = lingering;
    }
}

/// The later of two generations of one set; they are never more than a few apart, so wrapping is told by the distance.
fn newer(a: Generation, b: Generation) -> Generation {
    if b.0.wrapping_sub(a.0) < u16::MAX / 2 {
        b
    } else {
        a
    }
}

fn flags(local_only: bool, elsewhere: bool) -> FrontendFlags {
    match (local_only, elsewhere) {
        (false, _) => FrontendFlags::NONE,
        (true, false) => FrontendFlags::LOCAL_ALWAYS,
        (true, true) => FrontendFlags::LOCAL_ALWAYS.with(FrontendFlags::ELSEWHERE),
    }
}

fn slots(set: SetId, generation: Generation, n: usize) -> impl Iterator<Item = BackendKey> {
    (0..n as u16).map(move |slot| BackendKey {
        set,
        generation,
        slot,
    })
}

fn ended(set: SetId, b: &Backend, proto: Proto) -> EndedBackend {
    EndedBackend {
        set,
        addr: b.addr,
        port: b.port,
        proto,
    }
}
