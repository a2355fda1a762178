//! What the packet path decides.
//!
//! A packet is changed in two stages, as netfilter does it before and after routing: its destination where it comes in
//! ([`from_pod`], [`from_uplink`]), its source where it goes out ([`to_pod`], [`to_uplink`]). Routes, hop limits, path MTU
//! and neighbours stay the kernel's business. [`through`] is both in one, where a packet only passes the node.
//!
//! Each decision is made of [`Step`]s over one [`Work`]. On the host [`step`] runs them one after another. In the kernel each is
//! a function of its own, verified once whatever leads to it, and with the stack of 512 bytes for itself.
use crate::open::Opening;
use crate::packet::{Packet, Parsed};
use crate::rewrite::Rewrite;
pub use crate::step::step;
use crate::{FlowTable, Tables};
use datapath_abi::{Address, Be16, FlowKey, Proto, Reason, SettingsFlags};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is changed.
    Pass,
    /// Changed and passed on.
    Rewrite(Rewrite, Reason),
    /// The sender is told: TCP RST, or ICMP port unreachable.
    Reject(Reason),
    /// Silence.
    Drop(Reason),
}

/// What becomes of a packet before it reaches the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// Unchanged to the stack, where [`from_uplink`] decides.
    ToStack,
    /// Both ends change, and it goes on to where its new destination is; where that is not possible at once (no neighbour, no
    /// route), it goes to the stack unchanged.
    Send {
        destination: Rewrite,
        source: Rewrite,
        reason: Reason,
    },
    /// Silence.
    Drop(Reason),
}

/// From where a packet comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    Pod,
    Uplink,
    /// From the node itself, on its way out: of a socket that no hook served.
    Own,
}

/// One packet's way through the steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    pub p: Parsed,
    /// Bytes of the packet.
    pub len: u32,
    pub verdict: Verdict,
    pub gate: Gate,
    /// The frontend is for this node's own sockets.
    pub(crate) here: bool,
    /// May be an answer to a socket of this node that no hook served.
    pub(crate) own: bool,
    pub(crate) opening: Opening,
    /// What the other end becomes too, for [`through`]; the unspecified address for nothing.
    pub nat: Address,
    pub nat_port: Be16,
}

impl Work {
    /// Begins with the packet that was just parsed into `p`: as [`Work::new`], in place. The verifier walks what follows the parsing
    /// once for each way through it, so that the parser writes `p` and no more.
    #[inline(always)]
    pub fn begin(&mut self, len: u32, gate: Gate) {
        self.len = len;
        self.verdict = Verdict::Pass;
        self.gate = gate;
        self.here = false;
        self.own = false;
        self.opening = Opening::default();
        self.nat = Address::default();
        self.nat_port = Be16::new(0);
    }

    /// For a packet that was just parsed.
    #[inline(always)]
    pub fn new(p: &Parsed, len: u32, gate: Gate) -> Self {
        Self {
            p: *p,
            len,
            verdict: Verdict::Pass,
            gate,
            here: false,
            own: false,
            opening: Opening::default(),
            nat: Address::default(),
            nat_port: Be16::new(0),
        }
    }
}

/// A part of a decision; what each answers is told by [`step`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Gives a later fragment the ports of the first one. True if there are ports, or need not be.
    Ports,
    /// An ICMP error that comes in, or goes out.
    ErrorIn,
    ErrorOut,
    /// True if a service's port is addressed.
    Front,
    /// True if the packet is of a flow that goes on.
    Known,
    /// A packet that no frontend is addressed by.
    NoFront,
    /// True if an endpoint was chosen.
    Choose,
    /// The first packet of a new flow.
    Open,
    /// Shows an answer as the service's, a masqueraded request as this node's.
    Rename,
    /// Keeps the ports of a first fragment.
    Remember,
    /// As `Known`, for [`through`]: only flows both of whose ends change go on.
    KnownThrough,
    /// Client and chosen endpoint may both be the node's own.
    Turn,
    /// From now on answers to the node's own sockets are looked at.
    ServeOwn,
}

