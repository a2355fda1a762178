//! Tables on the host, for the tests of this crate.
use crate::flow::{Known, Seen, advance, known};
pub(crate) use crate::packet::tests::ip;
use crate::{FlowTable, Tables};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Be16, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, Maglev, MaglevKey, Member, MemberKey, Proto, Range, SetId, Settings, SettingsFlags,
    SourceRangeKey,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::vec::Vec;

#[derive(Default)]
pub(crate) struct Host {
    pub settings: Settings,
    pub frontends: HashMap<FrontendKey, FrontendValue>,
    pub backends: HashMap<BackendKey, Backend>,
    pub sources: Vec<(SetId, Range)>,
    pub members: RefCell<HashMap<MemberKey, Member>>,
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// One for all sets.
    pub maglev: Vec<Maglev>,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    pub random: Cell<u32>,
    pub clock: Cell<u64>,
}

impl Host {
    /// Writes the members of what stands in the slots.
    pub fn members_of_all(&mut self) {
        let member = |(k, b): (&BackendKey, &Backend)| {
            let key = MemberKey {
                set: k.set,
                generation: k.generation,
                port: b.port,
                addr: b.addr,
            };
            let value = Member {
                slot: k.slot,
                local_slot: Member::NOWHERE,
            };
            (key, value)
        };
        *self.members.borrow_mut() = self.backends.iter().map(member).collect();
    }
}

impl Tables for Host {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.get(key).copied()
    }
    fn admits(&self, key: &SourceRangeKey) -> bool {
        let of_set = self.sources.iter().filter(|(s, _)| s.0.to_be_bytes() == key.set);
        of_set.into_iter().any(|(_, r)| r.contains(key.addr))
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.members.borrow().get(key).copied()
    }
    fn maglev(&self, _: &MaglevKey, place: u16) -> Option<u16> {
        Some(self.maglev.first()?.0[place as usize])
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
    fn is_spent(&self, key: &FlowKey, now: u64) -> bool {
        let flows = self.flows.borrow();
        flows
            .get(key)
            .is_some_and(|f| crate::flow::spent(f, key.proto, now))
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}

/// A node with one service: addresses 192.0.2.1 and 2001:db8::1, pods in 10.0.0.0/8 and fd00::/64. Endpoints in 10.0.0.0/24
/// and fd00::/112 are its own.
pub(crate) fn host(vip: &str, port: u16, proto: Proto, backends: &[(&str, u16)]) -> Host {
    let mut h = Host::default();
    h.settings.flags = SettingsFlags::UPLINK;
    h.settings.service_ranges[0] = Range::new("10.96.0.0".parse().unwrap(), 16);
    h.settings.service_ranges[1] = Range::new("fd00:10:96::".parse().unwrap(), 112);
    h.settings.pod_ranges[0] = Range::new("10.0.0.0".parse().unwrap(), 8);
    h.settings.pod_ranges[1] = Range::new("fd00::".parse().unwrap(), 64);
    h.settings.node_addrs[0] = ip("192.0.2.1");
    h.settings.node_addrs[1] = ip("2001:db8::1");
    h.settings.masquerade = [ip("192.0.2.1"), ip("2001:db8::1")];
    h.settings.host_netns_cookie = 1;
    h.add(vip, port, proto, backends);
    h
}

impl Host {
    /// Adds a frontend with a set of its own.
    pub fn add(
        &mut self,
        vip: &str,
        port: u16,
        proto: Proto,
        backends: &[(&str, u16)],
    ) -> &mut FrontendValue {
        let own = [
            Range::new("10.0.0.0".parse().unwrap(), 24),
            Range::new("fd00::".parse().unwrap(), 112),
        ];
        let set = SetId(7 + self.frontends.len() as u32);
        for (slot, (addr, port)) in backends.iter().enumerate() {
            let addr = ip(addr);
            let backend = Backend {
                addr,
                port: Be16::new(*port),
                flags: if own.iter().any(|r| r.contains(addr)) {
                    Backend::LOCAL
                } else {
                    0
                },
            };
            let key = BackendKey {
                set,
                slot: slot as u16,
                ..BackendKey::default()
            };
            self.backends.insert(key, backend);
        }
        if self.settings.is_service_address(ip(vip)) {
            self.frontends
                .insert(FrontendKey::whole_address(ip(vip)), FrontendValue::default());
        }
        let key = FrontendKey::new(ip(vip), Be16::new(port), proto);
        let value = FrontendValue {
            set,
            count: backends.len() as u16,
            ..FrontendValue::default()
        };
        self.frontends.insert(key, value);
        self.frontends.get_mut(&key).unwrap()
    }
}
