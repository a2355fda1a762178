//! The table over the logic alone: needs nothing.
use datapath_abi::{
    Address, Backend, BackendKey, Flow, FlowKey, FrontendKey, FrontendValue, Proto, Range, SetId,
};
use datapath_logic::flow::{Known, Seen, advance};
use datapath_logic::forward::{Verdict, reply, request};
use datapath_logic::packet::parse;
use datapath_logic::{FlowTable, Tables, rewrite};
use std::cell::RefCell;
use std::collections::HashMap;
use tests_packets::{Case, Hook, Outcome, Step, checksums_hold, table, wire};

/// The maps of one node, on the host.
#[derive(Default)]
struct Host {
    frontends: HashMap<FrontendKey, FrontendValue>,
    backends: HashMap<BackendKey, Backend>,
    flows: RefCell<HashMap<FlowKey, Flow>>,
}

impl Host {
    fn of(case: &Case) -> Self {
        let mut host = Self::default();
        for (i, (vip, proto, endpoints)) in case.services.iter().enumerate() {
            let (addr, port) = wire(vip);
            let value = FrontendValue {
                set: SetId(i as u32 + 1),
                count: endpoints.len() as u16,
                ..FrontendValue::default()
            };
            host.frontends.insert(FrontendKey::new(addr, port, *proto), value);
            host.frontends
                .insert(FrontendKey::whole_address(addr), FrontendValue::default());
            for (slot, endpoint) in endpoints.iter().enumerate() {
                let (addr, port) = wire(endpoint);
                let key = BackendKey {
                    set: value.set,
                    slot: slot as u16,
                    ..BackendKey::default()
                };
                host.backends.insert(key, Backend { addr, port, flags: 0 });
            }
        }
        host
    }
}

impl Tables for Host {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        self.frontends.get(key).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.get(key).copied()
    }
    fn is_service_address(&self, addr: Address) -> bool {
        let ranges = [("10.96.0.0", 16), ("fd00:10:96::", 112)];
        ranges
            .iter()
            .any(|(a, bits)| Range::new(a.parse().expect("a range"), *bits).contains(addr))
    }
    fn random(&self) -> u32 {
        7
    }
}

impl FlowTable for Host {
    fn now(&self) -> u64 {
        1
    }
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known> {
        self.flows.borrow_mut().get_mut(key).map(|f| advance(f, seen))
    }
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.flows.borrow_mut().insert(*key, *flow);
        true
    }
}

fn check(host: &Host, case: &str, step: &Step) {
    let mut bytes = step.frame.bytes();
    let p = parse(&bytes[..]).expect("the table's frames are whole");
    let len = bytes.len() as u32;
    let verdict = match step.hook {
        Hook::FromPod => request(host, &p, len),
        Hook::ToPod => reply(host, &p, len),
    };
    match (&step.outcome, verdict) {
        (Outcome::Untouched, Verdict::Pass)
        | (Outcome::Rejected, Verdict::Reject(_))
        | (Outcome::Dropped, Verdict::Drop(_)) => {}
        (Outcome::SentTo(to), Verdict::Rewrite(r, _)) => {
            assert!(rewrite::apply(&mut bytes, &r), "{case}: not applied");
            let p = parse(&bytes[..]).expect("still whole");
            assert_eq!((p.dst, p.dport), wire(to), "{case}");
            assert!(checksums_hold(&bytes), "{case}: wrong checksum");
        }
        (Outcome::ComesFrom(from), Verdict::Rewrite(r, _)) => {
            assert!(rewrite::apply(&mut bytes, &r), "{case}: not applied");
            let p = parse(&bytes[..]).expect("still whole");
            assert_eq!((p.src, p.sport), wire(from), "{case}");
            assert!(checksums_hold(&bytes), "{case}: wrong checksum");
        }
        (wanted, got) => panic!("{case}: {:?} wanted {wanted:?}, got {got:?}", step.frame),
    }
}

#[test]
fn the_logic_does_with_every_packet_what_the_table_says() {
    for case in table() {
        let host = Host::of(&case);
        for step in &case.steps {
            check(&host, case.name, step);
        }
    }
}

#[test]
fn a_datagram_without_checksum_keeps_none() {
    let case = &table()[2];
    let host = Host::of(case);
    let mut bytes = case.steps[0].frame.bytes();
    bytes[40..42].copy_from_slice(&[0, 0]);
    let p = parse(&bytes[..]).expect("whole");
    assert_eq!(p.proto, Proto::UDP);
    let Verdict::Rewrite(r, _) = request(&host, &p, bytes.len() as u32) else {
        panic!("not translated");
    };
    assert!(rewrite::apply(&mut bytes, &r));
    assert_eq!(bytes[40..42], [0, 0]);
}
