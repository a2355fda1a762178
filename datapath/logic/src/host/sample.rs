//! A small node for the tests of this crate.
use super::{Maps, contains};
pub(crate) use crate::packet::tests::ip;
use datapath_abi::{
    Backend, BackendKey, Be16, CountNumber, FrontendKey, FrontendValue, Maglev, MaglevKey, Member, MemberKey,
    Proto, Range, SetId, SettingsFlags, SourceRangeKey,
};
use std::collections::HashMap;
use std::vec::Vec;

#[derive(Default)]
pub(crate) struct Plain {
    pub frontends: HashMap<FrontendKey, FrontendValue>,
    pub backends: HashMap<BackendKey, Backend>,
    pub ranges: Vec<SourceRangeKey>,
    pub members: HashMap<MemberKey, Member>,
    /// One for all sets.
    pub maglev: Vec<Maglev>,
}

pub(crate) type Host = super::Host<Plain>;

impl Maps for Plain {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.get(key).copied()
    }
    fn admits(&self, client: &SourceRangeKey) -> bool {
        self.ranges.iter().any(|r| contains(r, client))
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.members.get(key).copied()
    }
    fn maglev(&self, _: &MaglevKey, place: u16) -> Option<u16> {
        Some(self.maglev.first()?.0[place as usize])
    }
}

impl Plain {
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
        self.members = self.backends.iter().map(member).collect();
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
        let set = SetId(7 + self.maps.frontends.len() as u32);
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
                number: CountNumber(slot as u32 + 2),
            };
            let key = BackendKey {
                set,
                slot: slot as u16,
                ..BackendKey::default()
            };
            self.maps.backends.insert(key, backend);
        }
        if self.settings.is_service_address(ip(vip)) {
            self.maps
                .frontends
                .insert(FrontendKey::whole_address(ip(vip)), FrontendValue::default());
        }
        let key = FrontendKey::new(ip(vip), Be16::new(port), proto);
        let value = FrontendValue {
            set,
            count: backends.len() as u16,
            ..FrontendValue::default()
        };
        self.maps.frontends.insert(key, value);
        self.maps.frontends.get_mut(&key).unwrap()
    }
}