/// Runs steps over one [`Work`].
pub trait Steps {
    /// The work as it stands.
    fn work(&mut self) -> &mut Work;
    /// Runs one step on it.
    fn run(&mut self, step: Step) -> bool;
}

/// A packet that comes in, through whatever gate: one towards a service is sent to an endpoint, an answer to this node's address to the
/// client for whom the node asked.
#[inline(always)]
pub fn arrive<S: Steps>(s: &mut S) {
    let p = &s.work().p;
    if p.is_error() && !p.later_fragment {
        if !s.run(Step::ErrorIn) && s.work().own {
            s.run(Step::ErrorOut);
        }
        return;
    }
    if !s.run(Step::Ports) {
        return;
    }
    if !s.run(Step::Front) {
        if !s.run(Step::NoFront) && s.work().own {
            // Whatever asked is a socket of this node: nothing else shows it the answer as the service's.
            s.run(Step::Rename);
        }
    } else if !s.run(Step::Known) && s.run(Step::Choose) {
        s.run(Step::Open);
    }
    if s.work().p.first_fragment {
        s.run(Step::Remember);
    }
}

/// A packet of the node's own sockets that goes out, and may be addressed to a service. The way back is a part of [`arrive`]. An endpoint
/// of the node itself is shown to both ends under the service's address (the work's `nat`), so that both ways pass here.
#[inline(always)]
pub fn depart<S: Steps>(s: &mut S) {
    let p = &s.work().p;
    if !p.has_ports() || !s.run(Step::Ports) {
        return;
    }
    if !s.run(Step::Front) {
        s.run(Step::NoFront);
    } else if !s.run(Step::Known) && s.run(Step::Choose) {
        s.run(Step::Turn);
        s.run(Step::Open);
    }
    if matches!(s.work().verdict, Verdict::Rewrite(..)) {
        s.run(Step::ServeOwn);
    }
    if s.work().p.first_fragment {
        s.run(Step::Remember);
    }
}

/// A packet that goes out: an answer from an endpoint is shown as the service's, a masqueraded request as this node's.
#[inline(always)]
pub fn leave<S: Steps>(s: &mut S) {
    let p = &s.work().p;
    if p.is_error() && !p.later_fragment {
        s.run(Step::ErrorOut);
    } else if p.has_ports() && s.run(Step::Ports) {
        s.run(Step::Rename);
        if s.work().p.first_fragment {
            s.run(Step::Remember);
        }
    }
}

/// A packet that comes in from another machine, before the stack; whatever is unusual is left to the stack.
#[inline(always)]
pub fn pass_through<S: Steps>(s: &mut S) -> Passing {
    let p = &s.work().p;
    let plain = matches!(p.proto, Proto::TCP | Proto::UDP) && !p.is_fragment();
    if !plain {
        return Passing::ToStack;
    }
    if !s.run(Step::KnownThrough) {
        if !s.run(Step::Front) {
            return Passing::ToStack;
        }
        // An endpoint whose answers come back this way is the stack's business, as is telling a client that there is none.
        if !s.run(Step::Choose) {
            return match s.work().verdict {
                Verdict::Drop(Reason::PacketSourceNotAllowed) => Passing::Drop,
                _ => Passing::ToStack,
            };
        }
        if !s.work().opening.masquerade {
            return Passing::ToStack;
        }
        s.run(Step::Open);
    }
    let w = s.work();
    match w.verdict {
        Verdict::Rewrite(..) if w.nat != Address::default() => Passing::Send,
        Verdict::Drop(_) => Passing::Drop,
        _ => Passing::ToStack,
    }
}

/// What [`pass_through`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passing {
    ToStack,
    /// Both ends change: as the verdict says, and the source to `nat`.
    Send,
    /// As the verdict says.
    Drop,
}

