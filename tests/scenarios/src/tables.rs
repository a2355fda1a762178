//! The maps as the logic sees them, with the flows and the memory of one node.
use crate::Model;
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Range, Settings, SourceRangeKey,
};
use datapath_logic::flow::{Known, Seen, advance, known, spent};
use datapath_logic::{FlowTable, Tables};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// One packet's or call's view of a node.
pub struct View<'a> {
    pub model: &'a Model,
    pub settings: Settings,
    pub random: Cell<u32>,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    /// What was remembered before, and what this view adds.
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
}

impl<'a> View<'a> {
    /// A node without flows, and with its memory of clients.
    pub fn new(model: &'a Model, random: u32) -> Self {
        Self {
            model,
            settings: model.settings(),
            random: Cell::new(random),
            flows: RefCell::default(),
            affinity: RefCell::new(model.affinity.clone()),
        }
    }
}

impl Tables for View<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.model.maps.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.model.maps.backends.get(key).copied()
    }
    fn admits(&self, key: &SourceRangeKey) -> bool {
        // As a trie does: a range of the same set that the address lies in.
        let of_set = self.model.maps.ranges.iter().filter(|r| r.set == key.set);
        of_set.into_iter().any(|r| {
            let range = Range {
                addr: r.addr,
                bits: r.bits - 32,
            };
            range.contains(key.addr)
        })
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.model.maps.members.get(key).copied()
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        Some(self.model.maps.maglev.get(key)?.0[usize::from(place)])
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn keep_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
    fn now(&self) -> u64 {
        self.model.seconds * 1_000_000_000
    }
    fn random(&self) -> u32 {
        self.random.get()
    }
}

impl FlowTable for View<'_> {
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
    fn fragment(&self, _: &FragmentKey) -> Option<FragmentPorts> {
        None
    }
    fn keep_fragment(&self, _: &FragmentKey, _: &FragmentPorts) {}
}
