//! The explanation: each decision on the packet's way, with the Kubernetes object behind it.
use crate::endpoints::{EndpointLine, Usable, View, lines};
use crate::probe::{CLIENT_PORT, frame};
use crate::scratch::Scratch;
use crate::world::{Packet, Source, World, full_name, list};
use datapath_abi::{
    Address, AffinityKey, BackendKey, Be16, FlowRole, FrontendFlags, FrontendKey, FrontendValue, MemberKey,
    Proto, Scope, Settings, SourceRangeKey,
};
use datapath_logic::Tables;
use datapath_logic::choose::Front;
use datapath_logic::forward::{self, Verdict};
use datapath_logic::packet::parse;
use datapath_logic::socket;
use k8s_openapi::api::core::v1::Service;
use serde::Serialize;
use std::collections::BTreeSet;
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
    /// Every endpoint of the service, and why those that are not used are not.
    pub endpoints: Vec<EndpointLine>,
}

/// Explains what becomes of the first packet of a connection, on `node`, whose tables are given. Nothing of theirs changes.
pub fn explain<T: Tables>(world: &World, packet: &Packet, node: &str, tables: &T) -> Explanation {
    let mut telling = Telling {
        world,
        packet,
        node,
        tables,
        front: Front {
            addr: packet.dst.into(),
            port: Be16::new(packet.port),
            proto: packet.proto,
        },
        steps: Vec::new(),
    };
    telling.tell()
}

struct Telling<'a, T> {
    world: &'a World,
    packet: &'a Packet,
    node: &'a str,
    tables: &'a T,
    front: Front,
    steps: Vec<Step>,
}

