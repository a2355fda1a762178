//! Tables in memory, for whoever asks the logic without a kernel: tests, and explanations of what the maps of a node would do.
use crate::flow::{Known, Seen, advance, known, spent};
use crate::{FlowTable, Tables};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Range, Settings, SourceRangeKey,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

#[cfg(test)]
pub(crate) mod sample;
mod stages;

pub use stages::{Fate, Hook, Logic, Ran, StageError, Stages};

/// What user space writes into the service maps.
pub trait Maps {
    /// The frontend of this key.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue>;
    /// The endpoint in this slot.
    fn backend(&self, key: &BackendKey) -> Option<Backend>;
    /// Whether a range of the key's set contains the key's client; [`contains`] compares as the trie does.
    fn admits(&self, client: &SourceRangeKey) -> bool;
    /// Where an endpoint stands in a set with affinity.
    fn member(&self, key: &MemberKey) -> Option<Member>;
    /// The slot at a place of a Maglev table.
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16>;
}

impl<M: Maps + ?Sized> Maps for &M {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        (**self).frontend(key)
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        (**self).backend(key)
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        (**self).admits(client)
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        (**self).member(key)
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        (**self).maglev(key, place)
    }
}

impl<M: Maps + ?Sized> Maps for Rc<M> {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        (**self).frontend(key)
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        (**self).backend(key)
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        (**self).admits(client)
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        (**self).member(key)
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        (**self).maglev(key, place)
    }
}

/// Whether an entry of the source ranges is of the client's set and contains its address: what a longest prefix match finds.
pub fn contains(entry: &SourceRangeKey, client: &SourceRangeKey) -> bool {
    // The set is the first 32 bits of every prefix.
    let range = Range {
        addr: entry.addr,
        bits: entry.bits.saturating_sub(32),
    };
    entry.set == client.set && range.contains(client.addr)
}

/// The tables of one node: its service maps, and everything that packets and sockets leave behind.
#[derive(Clone, Debug, Default)]
pub struct Host<M> {
    pub settings: Settings,
    pub maps: M,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// Where the random numbers start; each is one step further, and the steps fill 32 bits evenly.
    pub random: Cell<u32>,
    /// Nanoseconds since boot; stands still unless it is set.
    pub clock: Cell<u64>,
}

impl<M> Host<M> {
    /// A node on which nothing has happened yet.
    pub fn new(settings: Settings, maps: M) -> Self {
        Self {
            settings,
            maps,
            flows: RefCell::default(),
            fragments: RefCell::default(),
            affinity: RefCell::default(),
            random: Cell::default(),
            clock: Cell::default(),
        }
    }

    /// The same maps, memory and clock, without flows: what is asked of it leaves no trace here. `random` is where its random
    /// numbers start.
    pub fn aside(&self, random: u32) -> Host<&M> {
        Host {
            affinity: self.affinity.clone(),
            random: Cell::new(random),
            clock: self.clock.clone(),
            ..Host::new(self.settings, &self.maps)
        }
    }
}

impl<M: Maps> Tables for Host<M> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.maps.frontend(key)
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.maps.backend(key)
    }
    fn admits(&self, key: &SourceRangeKey) -> bool {
        self.maps.admits(key)
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.maps.member(key)
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        self.maps.maglev(key, place)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn keep_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
    fn now(&self) -> u64 {
        self.clock.get()
    }
    fn random(&self) -> u32 {
        let random = self.random.get();
        self.random.set(random.wrapping_add(0x9e37_79b9));
        random
    }
}

impl<M> FlowTable for Host<M> {
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known> {
        self.flows.borrow_mut().get_mut(key).map(|f| advance(f, seen))
    }
    fn look(&self, key: &FlowKey) -> Option<Known> {
        self.flows.borrow().get(key).map(known)
    }
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.flows.borrow_mut().insert(*key, *flow);
        true
    }
    fn claim(&self, key: &FlowKey, flow: &Flow) -> bool {
        let free = !self.flows.borrow().contains_key(key);
        free && self.insert(key, flow)
    }
    fn is_spent(&self, key: &FlowKey, now: u64) -> bool {
        let flows = self.flows.borrow();
        flows.get(key).is_some_and(|f| spent(f, key.proto, now))
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}
