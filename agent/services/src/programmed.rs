//! One set: what of it stands in the maps, and how it becomes what is wanted.
use crate::changes::{Changes, EndedBackend, EndedFront};
use crate::endpoints::Usable;
use crate::existing::Existing;
use crate::in_use::InUse;
use crate::maglev;
use crate::numbers::Numbers;
use crate::view::PortView;
use datapath_abi::{
    Address, Backend, BackendKey, Be16, CountNumber, FrontendFlags, FrontendKey, FrontendValue, Generation,
    MaglevKey, Member, MemberKey, Owner, Proto, SetId, SourceRangeKey,
};
use std::sync::Arc;

/// Which set of a service: a port in a family. Another node port does not make it another set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetKey {
    pub name: Arc<str>,
    pub proto: Proto,
    pub port: u16,
    pub v4: bool,
}

impl SetKey {
    pub fn is_of(&self, port: &PortView, v4: bool) -> bool {
        self.v4 == v4 && self.port == port.port && self.proto == port.proto && self.name == port.name
    }
}

/// A frontend that a set shall have, with the flags that do not depend on its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    pub key: FrontendKey,
    pub flags: FrontendFlags,
}

/// What a set shall be.
pub(crate) struct Wanted<'a> {
    pub port: &'a PortView,
    pub v4: bool,
    pub fronts: Vec<Front>,
    pub usable: Usable,
    pub affinity: u32,
    /// Whether clients from outside shall choose through a Maglev table.
    pub maglev: bool,
    pub ranges: Vec<datapath_abi::Range>,
}

/// What a set is, in the maps.
#[derive(Debug)]
pub(crate) struct Programmed {
    pub id: SetId,
    pub key: SetKey,
    number: CountNumber,
    generation: Generation,
    slots: Box<[Backend]>,
    count: u16,
    local_first: u16,
    local: u16,
    pub elsewhere: bool,
    /// What stands in all frontends of ports but their flags.
    standing: FrontendValue,
    /// The frontends that stand, in order, with the flags that stand in them.
    pub fronts: Box<[Front]>,
    ranges: Box<[SourceRangeKey]>,
    members: bool,
    maglev: bool,
    /// Get no new connections any more, but still serve the ones they have.
    lingering: Box<[Backend]>,
    /// Still wanted, in the plan under way.
    pub kept: bool,
}

impl Programmed {
    /// A set of which nothing stands in the maps yet; writes its owner.
    pub fn new(id: SetId, key: SetKey, owner: &str, number: CountNumber, out: &mut Changes) -> Self {
        out.owners.push((id, Owner::new(owner)));
        Self {
            id,
            key,
            number,
            generation: Generation(0),
            slots: Box::default(),
            count: 0,
            local_first: 0,
            local: 0,
            elsewhere: false,
            standing: FrontendValue::default(),
            fronts: Box::default(),
            ranges: Box::default(),
            members: false,
            maglev: false,
            lingering: Box::default(),
            kept: true,
        }
    }

    /// A set that an earlier agent wrote. Members, tables and ranges count as missing: those that stand already are not
    /// written again in the end.
    pub fn adopt(
        id: SetId,
        key: SetKey,
        owner: &str,
        fronts: &[Front],
        existing: &Existing,
        numbers: &mut Numbers,
        out: &mut Changes,
    ) -> Self {
        let mut set = Self::new(id, key, owner, CountNumber::NONE, &mut Changes::default());
        let owner = Owner::new(owner);
        if existing.owners.get(&id) != Some(&owner) {
            out.owners.push((id, owner));
        }
        let standing: Vec<(FrontendKey, FrontendValue)> = fronts
            .iter()
            .filter_map(|f| Some((f.key, *existing.frontends.get(&f.key)?)))
            .filter(|(_, v)| v.set == id)
            .collect();
        let counted = standing.iter().map(|(_, v)| v.number);
        set.number = counted
            .max()
            .filter(|n| *n != CountNumber::NONE)
            .unwrap_or_else(|| numbers.take());
        let of_ports = standing.iter().filter(|(k, _)| k.proto != Proto::ANY);
        // After a stop in the middle of a flip, frontends may name two generations: the newer one is complete.
        let newest = of_ports.map(|(_, v)| *v).reduce(|a, b| {
            if is_newer(a.generation, b.generation) {
                b
            } else {
                a
            }
        });
        if let Some(v) = newest {
            (set.generation, set.count) = (v.generation, v.count);
            (set.local_first, set.local) = (v.local_first, v.local);
            let slots = slots(id, v.generation, usize::from(v.slots()))
                .map_while(|k| existing.backends.get(&k).copied());
            set.slots = slots.collect();
            set.standing = FrontendValue {
                flags: FrontendFlags::NONE,
                ..v
            };
        }
        set.keep(&standing);
        set
    }