fn passed(passing: Passing, w: &Work) -> Through {
    match (passing, w.verdict) {
        (Passing::Send, Verdict::Rewrite(destination, _)) => Through::Send {
            destination,
            source: Rewrite::source(&w.p, w.nat, w.nat_port),
            reason: Reason::PacketSentBack,
        },
        (Passing::Drop, Verdict::Drop(reason)) => Through::Drop(reason),
        _ => Through::ToStack,
    }
}

/// Whether packets on uplinks are to be looked at; programs ask this first, before they parse.
#[inline(always)]
pub fn serves_uplink<T: Tables>(t: &T) -> bool {
    let looked_at = SettingsFlags::UPLINK.0 | SettingsFlags::OWN.0;
    t.settings().is_some_and(|s| s.flags.0 & looked_at != 0)
}

/// Whether a packet that the node itself sends out is to be looked at: from an address of its own, to an address that is a service's
/// or, where there are external fronts, may be one.
#[inline(always)]
pub fn serves_own<T: Tables>(t: &T, p: &Parsed) -> bool {
    t.settings().is_some_and(|s| {
        (s.flags.has(SettingsFlags::UPLINK) || s.is_service_address(p.dst)) && s.is_node_address(p.src)
    })
}

/// The steps on the host.
struct OnHost<'a, T, P: ?Sized> {
    t: &'a T,
    packet: &'a P,
    work: Work,
}

impl<T: Tables + FlowTable, P: Packet + ?Sized> Steps for OnHost<'_, T, P> {
    fn work(&mut self) -> &mut Work {
        &mut self.work
    }
    fn run(&mut self, what: Step) -> bool {
        step(what, self.t, self.packet, &mut self.work)
    }
}

/// A packet that a pod sends.
pub fn from_pod<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let work = Work::new(p, len, Gate::Pod);
    let mut s = OnHost { t, packet, work };
    arrive(&mut s);
    s.work.verdict
}

/// A packet on its way to a pod.
pub fn to_pod<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let work = Work::new(p, len, Gate::Pod);
    let mut s = OnHost { t, packet, work };
    leave(&mut s);
    s.work.verdict
}

/// A packet that comes in from another machine.
pub fn from_uplink<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let work = Work::new(p, len, Gate::Uplink);
    let mut s = OnHost { t, packet, work };
    if serves_uplink(t) {
        arrive(&mut s);
    }
    s.work.verdict
}

/// A packet that the node itself sends out; what the source becomes too, if the destination becomes the node's own.
pub fn from_node<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> (Verdict, Option<Rewrite>)
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let work = Work::new(p, len, Gate::Own);
    let mut s = OnHost { t, packet, work };
    if serves_own(t, p) {
        depart(&mut s);
    }
    let w = &s.work;
    let turned = (w.nat != Address::default()).then(|| Rewrite::source(&w.p, w.nat, w.nat_port));
    (w.verdict, turned)
}

/// A packet on its way to another machine.
pub fn to_uplink<T, P>(t: &T, packet: &P, p: &Parsed, len: u32) -> Verdict
where
    T: Tables + FlowTable,
    P: Packet + ?Sized,
{
    let work = Work::new(p, len, Gate::Uplink);
    let mut s = OnHost { t, packet, work };
    if serves_uplink(t) {
        leave(&mut s);
    }
    s.work.verdict
}

/// A packet that comes in from another machine, before the stack.
pub fn through<T: Tables + FlowTable>(t: &T, p: &Parsed, len: u32) -> Through {
    let nothing: &[u8] = &[];
    let work = Work::new(p, len, Gate::Uplink);
    let mut s = OnHost {
        t,
        packet: nothing,
        work,
    };
    if !serves_uplink(t) {
        return Through::ToStack;
    }
    let passing = pass_through(&mut s);
    passed(passing, &s.work)
}

/// The packet as it looks, in the table of those that change this end.
#[inline(always)]
pub(crate) fn key(p: &Parsed, changes: u8) -> FlowKey {
    FlowKey {
        src: p.src,
        dst: p.dst,
        sport: p.sport,
        dport: p.dport,
        proto: p.proto,
        changes,
        zero: 0,
    }
}

#[cfg(test)]
mod tests;
