//! The tables of a node on the host, for the logic alone.
use crate::{Case, node, settings};
use agent_services::{Existing, Planner};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Range, Settings, SourceRangeKey,
};
use datapath_logic::flow::{Known, Seen, advance, known};
use datapath_logic::{FlowTable, Tables};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// What a node's maps hold.
pub struct Host {
    settings: Settings,
    maps: Existing,
    flows: RefCell<HashMap<FlowKey, Flow>>,
    fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    random: Cell<u32>,
}

impl Host {
    /// The maps as the planner fills them for the services of a case.
    pub fn of(case: &Case) -> Self {
        let mut planner = Planner::new(node(), Existing::default());
        for service in &case.services {
            planner.service(service.view.clone());
            planner.slice(service.slice.clone());
        }
        let mut maps = Existing::default();
        maps.apply(&planner.plan());
        Self {
            settings: settings(),
            maps,
            flows: RefCell::default(),
            fragments: RefCell::default(),
            affinity: RefCell::default(),
            random: Cell::new(7),
        }
    }
}

impl Tables for Host {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.maps.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.maps.backends.get(key).copied()
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        let of_set = self.maps.ranges.iter().filter(|r| r.set == client.set);
        of_set
            .map(|r| Range {
                addr: r.addr,
                bits: r.bits - 32,
            })
            .any(|r| r.contains(client.addr))
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.maps.members.get(key).copied()
    }
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        Some(self.maps.maglev.get(key)?.0[usize::from(place)])
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn keep_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
    fn now(&self) -> u64 {
        1
    }
    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9));
        self.random.get()
    }
}

impl FlowTable for Host {
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
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}