    /// Takes the frontends that have the newest value as standing; the others are written again.
    fn keep(&mut self, standing: &[(FrontendKey, FrontendValue)]) {
        let mut fronts: Vec<Front> = standing
            .iter()
            .map(|(key, v)| {
                (
                    Front {
                        key: *key,
                        flags: v.flags,
                    },
                    v,
                )
            })
            .filter(|(f, v)| self.value(f) == **v)
            .map(|(f, _)| f)
            .collect();
        fronts.sort_unstable_by_key(|f| f.key);
        self.fronts = fronts.into();
    }

    /// What stands in a frontend with these flags.
    fn value(&self, front: &Front) -> FrontendValue {
        let flags = front.flags;
        if front.key.proto == Proto::ANY {
            // The address itself is known, and no port of it is served by this entry.
            let set = self.id;
            return FrontendValue {
                set,
                flags,
                number: self.number,
                ..FrontendValue::default()
            };
        }
        FrontendValue {
            flags,
            ..self.standing
        }
    }

    /// Changes what stands into what is wanted.
    pub fn become_(&mut self, mut wanted: Wanted<'_>, numbers: &mut Numbers, out: &mut Changes) {
        self.number_slots(&mut wanted.usable, numbers);
        self.end_flows(&wanted.usable, numbers, out);
        self.elsewhere = wanted.usable.elsewhere;
        self.write_slots(std::mem::take(&mut wanted.usable), out);
        self.write_members(wanted.affinity != 0, out);
        self.write_maglev(wanted.maglev, out);
        self.write_ranges(&wanted, out);
        self.write_frontends(&wanted, out);
    }

    /// An earlier agent may have left flows to endpoints that serve, but get no new ones: these are to end with the endpoint.
    pub fn expect_flows(&mut self, usable: &Usable) {
        if self.fronts.is_empty() {
            // Nothing led to this set so far.
            return;
        }
        let mut known: Vec<_> = self.slots.iter().map(|b| (b.addr, b.port)).collect();
        known.sort_unstable();
        let others = usable
            .serving
            .iter()
            .filter(|end| known.binary_search(end).is_err());
        let backend = |(addr, port): &(Address, Be16)| Backend {
            addr: *addr,
            port: *port,
            ..Backend::default()
        };
        self.lingering = others.map(backend).collect();
    }

    /// Adds what flows of this set may lead to and come by.
    pub fn tell_use(&self, found: &mut InUse) {
        let endpoints = self.slots.iter().chain(&self.lingering);
        found
            .endpoints
            .extend(endpoints.map(|b| (self.id, b.addr, b.port)));
        let fronts = self.fronts.iter().filter(|f| f.key.proto != Proto::ANY);
        found
            .fronts
            .extend(fronts.map(|f| (self.id, f.key.addr, f.key.port)));
    }

    /// Removes everything of this set.
    pub fn vanish(mut self, numbers: &mut Numbers, out: &mut Changes) {
        self.numbers().for_each(|n| numbers.give_back(n));
        out.gone_frontends.extend(self.fronts.iter().map(|f| f.key));
        out.gone_ranges.extend(&self.ranges);
        self.drop_generation(out);
        out.gone_owners.push(self.id);
        for b in self.slots.iter().chain(&self.lingering) {
            out.ended.push(self.ended(b));
        }
    }

    /// Whether it is reached from outside the cluster.
    pub fn is_external(&self) -> bool {
        let mut flags = self.fronts.iter().map(|f| f.flags);
        flags.any(|f| f.has(FrontendFlags::EXTERNAL))
    }

    /// All numbers of this set, each once.
    pub fn numbers(&self) -> impl Iterator<Item = CountNumber> {
        let mut all: Vec<_> = self
            .slots
            .iter()
            .chain(&self.lingering)
            .map(|b| b.number)
            .collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().chain([self.number])
    }

