//! The ways that a new connection can take through a node, and what becomes of it there: by whatever has the node's stages.
use crate::Model;
use agent_explain::probe::Probe;
use agent_services::Existing;
use datapath_abi::{Address, Affinity, AffinityKey, Be16, Proto, Reason};
use datapath_logic::choose::Front;
use datapath_logic::host::{Fate, Hook, Host, Stages};
use datapath_logic::packet::parse;
use datapath_logic::socket;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A process in a pod of this node, through its socket.
    PodSocket(IpAddr),
    /// The same packet by packet, where no socket hook acts.
    PodPackets(IpAddr),
    /// A process of the node itself, through its socket.
    Node,
    /// Anybody whose packets come in on an uplink.
    Uplink(IpAddr),
    /// The same, decided before the stack as far as that goes.
    UplinkEarly(IpAddr),
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a service's address.
    Untouched,
    /// One of these endpoints, each with whether it sees this node's address instead of the client's.
    Endpoints(BTreeMap<SocketAddr, bool>),
    Rejected,
    Dropped,
}

/// One try.
enum Once {
    Untouched,
    Endpoint(SocketAddr, bool),
    Rejected,
    Dropped,
}

/// How many tries are made: random numbers and client ports that reach every one of the few endpoints of a scenario, by chance
/// too (of four, one is missed in 10¹⁷ runs).
const TRIES: u16 = 160;
/// The first client port.
const PORT: u16 = 20_000;
/// The client port of a connection that is remembered. Where addresses and ports choose the endpoint, this one leads
/// `aff-masqueraded-client` to an endpoint on another node, which is the case that it is about.
const LATER_PORT: u16 = PORT + 2531;
/// Spreads random numbers evenly over 32 bits.
const STRIDE: u32 = 0x9e37_79b9;
pub(crate) const HOST_NETNS: u64 = 1;

/// What clients keep.
pub type Memory = HashMap<AffinityKey, Affinity>;

/// A connection to be made.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub from: From,
    pub to: SocketAddr,
    pub proto: Proto,
}

impl Connection {
    /// Every outcome that it can have on a node: sockets are asked of the model's logic, packets of the stages. The model is left
    /// as it was.
    pub fn outcome(&self, model: &Model, stages: &mut dyn Stages) -> Outcome {
        let mut endpoints = BTreeMap::new();
        for i in 0..TRIES {
            match self.once(model, stages, u32::from(i).wrapping_mul(STRIDE), PORT + i) {
                Once::Untouched => return Outcome::Untouched,
                Once::Rejected => return Outcome::Rejected,
                Once::Dropped => return Outcome::Dropped,
                Once::Endpoint(e, masqueraded) => {
                    let before = endpoints.insert(e, masqueraded);
                    assert!(
                        before.is_none_or(|b| b == masqueraded),
                        "{}: now so, now so",
                        self.to
                    );
                }
            }
        }
        Outcome::Endpoints(endpoints)
    }

    /// Makes it once: the endpoint, and what clients keep then where a socket's logic keeps it; the stages remember what they
    /// remember.
    pub fn made(&self, model: &Model, stages: &mut dyn Stages) -> (Option<SocketAddr>, Option<Memory>) {
        let (once, memory) = match self.from {
            From::Node | From::PodSocket(_) => {
                let host = model.host(STRIDE);
                let once = self.by_socket(&host);
                (once, Some(host.affinity.into_inner()))
            }
            _ => (Some(self.once(model, stages, STRIDE, LATER_PORT)), None),
        };
        match once {
            Some(Once::Endpoint(e, _)) => (Some(e), memory),
            _ => (None, memory),
        }
    }

    fn once(&self, model: &Model, stages: &mut dyn Stages, chance: u32, sport: u16) -> Once {
        let again = |stages: &mut dyn Stages| {
            stages.again(chance).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        };
        match self.from {
            From::Node | From::PodSocket(_) => match (self.by_socket(&model.host(chance)), self.from) {
                (Some(once), _) => once,
                (None, From::PodSocket(ip)) => {
                    again(stages);
                    self.by_packets(stages, ip, sport, true)
                }
                (None, _) => {
                    again(stages);
                    self.leaving(model, stages, sport)
                }
            },
            From::PodPackets(ip) => {
                again(stages);
                self.by_packets(stages, ip, sport, true)
            }
            From::Uplink(ip) => {
                again(stages);
                self.by_packets(stages, ip, sport, false)
            }
            From::UplinkEarly(ip) => {
                again(stages);
                self.early(stages, ip, sport)
            }
        }
    }

    /// A socket's call; `None` where it leaves the address alone, and the packets decide.
    fn by_socket(&self, host: &Host<&Existing>) -> Option<Once> {
        let front = Front {
            addr: self.to.ip().into(),
            port: Be16::new(self.to.port()),
            proto: self.proto,
        };
        let cookie = match self.from {
            From::PodSocket(ip) => netns(ip),
            _ => HOST_NETNS,
        };
        match socket::connect(host, &front, || cookie) {
            // The socket has the client's address as its own: nothing is rewritten under way.
            socket::Verdict::To { record, .. } => {
                Some(Once::Endpoint(end(record.backend, record.backend_port), false))
            }
            // No endpoint of this node: kube-proxy drops, the call ends at once here. The client gets nothing either way.
            socket::Verdict::Refuse(Reason::SocketNoLocalEndpoint | Reason::SocketSourceNotAllowed) => {
                Some(Once::Dropped)
            }
            socket::Verdict::Refuse(_) => Some(Once::Rejected),
            socket::Verdict::Pass => None,
        }
    }

