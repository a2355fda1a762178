//! The tables of a node on the host, for the logic alone.
use crate::check::{Done, Node};
use crate::{Case, Hook, node, settings};
use agent_datapath::FlowMemory;
use agent_services::{Existing, Planner};
use anyhow::Result;
use datapath_abi::{Proto, Settings};
use datapath_logic::forward::{self, Through, Verdict};
use datapath_logic::packet::{ETHERNET, Parsed, parse};
use datapath_logic::{reject, rewrite};
use std::rc::Rc;
use std::time::Duration;

/// Chances that lead to each of up to four endpoints.
pub const CHANCES: [u32; 4] = [0x2000_0000, 0x6000_0000, 0xa000_0000, 0xe000_0000];

/// What a node's maps hold.
#[derive(Clone)]
pub struct Host(datapath_logic::host::Host<Rc<Existing>>);

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
        let host = datapath_logic::host::Host::new(settings, Rc::clone(maps));
        host.flows.borrow_mut().extend(memory.flows.iter().copied());
        host.fragments
            .borrow_mut()
            .extend(memory.fragments.iter().copied());
        host.affinity.borrow_mut().extend(memory.affinity.iter().copied());
        Self(host).at(1, 7)
    }

    /// At this time (nanoseconds since boot), and with this for chance.
    pub fn at(self, now: u64, random: u32) -> Self {
        self.0.clock.set(now);
        self.0.random.set(random);
        self
    }

    /// What is remembered of packets.
    pub fn memory(&self) -> FlowMemory {
        FlowMemory {
            flows: self.0.flows.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
            fragments: self.0.fragments.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
            affinity: self.0.affinity.borrow().iter().map(|(k, v)| (*k, *v)).collect(),
        }
    }

    /// What the logic makes of any bytes that an uplink with XDP received. The program looks at plain headers only: without options and
    /// extension headers.
    pub fn through(&self, frame: &[u8]) -> Through {
        match parse(frame) {
            Ok(p) if p.l4 == ETHERNET + if p.src.is_v4() { 20 } else { 40 } => {
                forward::through(&self.0, &p, frame.len() as u32)
            }
            _ => Through::ToStack,
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
            Hook::FromPod => forward::from_pod(&self.0, frame, &p, len),
            Hook::ToPod => forward::to_pod(&self.0, frame, &p, len),
            Hook::FromUplink => forward::from_uplink(&self.0, frame, &p, len),
            Hook::ToUplink => forward::to_uplink(&self.0, frame, &p, len),
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
        Some(match forward::from_node(&self.0, frame, p, frame.len() as u32) {
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
        let clock = &self.0.clock;
        clock.set(clock.get() + u64::try_from(time.as_nanos())?);
        Ok(true)
    }
}
