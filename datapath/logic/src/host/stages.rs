//! A node's programs as something that packets can be run through: the logic in memory, or the loaded programs aside from traffic.
use super::{Host, Maps};
use crate::forward::{self, Through, Verdict};
use crate::packet::parse;
use crate::rewrite;
use datapath_abi::Reason;
use std::string::String;
use std::vec::Vec;

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// It comes out of a pod's device.
    FromPod,
    /// It goes into one.
    ToPod,
    /// It comes in from another machine.
    FromUplink,
    /// It goes out to one.
    ToUplink,
    /// It comes in from another machine, before the stack (XDP).
    BeforeStack,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Passed on, byte by byte the same; before the stack: left to it.
    Untouched,
    /// Passed on, changed; before the stack: sent out again.
    Changed(Vec<u8>),
    /// The sender is told.
    Rejected,
    /// Silence.
    Dropped,
}

/// A fate, and under which reason it is counted, where that tells something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    pub fate: Fate,
    pub reason: Option<Reason>,
}

/// Why a packet could not be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StageError(pub String);

impl std::fmt::Display for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StageError {}

/// The programs of one node. Nothing that is run through them leaves the node, or a trace on it.
pub trait Stages {
    /// Forgets what earlier packets left behind, or at least nothing of it meets a client that comes from another port than theirs.
    /// `chance` is where random numbers start, for those that can be told.
    fn again(&mut self, chance: u32) -> Result<(), StageError>;
    /// Runs a frame through one program.
    fn run(&self, hook: Hook, frame: &[u8]) -> Result<Ran, StageError>;
}

/// The logic itself over a node's tables, which stay as they are.
#[derive(Debug)]
pub struct Logic<'a, M> {
    of: &'a Host<M>,
    /// What this run works on, and leaves behind.
    pub now: Host<&'a M>,
}

impl<'a, M: Maps> Logic<'a, M> {
    /// The programs of the node whose tables these are.
    pub fn over(of: &'a Host<M>) -> Self {
        Self { of, now: of.aside(0) }
    }
}

impl<M: Maps> Stages for Logic<'_, M> {
    fn again(&mut self, chance: u32) -> Result<(), StageError> {
        self.now = self.of.aside(chance);
        Ok(())
    }

    fn run(&self, hook: Hook, frame: &[u8]) -> Result<Ran, StageError> {
        let Ok(p) = parse(frame) else {
            return Ok(Ran {
                fate: Fate::Untouched,
                reason: None,
            });
        };
        let (t, len) = (&self.now, frame.len() as u32);
        let verdict = match hook {
            Hook::FromPod => forward::from_pod(t, frame, &p, len),
            Hook::ToPod => forward::to_pod(t, frame, &p, len),
            Hook::FromUplink => forward::from_uplink(t, frame, &p, len),
            // The node's own packets are asked about first.
            Hook::ToUplink => match forward::from_node(t, frame, &p, len) {
                (Verdict::Pass, _) => forward::to_uplink(t, frame, &p, len),
                (Verdict::Rewrite(r, reason), Some(source)) => {
                    return Ok(changed(frame, &[r, source], reason));
                }
                (verdict, _) => verdict,
            },
            Hook::BeforeStack => return Ok(sent(forward::through(t, &p, len), frame)),
        };
        Ok(carried_out(verdict, frame))
    }
}

fn carried_out(verdict: Verdict, frame: &[u8]) -> Ran {
    match verdict {
        Verdict::Pass => Ran {
            fate: Fate::Untouched,
            reason: None,
        },
        Verdict::Rewrite(r, reason) => changed(frame, &[r], reason),
        Verdict::Reject(reason) => Ran {
            fate: Fate::Rejected,
            reason: Some(reason),
        },
        Verdict::Drop(reason) => Ran {
            fate: Fate::Dropped,
            reason: Some(reason),
        },
    }
}

fn sent(through: Through, frame: &[u8]) -> Ran {
    match through {
        Through::ToStack => carried_out(Verdict::Pass, frame),
        Through::Drop(reason) => carried_out(Verdict::Drop(reason), frame),
        Through::Send {
            destination,
            source,
            reason,
        } => changed(frame, &[destination, source], reason),
    }
}

fn changed(frame: &[u8], rewrites: &[rewrite::Rewrite], reason: Reason) -> Ran {
    let mut bytes = frame.to_vec();
    let whole = rewrites.iter().all(|r| rewrite::apply(&mut bytes[..], r));
    Ran {
        fate: if whole {
            Fate::Changed(bytes)
        } else {
            Fate::Dropped
        },
        reason: Some(if whole { reason } else { Reason::PacketUnfinished }),
    }
}
