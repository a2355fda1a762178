//! The explanation: each decision on the packet's way, with the Kubernetes object behind it.
use crate::decide::{Decision, Gate, by_packets};
use crate::endpoints::{EndpointLine, Usable, View, lines};
use crate::probe::CLIENT_PORT;
use crate::snapshot::Snapshot;
use crate::world::{Packet, Source, World, full_name, list};
use datapath_abi::{
    Address, AffinityKey, BackendKey, Be16, FrontendFlags, FrontendKey, FrontendValue, MemberKey, Proto,
    Reason, Scope, Settings, SourceRangeKey,
};
use datapath_logic::Tables as _;
use datapath_logic::choose::Front;
use datapath_logic::host::{Logic, Stages};
use datapath_logic::socket;
use k8s_openapi::api::core::v1::Service;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Which program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    /// `connect` or `sendmsg` of a process on the node: the endpoint is chosen once, packets are not touched.
    Socket,
    /// TC on the pod's device.
    Pod,
    /// XDP or TC on the node's uplink.
    Uplink,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Not translated: it goes where its address leads.
    Untouched,
    /// Sent to one of the endpoints that are marked as used.
    Endpoint,
    /// The client is told at once: connection refused.
    Refused,
    /// Silence: the client times out.
    Dropped,
}

impl Outcome {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Untouched => "not translated: it goes where its address leads",
            Self::Endpoint => "sent to one of the endpoints marked *",
            Self::Refused => "refused: the client is told at once",
            Self::Dropped => "dropped: the client times out",
        }
    }
}

/// What a decision was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DecidedBy {
    /// The logic that the programs are made of, over the tables in memory.
    Logic,
    /// The programs themselves, as the kernel has them, over the node's service maps.
    Programs,
}

/// How a question is asked.
#[derive(Default)]
pub struct Ask<'a> {
    /// Packet by packet, as of a client that no socket hook serves.
    pub packets: bool,
    /// Programs stand before the stack too.
    pub before_stack: bool,
    /// The node's loaded programs; without them the logic alone decides.
    pub programs: Option<&'a mut dyn Stages>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub decision: String,
    /// The object it rests on: `service default/web`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `10.0.0.2 → 10.96.0.5:80/TCP`.
    pub packet: String,
    /// The node whose data path decides.
    pub node: String,
    pub hook: Hook,
    pub steps: Vec<Step>,
    pub outcome: Outcome,
    /// Why it goes no further, as `/metrics` names it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "label")]
    pub reason: Option<Reason>,
    /// Every endpoint of the service, and why those that are not used are not.
    pub endpoints: Vec<EndpointLine>,
    pub decided_by: DecidedBy,
    /// What to know before the answer is believed: that the programs and the logic disagree, or that the programs could not be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

fn label<S: Serializer>(reason: &Option<Reason>, s: S) -> Result<S::Ok, S::Error> {
    reason.map(Reason::label).serialize(s)
}

/// Explains what becomes of the first packet of a connection, on `node`, whose tables are given. Nothing of theirs changes.
pub fn explain(world: &World, packet: &Packet, node: &str, tables: &Snapshot, ask: Ask<'_>) -> Explanation {
    let mut telling = Telling {
        world,
        packet,
        node,
        tables,
        ask,
        front: Front {
            addr: packet.dst.into(),
            port: Be16::new(packet.port),
            proto: packet.proto,
        },
        steps: Vec::new(),
        decided_by: DecidedBy::Logic,
        warnings: Vec::new(),
    };
    telling.tell()
}

struct Telling<'a, 'p> {
    world: &'a World,
    packet: &'a Packet,
    node: &'a str,
    tables: &'a Snapshot,
    ask: Ask<'p>,
    front: Front,
    steps: Vec<Step>,
    decided_by: DecidedBy,
    warnings: Vec<String>,
}

/// What the tables say of a packet that addresses a service's port.
struct AtFront {
    frontend: FrontendValue,
    scope: Scope,
    /// All endpoints that a client of this scope may be given.
    all: BTreeSet<SocketAddr>,
    kept: Option<SocketAddr>,
}

