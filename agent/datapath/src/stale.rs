//! What must not go on: flows and sockets without connections whose endpoint, or whose service address, is gone; and clients'
//! memories of such endpoints.
use crate::sockets::Sockets;
use agent_services::{EndedBackend, EndedFront, InUse};
use datapath_abi::{
    Address, Affinity, AffinityKey, Be16, Flow, FlowKey, FlowRole, FrontendKey, FrontendValue, MemberKey,
    Proto, ReplyKey, ReplyValue, SetId,
};
use std::collections::HashSet;

type Ends = HashSet<(SetId, Address, Be16)>;

/// Endpoints and fronts that are gone; of UDP only, TCP ends itself.
pub(crate) struct Stale {
    endpoints: Ends,
    fronts: Ends,
}

/// The endpoints that are gone, of all protocols.
pub(crate) fn endpoints(ended: &[EndedBackend]) -> Ends {
    ended.iter().map(|e| (e.set, e.addr, e.port)).collect()
}

/// Whether a client remembers one of these.
pub(crate) fn remembers(key: &AffinityKey, kept: &Affinity, endpoints: &Ends) -> bool {
    endpoints.contains(&(key.set, kept.addr, kept.port))
}

/// Sets that had affinity, and were written without.
pub(crate) fn sets_without_memory(
    gone: &[MemberKey],
    fronts: &[(FrontendKey, FrontendValue)],
) -> HashSet<SetId> {
    let had: HashSet<_> = gone.iter().map(|m| m.set).collect();
    let plain = fronts.iter().filter(|(_, v)| v.affinity == 0);
    plain
        .map(|(_, v)| v.set)
        .filter(|set| had.contains(set))
        .collect()
}

/// Whether a flow without connection leads to no endpoint in use, or comes by no front in use.
pub(crate) fn is_flow_of_nobody(key: &FlowKey, flow: &Flow, in_use: &InUse) -> bool {
    let (addr, port) = flow.endpoint(key);
    key.proto == Proto::UDP
        && (!in_use.endpoints.contains(&(flow.set, addr, port))
            || front(key, flow).is_some_and(|(addr, port)| !in_use.fronts.contains(&(flow.set, addr, port))))
}

/// The same of a socket.
pub(crate) fn is_socket_of_nobody(key: &ReplyKey, value: &ReplyValue, in_use: &InUse) -> bool {
    !in_use.endpoints.contains(&(value.set, key.addr, key.port))
        || !in_use.fronts.contains(&(value.set, value.addr, value.port))
}

impl Stale {
    pub fn of(ended: &[EndedBackend], fronts: &[EndedFront]) -> Self {
        let endpoints = ended.iter().filter(|e| e.proto == Proto::UDP);
        let fronts = fronts.iter().filter(|f| f.proto == Proto::UDP);
        Self {
            endpoints: endpoints.map(|e| (e.set, e.addr, e.port)).collect(),
            fronts: fronts.map(|f| (f.set, f.addr, f.port)).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.fronts.is_empty()
    }

    /// Whether a flow leads to an endpoint, or comes from a front, that is gone.
    pub fn has_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if key.proto != Proto::UDP {
            return false;
        }
        let (addr, port) = flow.endpoint(key);
        self.endpoints.contains(&(flow.set, addr, port))
            || front(key, flow).is_some_and(|(addr, port)| self.fronts.contains(&(flow.set, addr, port)))
    }

    /// The sockets that were sent to such an endpoint as part of its set, or by such a front.
    pub fn sockets(&self, replies: &[(ReplyKey, ReplyValue)]) -> Sockets {
        let stale = replies.iter().filter(|(key, value)| {
            self.endpoints.contains(&(value.set, key.addr, key.port))
                || self.fronts.contains(&(value.set, value.addr, value.port))
        });
        stale.map(|(key, _)| (key.cookie, key.addr, key.port)).collect()
    }
}

/// The front of a flow, as far as the entry knows it.
fn front(key: &FlowKey, flow: &Flow) -> Option<(Address, Be16)> {
    match flow.role {
        FlowRole::FORWARD => Some((key.dst, key.dport)),
        FlowRole::REPLY => Some((flow.addr, flow.port)),
        FlowRole::UNMASQUERADE => Some((flow.nat, flow.nat_port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> Address {
        Address::from_v4_word(n)
    }

    fn ended(set: u32, port: u16, proto: Proto) -> EndedBackend {
        EndedBackend {
            set: SetId(set),
            addr: address(7),
            port: Be16::new(port),
            proto,
        }
    }

    fn reply(cookie: u64, set: u32, front: u32) -> (ReplyKey, ReplyValue) {
        let value = ReplyValue {
            set: SetId(set),
            addr: address(front),
            port: Be16::new(53),
            zero: 0,
        };
        (ReplyKey::new(cookie, address(7), Be16::new(53)), value)
    }

    fn cookies(stale: &Stale, replies: &[(ReplyKey, ReplyValue)]) -> Vec<u64> {
        stale
            .sockets(replies)
            .into_iter()
            .map(|(cookie, ..)| cookie)
            .collect()
    }

    #[test]
    fn clients_of_a_set_that_loses_its_affinity_forget_whom_they_kept() {
        let member = |set| MemberKey {
            set: SetId(set),
            ..MemberKey::default()
        };
        let front = |set, affinity| {
            let value = FrontendValue {
                set: SetId(set),
                affinity,
                ..FrontendValue::default()
            };
            (FrontendKey::default(), value)
        };
        // The second has a new generation of members, the third never had any.
        let found = sets_without_memory(&[member(1), member(2)], &[front(1, 0), front(2, 60), front(3, 0)]);
        assert_eq!(found, HashSet::from([SetId(1)]));
    }

    #[test]
    fn only_sockets_that_the_set_sent_to_its_endpoint_are_stale() {
        let gone = [
            ended(1, 53, Proto::UDP),
            ended(2, 53, Proto::TCP),
            ended(2, 54, Proto::UDP),
        ];
        let stale = Stale::of(&gone, &[]);
        assert_eq!(cookies(&stale, &[reply(1, 1, 9), reply(2, 2, 9)]), [1]);
    }

    #[test]
    fn sockets_and_flows_of_a_front_that_is_gone_are_stale() {
        let front = EndedFront {
            set: SetId(1),
            addr: address(9),
            port: Be16::new(53),
            proto: Proto::UDP,
        };
        let stale = Stale::of(&[], &[front]);
        assert_eq!(
            cookies(&stale, &[reply(1, 1, 9), reply(2, 1, 8), reply(3, 2, 9)]),
            [1]
        );
        let key = FlowKey {
            dst: address(9),
            dport: Be16::new(53),
            proto: Proto::UDP,
            ..FlowKey::default()
        };
        let flow = Flow {
            set: SetId(1),
            ..Flow::default()
        };
        assert!(stale.has_flow(&key, &flow));
        assert!(!stale.has_flow(&key, &Flow::default()), "another set's");
        let tcp = FlowKey {
            proto: Proto::TCP,
            ..key
        };
        assert!(!stale.has_flow(&tcp, &flow));
    }
}