    /// Endpoints keep their numbers as long as they serve; new ones get one each, wherever they stand.
    fn number_slots(&self, usable: &mut Usable, numbers: &mut Numbers) {
        let id = |b: &Backend| (b.addr, b.port);
        let mut known: Vec<Backend> = self.slots.iter().chain(&self.lingering).copied().collect();
        known.sort_unstable_by_key(id);
        let cluster = usize::from(usable.count).min(usable.slots.len());
        for i in 0..usable.slots.len() {
            let (before, rest) = usable.slots.split_at_mut(i);
            let slot = &mut rest[0];
            // The slots of the Local set may be those of endpoints of the Cluster set too.
            let twins = if i < cluster { &[] } else { &before[..cluster] };
            let earlier = known.binary_search_by_key(&id(slot), id);
            slot.number = match earlier.map(|at| known[at].number) {
                Ok(number) if number != CountNumber::NONE => number,
                // Under what number an earlier agent counted those that it left is not known.
                _ => match twins.iter().find(|b| is_same(b, slot)) {
                    Some(twin) => twin.number,
                    None => numbers.take(),
                },
            };
        }
    }

    /// All slots of this set that are to stand.
    pub fn slot_keys(&self) -> impl Iterator<Item = BackendKey> {
        slots(self.id, self.generation, self.slots.len())
    }

    /// All members that are to stand.
    pub fn member_keys(&self) -> impl Iterator<Item = MemberKey> {
        let with: &[Backend] = if self.members { &self.slots } else { &[] };
        with.iter().map(|b| self.member_key(b))
    }

    /// The Maglev table that is to stand.
    pub fn maglev_key(&self) -> Option<MaglevKey> {
        self.maglev.then_some(MaglevKey {
            set: self.id,
            generation: self.generation,
            zero: 0,
        })
    }

    /// The source ranges that are to stand.
    pub fn range_keys(&self) -> impl Iterator<Item = SourceRangeKey> {
        self.ranges.iter().copied()
    }

    /// Writes other endpoints under a new generation; the same ones are left alone.
    fn write_slots(&mut self, usable: Usable, out: &mut Changes) {
        let before = (self.count, self.local_first, self.local);
        let after = (usable.count, usable.local_first, usable.local);
        if before == after && *self.slots == *usable.slots {
            return;
        }
        self.drop_generation(out);
        self.generation = self.generation.next();
        self.slots = usable.slots.into();
        (self.count, self.local_first, self.local) = after;
        let keys = slots(self.id, self.generation, self.slots.len());
        out.backends.extend(keys.zip(self.slots.iter().copied()));
    }

    /// Deletes what stands under the present generation.
    fn drop_generation(&mut self, out: &mut Changes) {
        out.gone_backends.extend(self.slot_keys());
        out.gone_members.extend(self.member_keys());
        out.gone_maglev.extend(self.maglev_key());
        (self.members, self.maglev) = (false, false);
    }

    fn member_key(&self, b: &Backend) -> MemberKey {
        MemberKey {
            set: self.id,
            generation: self.generation,
            port: b.port,
            addr: b.addr,
        }
    }

    fn write_members(&mut self, wanted: bool, out: &mut Changes) {
        if wanted == self.members {
            return;
        }
        if !wanted {
            out.gone_members.extend(self.member_keys());
            self.members = false;
            return;
        }
        self.members = true;
        let cluster = usize::from(self.count);
        for (slot, b) in (0_u16..).zip(&self.slots[..cluster.min(self.slots.len())]) {
            let is_local = slot.wrapping_sub(self.local_first) < self.local;
            let local_slot = if is_local {
                slot
            } else {
                self.place_in_local(b).unwrap_or(Member::NOWHERE)
            };
            out.members
                .push((self.member_key(b), Member { slot, local_slot }));
        }
        for (local_slot, b) in (0_u16..).zip(&self.slots).skip(cluster) {
            let in_cluster = self.slots[..cluster].iter().any(|c| is_same(c, b));
            if !in_cluster {
                let slot = Member::NOWHERE;
                out.members
                    .push((self.member_key(b), Member { slot, local_slot }));
            }
        }
    }

    /// The slot behind the Cluster set that this endpoint has too.
    fn place_in_local(&self, b: &Backend) -> Option<u16> {
        let behind = (0_u16..).zip(&self.slots).skip(usize::from(self.count));
        behind
            .into_iter()
            .find(|(_, l)| is_same(l, b))
            .map(|(slot, _)| slot)
    }

    fn write_maglev(&mut self, wanted: bool, out: &mut Changes) {
        let cluster = &self.slots[..usize::from(self.count).min(self.slots.len())];
        let wanted = wanted && (2..=maglev::MOST).contains(&cluster.len());
        if wanted == self.maglev {
            return;
        }
        if !wanted {
            out.gone_maglev.extend(self.maglev_key());
        }
        self.maglev = wanted;
        if let Some(key) = self.maglev_key() {
            out.maglev.push((key, maglev::table(cluster)));
        }
    }