    /// A packet of the node itself, on its way out.
    fn leaving(&self, model: &Model, stages: &dyn Stages, sport: u16) -> Once {
        let own = model.settings().masquerade(self.to.is_ipv4());
        let own = own.expect("a node has addresses").to_ip();
        match run(stages, Hook::ToUplink, &self.probe(own, sport).frame()) {
            Fate::Untouched => Once::Untouched,
            Fate::Dropped => Once::Dropped,
            Fate::Rejected => Once::Rejected,
            other => panic!("{self:?}: {other:?}"),
        }
    }

    fn probe(&self, src: IpAddr, sport: u16) -> Probe {
        Probe {
            src: SocketAddr::new(src, sport),
            dst: self.to,
            proto: self.proto,
        }
    }

    /// The first packet through both stages, and the endpoint's answer back through them.
    fn by_packets(&self, stages: &dyn Stages, ip: IpAddr, sport: u16, of_pod: bool) -> Once {
        let first = self.probe(ip, sport);
        let (arrive, leave) = if of_pod {
            (Hook::FromPod, Hook::ToPod)
        } else {
            (Hook::FromUplink, Hook::ToUplink)
        };
        let at_endpoint = match run(stages, arrive, &first.frame()) {
            Fate::Untouched => return Once::Untouched,
            Fate::Rejected => return Once::Rejected,
            Fate::Dropped => return Once::Dropped,
            Fate::Changed(bytes) => match run(stages, leave, &bytes) {
                Fate::Untouched => bytes,
                Fate::Changed(bytes) => bytes,
                other => panic!("{self:?} goes out: {other:?}"),
            },
        };
        let sent = ends(&at_endpoint);
        self.answered(stages, &first, sent, (arrive, leave));
        Once::Endpoint(sent.1, sent.0 != first.src)
    }

    /// The endpoint's answer comes to the client as the front's.
    fn answered(
        &self,
        stages: &dyn Stages,
        first: &Probe,
        sent: (SocketAddr, SocketAddr),
        hooks: (Hook, Hook),
    ) {
        let at_endpoint = Probe {
            src: sent.0,
            dst: sent.1,
            proto: self.proto,
        };
        let mut answer = at_endpoint.answer();
        if sent.0 != first.src {
            match run(stages, hooks.0, &answer) {
                Fate::Changed(bytes) => answer = bytes,
                other => panic!("{self:?}: the answer to {sent:?} is not given to the client: {other:?}"),
            }
        }
        match run(stages, hooks.1, &answer) {
            Fate::Changed(bytes) => assert_eq!(ends(&bytes), (first.dst, first.src), "{self:?}"),
            other => panic!("{self:?}: the answer to {sent:?} is not shown as the service's: {other:?}"),
        }
    }

    /// The one-stage decision, which is followed where it decides, and must agree with the stack's where it does not.
    fn early(&self, stages: &dyn Stages, ip: IpAddr, sport: u16) -> Once {
        let first = self.probe(ip, sport);
        match run(stages, Hook::BeforeStack, &first.frame()) {
            Fate::Untouched => self.by_packets(stages, ip, sport, false),
            Fate::Dropped => Once::Dropped,
            Fate::Rejected => panic!("{self:?}: nothing is rejected before the stack"),
            Fate::Changed(bytes) => {
                let (src, dst) = ends(&bytes);
                let at_endpoint = Probe {
                    src,
                    dst,
                    proto: self.proto,
                };
                let Fate::Changed(answer) = run(stages, Hook::BeforeStack, &at_endpoint.answer()) else {
                    panic!("{self:?}: the answer to {src} is not sent back");
                };
                assert_eq!(ends(&answer), (first.dst, first.src), "{self:?}");
                Once::Endpoint(dst, true)
            }
        }
    }
}

impl Model {
    /// The node's tables in memory, with what is remembered of clients. `chance` is where random numbers start.
    pub fn host(&self, chance: u32) -> Host<&Existing> {
        let host = Host::new(self.settings(), &self.maps);
        host.affinity.borrow_mut().extend(self.affinity.iter());
        host.clock.set(self.now());
        host.random.set(chance);
        host
    }
}

fn run(stages: &dyn Stages, hook: Hook, frame: &[u8]) -> Fate {
    let ran = stages.run(hook, frame);
    ran.unwrap_or_else(|e| panic!("{hook:?}: {e}")).fate
}

/// From where to where a frame goes.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let p = parse(frame).unwrap_or_else(|e| panic!("what was passed on cannot be read: {e:?}"));
    (end(p.src, p.sport), end(p.dst, p.dport))
}

/// A made-up cookie of a pod's network namespace.
fn netns(ip: IpAddr) -> u64 {
    let words = Address::from(ip).words();
    u64::from(words[3]) << 32 | u64::from(words[1] ^ words[2]) | 2
}

fn end(addr: Address, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}
