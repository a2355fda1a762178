//! Tables that can be asked without leaving a trace: service tables are read, everything that the logic writes goes into
//! memory of its own.
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Settings, SourceRangeKey,
};
use datapath_logic::flow::{Known, Seen, advance, known};
use datapath_logic::{FlowTable, Tables};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Somebody's tables, with flows and affinities of our own over them.
pub(crate) struct Scratch<'a, T> {
    tables: &'a T,
    pub random: Cell<u32>,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
}

impl<'a, T: Tables> Scratch<'a, T> {
    pub fn over(tables: &'a T) -> Self {
        Self {
            tables,
            random: Cell::new(tables.random()),
            flows: RefCell::default(),
        }
    }
}

impl<T: Tables> Tables for Scratch<'_, T> {
    fn settings(&self) -> Option<&Settings> {
        self.tables.settings()
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.tables.frontend(key)
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.tables.backend(key)
    }
    fn admits(&self, key: &SourceRangeKey) -> bool {
        self.tables.admits(key)
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.tables.member(key)
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        self.tables.maglev(key, place)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.tables.affinity(key)
    }
    fn keep_affinity(&self, _: &AffinityKey, _: &Affinity) {}
    fn now(&self) -> u64 {
        self.tables.now()
    }
    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9));
        self.random.get()
    }
}

impl<T> FlowTable for Scratch<'_, T> {
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
    fn fragment(&self, _: &FragmentKey) -> Option<FragmentPorts> {
        None
    }
    fn keep_fragment(&self, _: &FragmentKey, _: &FragmentPorts) {}
}