    fn write_ranges(&mut self, wanted: &Wanted<'_>, out: &mut Changes) {
        let mut next: Vec<_> = wanted
            .ranges
            .iter()
            .map(|r| SourceRangeKey::range(self.id, r))
            .collect();
        next.sort_unstable();
        next.dedup();
        if *next == *self.ranges {
            return;
        }
        out.ranges
            .extend(next.iter().filter(|k| self.ranges.binary_search(k).is_err()));
        out.gone_ranges
            .extend(self.ranges.iter().filter(|k| next.binary_search(k).is_err()));
        self.ranges = next.into();
    }

    fn write_frontends(&mut self, wanted: &Wanted<'_>, out: &mut Changes) {
        let mut next: Vec<Front> = wanted.fronts.iter().map(|f| self.with_flags(f)).collect();
        next.sort_unstable_by_key(|f| f.key);
        let value = FrontendValue {
            set: self.id,
            generation: self.generation,
            flags: FrontendFlags::NONE,
            count: self.count,
            local: self.local,
            local_first: self.local_first,
            zero: 0,
            affinity: wanted.affinity,
            number: self.number,
        };
        let is_same = std::mem::replace(&mut self.standing, value) == value;
        if is_same && *next == *self.fronts {
            return;
        }
        let standing = |f: &Front, of: &[Front]| {
            let place = of.binary_search_by_key(&f.key, |f| f.key).ok()?;
            Some(of[place].flags)
        };
        for front in &next {
            let stays = is_same || front.key.proto == Proto::ANY;
            if !stays || standing(front, &self.fronts) != Some(front.flags) {
                out.frontends.push((front.key, self.value(front)));
            }
        }
        let gone = self.fronts.iter().filter(|f| standing(f, &next).is_none());
        for Front { key, .. } in gone {
            out.gone_frontends.push(*key);
            if key.proto != Proto::ANY {
                out.ended_fronts.push(EndedFront {
                    set: self.id,
                    addr: key.addr,
                    port: key.port,
                    proto: key.proto,
                });
            }
        }
        self.fronts = next.into();
    }

    /// A frontend with all its flags.
    fn with_flags(&self, front: &Front) -> Front {
        let Front { key, flags } = *front;
        if key.proto == Proto::ANY {
            return *front;
        }
        let local_counts = flags.has(FrontendFlags::LOCAL_ALWAYS) || flags.has(FrontendFlags::LOCAL_OUTSIDE);
        let maglev = self.maglev && flags.has(FrontendFlags::EXTERNAL);
        let flags = flags
            .with_if(self.elsewhere && local_counts, FrontendFlags::ELSEWHERE)
            .with_if(maglev, FrontendFlags::MAGLEV);
        Front { key, flags }
    }

    fn end_flows(&mut self, usable: &Usable, numbers: &mut Numbers, out: &mut Changes) {
        if self.lingering.is_empty() && *self.slots == *usable.slots {
            return;
        }
        let id = |b: &Backend| (b.addr, b.port);
        let mut used: Vec<(Address, Be16)> = usable.slots.iter().map(id).collect();
        used.sort_unstable();
        let mut before: Vec<Backend> = self.slots.iter().chain(&self.lingering).copied().collect();
        before.sort_unstable_by_key(id);
        before.dedup_by_key(|b| id(b));
        let (lingering, gone): (Vec<_>, Vec<_>) = before
            .into_iter()
            .filter(|b| used.binary_search(&id(b)).is_err())
            .partition(|b| usable.serving.binary_search(&id(b)).is_ok());
        out.ended.extend(gone.iter().map(|b| self.ended(b)));
        gone.iter().for_each(|b| numbers.give_back(b.number));
        self.lingering = lingering.into();
    }

    fn ended(&self, b: &Backend) -> EndedBackend {
        EndedBackend {
            set: self.id,
            addr: b.addr,
            port: b.port,
            proto: self.key.proto,
        }
    }
}

fn is_same(a: &Backend, b: &Backend) -> bool {
    a.addr == b.addr && a.port == b.port
}

/// Whether `b` is later; generations of one set are never more than a few apart, so wrapping is told by the distance.
fn is_newer(a: Generation, b: Generation) -> bool {
    b.0.wrapping_sub(a.0) < u16::MAX / 2
}

fn slots(set: SetId, generation: Generation, n: usize) -> impl Iterator<Item = BackendKey> {
    (0..n as u16).map(move |slot| BackendKey {
        set,
        generation,
        slot,
    })
}
