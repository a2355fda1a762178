//! What becomes of a packet, by running it: through the logic, or through whatever else has the node's stages.
use crate::explain::Outcome;
use crate::probe::{CLIENT_PORT, Probe};
use crate::world::Packet;
use datapath_abi::Reason;
use datapath_logic::host::{Fate, Hook, StageError, Stages};
use datapath_logic::packet::parse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// How many first packets are sent, each from another port and with other chances: of up to a dozen endpoints none is missed.
const TRIES: u16 = 128;
/// Spreads the starts of random numbers evenly over 32 bits (2³² divided by the golden ratio).
const STRIDE: u32 = 0x9e37_79b9;

/// What first packets came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub outcome: Outcome,
    /// Why it goes no further.
    pub reason: Option<Reason>,
    /// The endpoints that were drawn, each with the client's address as it sees it.
    pub drawn: BTreeMap<SocketAddr, IpAddr>,
    /// The one that [`CLIENT_PORT`] drew.
    pub first: Option<SocketAddr>,
    /// Whether it is sent out again before the stack sees it.
    pub before_stack: bool,
}

/// Where a packet comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gate {
    Pod,
    Uplink,
    /// The same, where programs stand before the stack too.
    EarlyUplink,
    /// It comes from the node itself, and goes out.
    Node,
}

/// Sends first packets until every way is taken that they can take.
pub(crate) fn by_packets(
    stages: &mut dyn Stages,
    gate: Gate,
    packet: &Packet,
) -> Result<Decision, StageError> {
    let mut decision = Decision::over(Outcome::Endpoint, None);
    for i in 0..TRIES {
        stages.again(u32::from(i).wrapping_mul(STRIDE))?;
        let probe = Probe {
            src: SocketAddr::new(packet.src, CLIENT_PORT + i),
            dst: SocketAddr::new(packet.dst, packet.port),
            proto: packet.proto,
        };
        match once(stages, gate, &probe.frame())? {
            Once::Sent { to, from, early } => {
                decision.first.get_or_insert(to);
                decision.before_stack |= early;
                decision.drawn.insert(to, from);
            }
            Once::Over(outcome, reason) => {
                (decision.outcome, decision.reason) = (outcome, reason);
                return Ok(decision);
            }
        }
    }
    Ok(decision)
}

enum Once {
    Sent {
        to: SocketAddr,
        from: IpAddr,
        early: bool,
    },
    Over(Outcome, Option<Reason>),
}

fn once(stages: &dyn Stages, gate: Gate, frame: &[u8]) -> Result<Once, StageError> {
    if gate == Gate::EarlyUplink {
        let ran = stages.run(Hook::BeforeStack, frame)?;
        match ran.fate {
            Fate::Changed(bytes) => return sent(&bytes, true),
            Fate::Dropped => return Ok(Once::Over(Outcome::Dropped, ran.reason)),
            _ => {}
        }
    }
    if gate == Gate::Node {
        let ran = stages.run(Hook::ToUplink, frame)?;
        return match ran.fate {
            Fate::Changed(bytes) => sent(&bytes, false),
            other => Ok(over(&other, ran.reason)),
        };
    }
    let (arrive, leave) = match gate {
        Gate::Pod => (Hook::FromPod, Hook::ToPod),
        _ => (Hook::FromUplink, Hook::ToUplink),
    };
    let ran = stages.run(arrive, frame)?;
    let to_endpoint = match ran.fate {
        Fate::Changed(bytes) => bytes,
        other => return Ok(over(&other, ran.reason)),
    };
    let ran = stages.run(leave, &to_endpoint)?;
    match ran.fate {
        Fate::Changed(bytes) => sent(&bytes, false),
        Fate::Untouched => sent(&to_endpoint, false),
        _ => Ok(Once::Over(Outcome::Dropped, ran.reason)),
    }
}

/// What a fate without an endpoint comes to.
fn over(fate: &Fate, reason: Option<Reason>) -> Once {
    match fate {
        Fate::Rejected => Once::Over(Outcome::Refused, reason),
        Fate::Dropped => Once::Over(Outcome::Dropped, reason),
        Fate::Untouched | Fate::Changed(_) => Once::Over(Outcome::Untouched, None),
    }
}

fn sent(frame: &[u8], early: bool) -> Result<Once, StageError> {
    let p = parse(frame).map_err(|e| StageError(format!("what goes out cannot be read: {e:?}")))?;
    Ok(Once::Sent {
        to: SocketAddr::new(p.dst.to_ip(), p.dport.get()),
        from: p.src.to_ip(),
        early,
    })
}

impl Decision {
    /// One that names no endpoints.
    pub fn over(outcome: Outcome, reason: Option<Reason>) -> Self {
        Self {
            outcome,
            reason,
            drawn: BTreeMap::new(),
            first: None,
            before_stack: false,
        }
    }

    /// How two decisions about the same packet contradict each other; `None` if they do not. Which of several endpoints is drawn is
    /// left to chance, but for clients that keep theirs.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        if self.outcome != other.outcome || self.reason != other.reason {
            return Some(format!("{} against {}", self.words(), other.words()));
        }
        let only = |a: &Self, b: &Self| a.drawn.keys().find(|e| !b.drawn.contains_key(e)).copied();
        // Many endpoints are not all drawn by either.
        if self.drawn.len() <= usize::from(TRIES) / 8
            && let Some(e) = only(self, other).or_else(|| only(other, self))
        {
            return Some(format!("endpoint {e} is drawn by one of them only"));
        }
        self.drawn.iter().find_map(|(e, from)| {
            let theirs = other.drawn.get(e).filter(|theirs| *theirs != from)?;
            Some(format!("endpoint {e} sees {from} against {theirs}"))
        })
    }

    fn words(&self) -> String {
        let why = self
            .reason
            .map_or_else(String::new, |r| format!(" ({})", r.words()));
        format!("{}{why}", self.outcome.words())
    }
}