impl<T: Tables> Telling<'_, T> {
    fn tell(&mut self) -> Explanation {
        let frontend = self.tables.frontend(&FrontendKey::new(
            self.front.addr,
            self.front.port,
            self.front.proto,
        ));
        let hook = self.hook(frontend);
        self.step(
            match (hook, &self.packet.source) {
                (Hook::Socket, Source::Pod { name, .. }) => {
                    format!("pod {name} asks through a socket on node {}", self.node)
                }
                (Hook::Socket, _) => format!("a process of node {} asks through a socket", self.node),
                (Hook::Pod, _) => format!("the packet comes out of the pod's device on node {}", self.node),
                (Hook::Uplink, _) => format!("the packet comes in from outside on node {}", self.node),
            },
            None,
        );
        let service = self.world.service_of(self.packet, self.node);
        let (outcome, usable) = match frontend {
            None => (self.without_frontend(), Usable::None),
            Some(f) => self.with_frontend(hook, &f, service),
        };
        let only_local = frontend.is_some_and(|f| f.is_local_for(self.scope(hook)));
        let view = View {
            node: self.node,
            local: only_local && outcome != Outcome::Untouched,
            usable,
        };
        Explanation {
            packet: format!(
                "{} → {}/{}",
                self.packet.src,
                SocketAddr::new(self.packet.dst, self.packet.port),
                name(self.packet.proto)
            ),
            node: self.node.to_owned(),
            hook,
            outcome,
            endpoints: service.map_or_else(Vec::new, |s| lines(self.world, s, self.packet, &view)),
            steps: std::mem::take(&mut self.steps),
        }
    }

    fn step(&mut self, decision: impl Into<String>, object: Option<String>) {
        self.steps.push(Step {
            decision: decision.into(),
            object,
        });
    }

    /// A pod's socket is served by the hooks, unless source ranges need the address that only its packets have.
    fn hook(&self, frontend: Option<FrontendValue>) -> Hook {
        match &self.packet.source {
            Source::Outside => Hook::Uplink,
            Source::Pod { node, .. } | Source::Node(node) if node != self.node => Hook::Uplink,
            Source::Pod { .. } if frontend.is_some_and(|f| f.flags.has(FrontendFlags::RANGES)) => Hook::Pod,
            _ => Hook::Socket,
        }
    }

    fn without_frontend(&mut self) -> Outcome {
        let (dst, port) = (self.packet.dst, self.packet.port);
        let of_range = self
            .settings()
            .is_some_and(|s| s.is_service_address(self.front.addr));
        if !of_range {
            let whose = match self.world.who_has(dst) {
                Source::Pod { name, .. } => format!("the address of pod {name}"),
                Source::Node(node) => format!("an address of node {node}"),
                Source::Outside => "no pod's and no node's address".to_owned(),
            };
            self.step(
                format!(
                    "no service has {} for {}: nothing is translated, {dst} is {whose}",
                    SocketAddr::new(dst, port),
                    name(self.packet.proto)
                ),
                None,
            );
            return Outcome::Untouched;
        }
        let whole = self.tables.frontend(&FrontendKey::whole_address(self.front.addr));
        match (whole, self.world.service_at(dst)) {
            (Some(_), Some(service)) => {
                let text = format!(
                    "service {} has no port {port}/{}; it has {}",
                    full_name(&service.metadata),
                    name(self.packet.proto),
                    list(service)
                );
                self.step(text, Some(object(service)));
                Outcome::Refused
            }
            (Some(_), None) => {
                self.step(format!("the service that has {dst} has no port {port}"), None);
                Outcome::Refused
            }
            (None, _) => {
                self.step(
                    format!("{dst} lies in the service range, and no service has it"),
                    None,
                );
                Outcome::Dropped
            }
        }
    }

    fn with_frontend(
        &mut self,
        hook: Hook,
        f: &FrontendValue,
        service: Option<&Service>,
    ) -> (Outcome, Usable) {
        let whose = service.map(object);
        let whom = service.map_or_else(
            || "a service".to_owned(),
            |s| format!("service {}", full_name(&s.metadata)),
        );
        self.step(
            format!(
                "{} is {} of {whom}",
                SocketAddr::new(self.packet.dst, self.packet.port),
                kind(f)
            ),
            whose.clone(),
        );
        if f.flags.has(FrontendFlags::HERE) {
            self.step("the node itself answers there: nothing is translated", None);
            return (Outcome::Untouched, Usable::None);
        }
        if !self.admitted(f, service) {
            return (Outcome::Dropped, Usable::None);
        }
        let scope = self.scope(hook);
        self.policy(f, scope, service);
        let (first, count) = f.usable(scope);
        let all: BTreeSet<SocketAddr> = (first..first.saturating_add(count))
            .filter_map(|slot| self.slot(f, slot))
            .collect();
        let kept = self.kept(f, hook, scope);
        let outcome = self.decide(hook);
        self.conclude(f, scope, outcome, all.len(), kept);
        let usable = match (outcome, kept) {
            (Outcome::Endpoint, Some(one)) => Usable::Kept(one, all),
            (Outcome::Endpoint, None) => Usable::Some(all),
            _ => Usable::None,
        };
        (outcome, usable)
    }

    /// Whether the client is in the service's source ranges, if it has some.
    fn admitted(&mut self, f: &FrontendValue, service: Option<&Service>) -> bool {
        if !f.flags.has(FrontendFlags::RANGES) {
            return true;
        }
        let src = self.packet.src;
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
        let pod = self
            .settings()
            .is_some_and(|s| s.is_pod_address(self.packet.src.into()));
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
        let kept = self.tables.affinity(&key)?;
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

    /// Asks the logic that the programs are made of.
    fn decide(&mut self, hook: Hook) -> Outcome {
        let scratch = Scratch::over(self.tables);
        if hook == Hook::Socket {
            let netns = match self.packet.source {
                Source::Node(_) => self.settings().map_or(0, |s| s.host_netns_cookie),
                _ => u64::MAX,
            };
            return match socket::connect(&scratch, &self.front, netns) {
                socket::Verdict::Pass => Outcome::Untouched,
                socket::Verdict::To { .. } => Outcome::Endpoint,
                socket::Verdict::Refuse(_) => Outcome::Refused,
            };
        }
        let bytes = frame(
            self.packet.src,
            self.packet.dst,
            self.packet.port,
            self.packet.proto,
        );
        let Ok(parsed) = parse(&bytes[..]) else {
            return Outcome::Dropped;
        };
        let len = bytes.len() as u32;
        let verdict = match hook {
            Hook::Pod => forward::from_pod(&scratch, &bytes[..], &parsed, len),
            _ => forward::from_uplink(&scratch, &bytes[..], &parsed, len),
        };
        let flows = scratch.flows.into_inner();
        if let Some((_, flow)) = flows.iter().find(|(_, f)| f.role == FlowRole::MASQUERADE) {
            let own = flow.addr.to_ip();
            self.step(
                format!("the endpoint's answer has to come back this way: the client stands behind {own} and a port of it (client port {CLIENT_PORT} assumed)"),
                None,
            );
        }
        match verdict {
            Verdict::Pass => Outcome::Untouched,
            Verdict::Rewrite(..) => Outcome::Endpoint,
            Verdict::Reject(_) => Outcome::Refused,
            Verdict::Drop(reason) => {
                self.step(reason.words(), None);
                Outcome::Dropped
            }
        }
    }

    fn conclude(
        &mut self,
        f: &FrontendValue,
        scope: Scope,
        outcome: Outcome,
        count: usize,
        kept: Option<SocketAddr>,
    ) {
        let elsewhere = f.is_local_for(scope) && f.flags.has(FrontendFlags::ELSEWHERE);
        let text = match outcome {
            Outcome::Endpoint => match kept {
                Some(one) => format!(
                    "the client keeps {one}: sessionAffinity for {} s after its last connection",
                    f.affinity
                ),
                None if f.affinity != 0 => format!(
                    "one of {count} by chance, which the client then keeps for {} s",
                    f.affinity
                ),
                None if f.flags.has(FrontendFlags::MAGLEV)
                    && scope == Scope::Outside
                    && !f.is_local_for(scope) =>
                {
                    format!(
                        "one of {count} by the connection's addresses and ports: every node picks the same"
                    )
                }
                None => format!("one of {count} by chance"),
            },
            Outcome::Refused | Outcome::Dropped if elsewhere => {
                format!(
                    "no endpoint on node {} can be used, and policy Local allows no other",
                    self.node
                )
            }
            Outcome::Refused => "no endpoint can be used".to_owned(),
            Outcome::Untouched => "nothing is translated".to_owned(),
            Outcome::Dropped => return,
        };
        self.step(text, None);
    }

    fn settings(&self) -> Option<&Settings> {
        self.tables.settings()
    }
}

/// `TCP`.
pub(crate) fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::TCP => "TCP",
        Proto::UDP => "UDP",
        Proto::SCTP => "SCTP",
        _ => "?",
    }
}

fn object(service: &Service) -> String {
    format!("service {}", full_name(&service.metadata))
}

fn kind(f: &FrontendValue) -> &'static str {
    if f.flags.has(FrontendFlags::NODE_PORT) {
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
