use datapath_abi::{
    Backend, BackendKey, CountNumber, FrontendFlags, FrontendKey, FrontendValue, Maglev, MaglevKey, Member,
    MemberKey, Owner, Proto, SetId, SourceRangeKey,
};
use datapath_logic::host::{Maps, contains};
use std::collections::{HashMap, HashSet};

/// What stands in the maps: read once at start, so that a new agent goes on where the last one stopped; also the form in
/// which tests compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    pub frontends: HashMap<FrontendKey, FrontendValue>,
    pub backends: HashMap<BackendKey, Backend>,
    pub members: HashMap<MemberKey, Member>,
    pub maglev: HashMap<MaglevKey, Maglev>,
    pub ranges: HashSet<SourceRangeKey>,
    pub owners: HashMap<SetId, Owner>,
}

/// The maps in memory: what a packet would find in them.
impl Maps for Existing {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.get(key).copied()
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        self.ranges.iter().any(|range| contains(range, client))
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.members.get(key).copied()
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        self.maglev.get(key)?.0.get(usize::from(place)).copied()
    }
}

impl Existing {
    /// Carries out changes as the data path would.
    pub fn apply(&mut self, c: &crate::Changes) {
        self.owners.extend(c.owners.iter().copied());
        self.backends.extend(c.backends.iter().copied());
        self.members.extend(c.members.iter().copied());
        self.maglev.extend(c.maglev.iter().copied());
        self.ranges.extend(c.ranges.iter().copied());
        self.frontends.extend(c.frontends.iter().copied());
        for key in &c.gone_frontends {
            self.frontends.remove(key);
        }
        for key in &c.gone_ranges {
            self.ranges.remove(key);
        }
        for key in &c.gone_maglev {
            self.maglev.remove(key);
        }
        for key in &c.gone_members {
            self.members.remove(key);
        }
        for key in &c.gone_backends {
            self.backends.remove(key);
        }
        for key in &c.gone_owners {
            self.owners.remove(key);
        }
    }

    /// Names what a packet could trip over: frontends that lead to slots, members, Maglev tables or source ranges that are missing, and
    /// members and Maglev tables that lead to missing slots.
    pub fn dangling(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (key, v) in &self.frontends {
            let missing = (0..v.slots()).filter(|slot| !self.backends.contains_key(&slot_key(v, *slot)));
            found.extend(
                missing.map(|slot| format!("{key:?} leads to slot {slot} of {:?}, which is missing", v.set)),
            );
            if v.flags.has(FrontendFlags::MAGLEV) && !self.maglev.contains_key(&maglev_key(v)) {
                found.push(format!("{key:?} wants a Maglev table of {:?}", v.set));
            }
            if v.flags.has(FrontendFlags::RANGES) && !self.has_ranges(v.set) {
                found.push(format!("{key:?} wants source ranges of {:?}", v.set));
            }
            if v.affinity != 0 && key.proto != Proto::ANY {
                found.extend(self.without_member(key, v));
            }
        }
        found
    }

    /// Names what does not hold together: what [`dangling`](Self::dangling) finds, and entries that nothing leads to.
    pub fn inconsistencies(&self) -> Vec<String> {
        let mut found = self.dangling();
        let of_generation: HashMap<_, _> = self
            .frontends
            .values()
            .map(|v| ((v.set, v.generation), *v))
            .collect();
        let mut last: HashMap<_, u16> = HashMap::new();
        for v in self.frontends.values() {
            let slots = last.entry((v.set, v.generation)).or_default();
            *slots = v.slots().max(*slots);
        }
        for key in self.backends.keys() {
            let last = last.get(&(key.set, key.generation));
            if last.is_none_or(|n| key.slot >= *n) {
                found.push(format!("{key:?} is named by no frontend"));
            }
        }
        for key in self.members.keys() {
            if !of_generation.contains_key(&(key.set, key.generation)) {
                found.push(format!("{key:?} is a member of what no frontend names"));
            }
        }
        for key in self.maglev.keys() {
            if !of_generation.contains_key(&(key.set, key.generation)) {
                found.push(format!("{key:?} is a table that no frontend names"));
            }
        }
        let sets: HashSet<_> = self.frontends.values().map(|v| v.set).collect();
        let ranged = self
            .ranges
            .iter()
            .map(|r| ("range", SetId(u32::from_be_bytes(r.set))));
        for (what, set) in self.owners.keys().map(|s| ("owner", *s)).chain(ranged) {
            if !sets.contains(&set) {
                found.push(format!("{set:?} has an {what} and no frontend"));
            }
        }
        found.append(&mut self.counted_twice());
        found
    }

    /// Two that are counted under one number.
    fn counted_twice(&self) -> Vec<String> {
        let mut owners = HashMap::new();
        let fronts = self.frontends.values().map(|v| (v.number, (v.set, None)));
        let backends = self.backends.iter();
        let backends = backends.map(|(k, b)| (b.number, (k.set, Some((b.addr, b.port)))));
        let mut found = Vec::new();
        for (number, owner) in fronts.chain(backends) {
            let first = *owners.entry(number).or_insert(owner);
            if first != owner || number == CountNumber::NONE {
                found.push(format!("{first:?} and {owner:?} are both counted as {number:?}"));
            }
        }
        found
    }

    fn has_ranges(&self, set: SetId) -> bool {
        self.ranges.iter().any(|r| r.set == set.0.to_be_bytes())
    }

    /// Every slot of a set with affinity is one of its member's, and no member leads elsewhere.
    fn without_member(&self, key: &FrontendKey, v: &FrontendValue) -> Vec<String> {
        let mut found = Vec::new();
        for slot in 0..v.slots() {
            let Some(b) = self.backends.get(&slot_key(v, slot)) else {
                continue;
            };
            let member = self.members.get(&MemberKey {
                set: v.set,
                generation: v.generation,
                port: b.port,
                addr: b.addr,
            });
            if !member.is_some_and(|m| m.slot == slot || m.local_slot == slot) {
                found.push(format!("{key:?} has slot {slot} that is no member's"));
            }
        }
        found
    }
}

fn slot_key(v: &FrontendValue, slot: u16) -> BackendKey {
    BackendKey {
        set: v.set,
        generation: v.generation,
        slot,
    }
}

fn maglev_key(v: &FrontendValue) -> MaglevKey {
    MaglevKey {
        set: v.set,
        generation: v.generation,
        zero: 0,
    }
}