impl Telling<'_, '_> {
    fn tell(&mut self) -> Explanation {
        let key = FrontendKey::new(self.front.addr, self.front.port, self.front.proto);
        let frontend = self.tables.frontend(&key);
        let hook = self.hook(frontend);
        self.entrance(hook);
        // Several services may share an address; the maps know whose port it is.
        let world = self.world;
        let owner = frontend.and_then(|f| self.owner_text(&f));
        let owner = owner.as_deref().and_then(|text| text.split_once(':'));
        let service = owner
            .and_then(|(name, _)| world.service_named(name))
            .or_else(|| world.service_of(self.packet, self.node));
        let decision = self.decide(hook);
        let (usable, local) = match frontend {
            None => {
                self.without_frontend();
                (Usable::None, false)
            }
            Some(f) => self.with_frontend(hook, f, service, &decision),
        };
        let view = View {
            node: self.node,
            local: local && decision.outcome != Outcome::Untouched,
            usable,
            port: owner.map(|(_, port)| port),
            sees: &decision.drawn,
        };
        let endpoints = service.map_or_else(Vec::new, |s| lines(self.world, s, self.packet, &view));
        if frontend.is_some() {
            self.no_endpoint(&decision, local, &endpoints, service);
        }
        Explanation {
            packet: self.packet.text(),
            node: self.node.to_owned(),
            hook,
            outcome: decision.outcome,
            reason: decision.reason,
            endpoints,
            steps: std::mem::take(&mut self.steps),
            decided_by: self.decided_by,
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    fn entrance(&mut self, hook: Hook) {
        let text = match (hook, &self.packet.source) {
            (Hook::Socket, Source::Pod { name, .. }) => {
                format!("pod {name} asks through a socket on node {}", self.node)
            }
            (Hook::Socket, _) => format!("a process of node {} asks through a socket", self.node),
            (Hook::Pod, _) => format!("the packet comes out of the pod's device on node {}", self.node),
            (Hook::Uplink, _) => format!("the packet comes in from outside on node {}", self.node),
        };
        self.step(text, None);
    }

    fn step(&mut self, decision: impl Into<String>, object: Option<String>) {
        self.steps.push(Step {
            decision: decision.into(),
            object,
        });
    }

    /// A pod's socket is served by the hooks, unless source ranges need the address that only its packets have. The kernel asks no hook
    /// about SCTP, and ICMP knows no connection.
    fn hook(&self, frontend: Option<FrontendValue>) -> Hook {
        let unserved = self.ask.packets || !matches!(self.packet.proto, Proto::TCP | Proto::UDP);
        match &self.packet.source {
            Source::Outside => Hook::Uplink,
            Source::Pod { node, .. } | Source::Node(node) if node != self.node => Hook::Uplink,
            Source::Pod { .. } if unserved => Hook::Pod,
            Source::Pod { .. } if frontend.is_some_and(|f| f.flags.has(FrontendFlags::RANGES)) => Hook::Pod,
            _ => Hook::Socket,
        }
    }

    fn without_frontend(&mut self) {
        let (dst, port) = (self.packet.dst, self.packet.port);
        let at = match self.packet.proto {
            Proto::ICMP | Proto::ICMPV6 => dst.to_string(),
            _ => SocketAddr::new(dst, port).to_string(),
        };
        let protocol = name(self.packet.proto);
        if !self.settings().is_service_address(self.front.addr) {
            let whose = match self.world.who_has(dst) {
                Source::Pod { name, .. } => format!("the address of pod {name}"),
                Source::Node(node) => format!("an address of node {node}"),
                Source::Outside => "no pod's and no node's address".to_owned(),
            };
            self.step(
                format!("no service has {at} for {protocol}: nothing is translated, {dst} is {whose}"),
                None,
            );
            return;
        }
        let whole = self.tables.frontend(&FrontendKey::whole_address(self.front.addr));
        match (whole, self.world.service_at(dst)) {
            (Some(f), service) if f.flags.has(FrontendFlags::HERE) => {
                self.step(
                    "the node itself answers there: nothing is translated",
                    service.map(object),
                );
            }
            (Some(_), Some(service)) => {
                let name = full_name(&service.metadata);
                let text = match self.packet.proto {
                    Proto::ICMP | Proto::ICMPV6 => {
                        format!("service {name} has ports only, and answers no {protocol}")
                    }
                    _ => format!(
                        "service {name} has no port {port}/{protocol}; it has {}",
                        list(service)
                    ),
                };
                self.step(text, Some(object(service)));
            }
            (Some(_), None) => self.step(format!("the service that has {dst} has no port {port}"), None),
            (None, _) => {
                self.step(
                    format!("{dst} lies in the service range, and no service has it"),
                    None,
                );
            }
        }
    }

    fn with_frontend(
        &mut self,
        hook: Hook,
        f: FrontendValue,
        service: Option<&Service>,
        decision: &Decision,
    ) -> (Usable, bool) {
        let front = SocketAddr::new(self.packet.dst, self.packet.port);
        let whose = service.map(object).or_else(|| self.owner(&f));
        let whom = whose.clone().unwrap_or_else(|| "a service".to_owned());
        self.step(format!("{front} is {} of {whom}", kind(&f)), whose);
        if f.flags.has(FrontendFlags::HERE) {
            self.step("the node itself answers there: nothing is translated", None);
            return (Usable::None, false);
        }
        let scope = self.scope(hook);
        let local = f.is_local_for(scope);
        if !self.admitted(&f, hook, service) {
            return (Usable::None, local);
        }
        self.policy(&f, scope, service);
        let (first, count) = f.usable(scope);
        let at = AtFront {
            frontend: f,
            scope,
            all: (first..first.saturating_add(count))
                .filter_map(|slot| self.slot(&f, slot))
                .collect(),
            kept: self.kept(&f, hook, scope),
        };
        self.conclude(&at, decision);
        self.beyond_tables(&at, decision);
        let usable = match (decision.outcome, at.kept) {
            (Outcome::Endpoint, Some(one)) => Usable::Kept(one, at.all),
            (Outcome::Endpoint, None) => Usable::Some(at.all),
            _ => Usable::None,
        };
        (usable, local)
    }

    /// `default/web:http`.
    fn owner_text(&self, f: &FrontendValue) -> Option<String> {
        Some(self.tables.maps.owners.get(&f.set)?.text().to_owned())
    }

    /// Whom the maps name as the owner of a front: `pod default/a`, `service default/web`.
    fn owner(&self, f: &FrontendValue) -> Option<String> {
        let text = self.owner_text(f)?;
        // Names have no colons; behind the first one is the port.
        let name = text.split_once(':').map_or(text.as_str(), |(name, _)| name);
        Some(match f.flags.has(FrontendFlags::HOST_PORT) {
            true => format!("pod {}", name.replacen("/pod/", "/", 1)),
            false => format!("service {name}"),
        })
    }

    /// A program that sends where the tables lead to nowhere is broken, or the tables changed in between.
    fn beyond_tables(&mut self, at: &AtFront, decision: &Decision) {
        if let Some(stray) = decision.drawn.keys().find(|e| !at.all.contains(e)) {
            self.warnings.push(format!(
                "a packet was sent to {stray}, which the maps do not offer this client: unless they have just changed, report this"
            ));
        }
    }

    /// Whether the client is in the service's source ranges, if it has some.
    fn admitted(&mut self, f: &FrontendValue, hook: Hook, service: Option<&Service>) -> bool {
        if !f.flags.has(FrontendFlags::RANGES) {
            return true;
        }
        let own = self.settings().masquerade(self.packet.dst.is_ipv4());
        let src = match (hook, own) {
            // The node's own processes have the address of the node that the programs were told, whichever they use.
            (Hook::Socket, Some(own)) => own.to_ip(),
            _ => self.packet.src,
        };
        let yes = self.tables.admits(&SourceRangeKey::client(f.set, src.into()));
        let ranges = service
            .and_then(|s| s.spec.as_ref()?.load_balancer_source_ranges.clone())
            .unwrap_or_default()
            .join(", ");
        let text = if yes {
            format!("source {src} is in loadBalancerSourceRanges ({ranges})")
        } else {
            format!("source {src} is not in loadBalancerSourceRanges ({ranges})")
        };
        self.step(text, service.map(object));
        yes
    }

    fn scope(&self, hook: Hook) -> Scope {
        let pod = self.settings().is_pod_address(self.packet.src.into());
        if hook == Hook::Uplink && !pod {
            Scope::Outside
        } else {
            Scope::Inside
        }
    }

    fn policy(&mut self, f: &FrontendValue, scope: Scope, service: Option<&Service>) {
        let text = if f.flags.has(FrontendFlags::LOCAL_ALWAYS) {
            format!(
                "internalTrafficPolicy is Local: only endpoints on node {} count",
                self.node
            )
        } else if f.is_local_for(scope) {
            format!(
                "externalTrafficPolicy is Local and the client is outside the cluster: only endpoints on node {} count",
                self.node
            )
        } else if f.flags.has(FrontendFlags::LOCAL_OUTSIDE) {
            "externalTrafficPolicy is Local, but the client is of the cluster: endpoints on every node count"
                .to_owned()
        } else {
            return;
        };
        self.step(text, service.map(object));
    }

    fn slot(&self, f: &FrontendValue, slot: u16) -> Option<SocketAddr> {
        let backend = self.tables.backend(&BackendKey {
            set: f.set,
            generation: f.generation,
            slot,
        })?;
        Some(SocketAddr::new(backend.addr.to_ip(), backend.port.get()))
    }

    /// The endpoint that session affinity holds for the client, if it still counts.
    fn kept(&self, f: &FrontendValue, hook: Hook, scope: Scope) -> Option<SocketAddr> {
        if f.affinity == 0 || hook == Hook::Socket {
            return None;
        }
        let key = AffinityKey {
            client: self.packet.src.into(),
            set: f.set,
        };
        let kept = *self.tables.affinity.borrow().get(&key)?;
        let member = self.tables.member(&MemberKey {
            set: f.set,
            generation: f.generation,
            port: kept.port,
            addr: kept.addr,
        })?;
        let late = self.tables.now().saturating_sub(kept.seen) > u64::from(f.affinity) * 1_000_000_000;
        let slot = if f.is_local_for(scope) {
            member.local_slot
        } else {
            member.slot
        };
        if late { None } else { self.slot(f, slot) }
    }

    /// Asks whoever decides on the node.
    fn decide(&mut self, hook: Hook) -> Decision {
        match hook {
            Hook::Socket => self.by_socket(),
            Hook::Pod => self.by_programs(Gate::Pod),
            Hook::Uplink if self.ask.before_stack => self.by_programs(Gate::EarlyUplink),
            Hook::Uplink => self.by_programs(Gate::Uplink),
        }
    }

    /// Socket hooks cannot be run aside; their logic can.
    fn by_socket(&mut self) -> Decision {
        let of_pod = matches!(self.packet.source, Source::Pod { .. });
        let netns = if of_pod {
            POD_NETNS
        } else {
            self.settings().host_netns_cookie
        };
        let aside = self.tables.aside(0);
        match socket::connect(&aside, &self.front, || netns) {
            // The socket has the client's address as its own: nothing is rewritten under way.
            socket::Verdict::To { .. } => Decision::over(Outcome::Endpoint, None),
            socket::Verdict::Refuse(reason) => Decision::over(Outcome::Refused, Some(reason)),
            socket::Verdict::Pass if of_pod => self.by_programs(Gate::Pod),
            socket::Verdict::Pass => self.by_programs(Gate::Node),
        }
    }

    /// By the loaded programs where there are some, held against the logic.
    fn by_programs(&mut self, gate: Gate) -> Decision {
        let logic = match by_packets(&mut Logic::over(self.tables), gate, self.packet) {
            Ok(decision) => decision,
            Err(e) => {
                self.warnings.push(format!("the packet cannot be followed: {e}"));
                return Decision::over(Outcome::Dropped, None);
            }
        };
        let Some(programs) = self.ask.programs.as_deref_mut() else {
            return logic;
        };
        match by_packets(programs, gate, self.packet) {
            Err(e) => {
                self.warnings
                    .push(format!("the programs could not be asked, the logic was: {e}"));
                logic
            }
            Ok(theirs) => {
                if let Some(how) = theirs.contradicts(&logic) {
                    self.warnings.push(format!(
                        "the loaded programs and the logic of this binary disagree: {how}; the answer is the programs'"
                    ));
                }
                self.decided_by = DecidedBy::Programs;
                theirs
            }
        }
    }

    /// What the decision came to, after everything it rests on.
    fn conclude(&mut self, at: &AtFront, decision: &Decision) {
        let own = decision.drawn.iter().find(|(_, sees)| **sees != self.packet.src);
        if let Some((_, own)) = own {
            self.step(
                format!("the endpoint's answer has to come back this way: the client stands behind {own} and a port of it (client port {CLIENT_PORT} assumed)"),
                None,
            );
        }
        if decision.before_stack {
            self.step("it is sent on before this node's stack sees it (XDP)", None);
        }
        match (decision.outcome, decision.reason) {
            (Outcome::Endpoint, _) => self.step(at.choice(decision.first), None),
            (Outcome::Untouched, _) => self.step("nothing is translated", None),
            (Outcome::Dropped, Some(reason)) => self.step(reason.words(), None),
            _ => {}
        }
    }

    /// Why no endpoint could be given, if that is what ended it.
    fn no_endpoint(
        &mut self,
        decision: &Decision,
        local: bool,
        endpoints: &[EndpointLine],
        service: Option<&Service>,
    ) {
        let none = matches!(
            decision.reason,
            Some(
                Reason::PacketNoEndpoint
                    | Reason::PacketNoLocalEndpoint
                    | Reason::SocketNoEndpoint
                    | Reason::SocketNoLocalEndpoint
            )
        );
        if !none {
            return;
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        endpoints
            .iter()
            .for_each(|e| *counts.entry(&e.reason).or_default() += 1);
        let why: Vec<String> = counts
            .iter()
            .map(|(reason, n)| format!("{n} × {reason}"))
            .collect();
        let why = if why.is_empty() {
            "the service has none".to_owned()
        } else {
            why.join(", ")
        };
        let text = if local {
            format!(
                "no endpoint is ready on node {}, and policy Local allows no other: {why}",
                self.node
            )
        } else {
            format!("no endpoint is ready: {why}")
        };
        self.step(text, service.map(object));
    }

    fn settings(&self) -> &Settings {
        &self.tables.settings
    }
}

/// A network namespace that no node has.
const POD_NETNS: u64 = u64::MAX;

impl AtFront {
    /// How the endpoint is chosen.
    fn choice(&self, first: Option<SocketAddr>) -> String {
        let (count, f) = (self.all.len(), &self.frontend);
        let shared =
            f.flags.has(FrontendFlags::MAGLEV) && self.scope == Scope::Outside && !f.is_local_for(self.scope);
        match (self.kept, first) {
            (Some(one), _) => {
                format!(
                    "the client keeps {one}: sessionAffinity for {} s after its last connection",
                    f.affinity
                )
            }
            _ if f.affinity != 0 => {
                format!(
                    "one of {count} by chance, which the client then keeps for {} s",
                    f.affinity
                )
            }
            (_, Some(one)) if shared => format!(
                "one of {count} by the connection's addresses and ports: every node picks the same, {one} for client port {CLIENT_PORT}"
            ),
            _ => format!("one of {count} by chance"),
        }
    }
}

/// `TCP`.
pub(crate) fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::TCP => "TCP",
        Proto::UDP => "UDP",
        Proto::SCTP => "SCTP",
        Proto::ICMP => "ICMP",
        Proto::ICMPV6 => "ICMPv6",
        _ => "?",
    }
}

fn object(service: &Service) -> String {
    format!("service {}", full_name(&service.metadata))
}

fn kind(f: &FrontendValue) -> &'static str {
    if f.flags.has(FrontendFlags::HOST_PORT) {
        "a host port"
    } else if f.flags.has(FrontendFlags::NODE_PORT) {
        "a node port"
    } else if f.flags.has(FrontendFlags::HOST_PORT) {
        "a pod's port of the node"
    } else if f.flags.has(FrontendFlags::EXTERNAL) {
        "an external or load balancer address"
    } else {
        "the cluster address"
    }
}

/// Whether an address is of the same family as another.
pub(crate) fn same_family(a: Address, b: Address) -> bool {
    a.is_v4() == b.is_v4()
}
