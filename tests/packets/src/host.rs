//! The tables of a node on the host, for the logic alone.
use crate::check::{Done, Node};
use crate::{Case, Hook, node, settings};
use agent_datapath::FlowMemory;
use agent_services::{Existing, Planner};
use anyhow::Result;
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Proto, Range, Settings, SourceRangeKey,
};
use datapath_logic::flow::{Known, Seen, advance, known, spent};
use datapath_logic::forward::{self, Verdict};
use datapath_logic::packet::{ETHERNET, Parsed, parse};
use datapath_logic::{FlowTable, Tables, reject, rewrite};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// What a node's maps hold.
#[derive(Clone)]
pub struct Host {
    settings: Settings,
    maps: Rc<Existing>,
    flows: RefCell<HashMap<FlowKey, Flow>>,
    fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    now: u64,
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
        Self::with(settings(), &Rc::new(maps), &FlowMemory::default())
    }

    /// Maps, and what is remembered of packets, as they were read from somewhere.
    pub fn with(settings: Settings, maps: &Rc<Existing>, memory: &FlowMemory) -> Self {
        Self {
            settings,
            maps: Rc::clone(maps),
            flows: RefCell::new(memory.flows.iter().copied().collect()),
            fragments: RefCell::new(memory.fragments.iter().copied().collect()),
            affinity: RefCell::new(memory.affinity.iter().copied().collect()),
            now: 1,
            random: Cell::new(7),
        }
    }

    /// At this time (nanoseconds since boot), and with this for chance.
    pub fn at(self, now: u64, random: u32) -> Self {
        self.random.set(random);
        Self { now, ..self }
    }

    /// What is remembered of packets.
    pub fn memory(&self) -> FlowMemory {
        FlowMemory {
            flows: self.flows.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
            fragments: self.fragments.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
            affinity: self.affinity.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
        }
    }

    /// What the logic makes of any bytes, as the TC programs carry it out.
    pub fn decide(&self, hook: Hook, frame: &[u8]) -> Done {
        // Packets on uplinks are looked at only where they are served, malformed ones of anybody left alone.
        let Ok(p) = parse(frame) else {
            return Done::Passed(frame.to_vec());
        };
        let len = frame.len() as u32;
        if hook == Hook::ToUplink
            && let Some(done) = self.decide_own(frame, &p)
        {
            return done;
        }
        let verdict = match hook {
            Hook::FromPod => forward::from_pod(self, frame, &p, len),
            Hook::ToPod => forward::to_pod(self, frame, &p, len),
            Hook::FromUplink => forward::from_uplink(self, frame, &p, len),
            Hook::ToUplink => forward::to_uplink(self, frame, &p, len),
        };
        let mut bytes = frame.to_vec();
        match verdict {
            Verdict::Pass => Done::Passed(bytes),
            Verdict::Rewrite(r, _) if rewrite::apply(&mut bytes[..], &r) => Done::Passed(bytes),
            Verdict::Reject(_) => answer(frame, &p).map_or(Done::Dropped, Done::Rejected),
            Verdict::Rewrite(..) | Verdict::Drop(_) => Done::Dropped,
        }
    }
}

impl Host {
    /// Of a packet that the node itself sends to a service. Where tests run there are no routes: what would have to be sent on by that of its
    /// endpoint is dropped; what stays on the node comes back in by the device, with its own Ethernet address.
    fn decide_own(&self, frame: &[u8], p: &Parsed) -> Option<Done> {
        let mut bytes = frame.to_vec();
        Some(match forward::from_node(self, frame, p, frame.len() as u32) {
            (Verdict::Pass, _) => return None,
            (Verdict::Rewrite(r, _), Some(source)) => {
                let turned = rewrite::apply(&mut bytes[..], &r) && rewrite::apply(&mut bytes[..], &source);
                bytes.copy_within(6..12, 0);
                if turned {
                    Done::Rejected(bytes)
                } else {
                    Done::Dropped
                }
            }
            (Verdict::Reject(_), _) => answer(frame, p).map_or(Done::Dropped, Done::Rejected),
            (Verdict::Rewrite(..) | Verdict::Drop(_), _) => Done::Dropped,
        })
    }
}

/// The packet that says no, behind the Ethernet header turned round.
fn answer(frame: &[u8], p: &Parsed) -> Option<Vec<u8>> {
    let mut all = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    debug_assert_eq!(all.len(), ETHERNET as usize);
    match (p.src.is_v4(), p.proto) {
        (true, Proto::TCP) => {
            let mut out = [0; 40];
            reject::reset4(frame, p.l4, &mut out)?;
            all.extend(out);
        }
        (false, Proto::TCP) => {
            let mut out = [0; 60];
            reject::reset6(frame, p.l4, &mut out)?;
            all.extend(out);
        }
        (true, _) => {
            let mut out = [0; 56];
            reject::unreachable4(frame, p.l4, &mut out)?;
            all.extend(out);
        }
        (false, _) => {
            let mut out = [0; 96];
            reject::unreachable6(frame, p.l4, &mut out)?;
            all.extend(out);
        }
    }
    Some(all)
}

impl Node for Host {
    fn meet(&mut self, hook: Hook, frame: &[u8]) -> Result<Done> {
        Ok(self.decide(hook, frame))
    }

    fn wait(&mut self, time: Duration) -> Result<bool> {
        self.now += u64::try_from(time.as_nanos())?;
        Ok(true)
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
        self.now
    }
    fn random(&self) -> u32 {
        let random = self.random.get();
        self.random.set(random.wrapping_add(0x9e37_79b9));
        random
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
        self.flows
            .borrow()
            .get(key)
            .is_some_and(|f| spent(f, key.proto, now))
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}
