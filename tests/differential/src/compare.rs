//! Where Skep may differ from kube-proxy, and why: by the reasons of `tests/scenarios/differences.toml`.
use crate::place::{is_local, is_node, is_service};
use crate::probe::{Client, Once, Outcome, Probe, Proto, Shown};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use tests_scenarios::rules::{Cluster, Fate, Front, Rule, rules};

/// How often each reason was needed.
pub type Reasons = BTreeMap<&'static str, usize>;

/// One probe of both.
pub struct Pair<'a> {
    pub cluster: &'a Cluster,
    pub probe: &'a Probe,
    pub real: &'a Outcome,
    pub ours: &'a Outcome,
    /// Whether socket hooks serve our node's sockets.
    pub hooks: bool,
}

impl Pair<'_> {
    /// What is wrong, in words; nothing if the two differ by listed reasons only.
    pub fn differences(&self, used: &mut Reasons) -> Vec<String> {
        if let Some(reason) = self.reason_for_all() {
            *used.entry(reason).or_default() += 1;
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for (who, outcome) in [("kube-proxy", self.real), ("Skep", self.ours)] {
            let broken = outcome.iter().find(|o| matches!(o, Once::Broken(..)));
            wrong.extend(broken.map(|b| format!("with {who}: {b:?}")));
        }
        wrong.extend(self.other_endpoints(used));
        wrong.extend(self.seen(used));
        let (real, ours) = (rest(self.real), rest(self.ours));
        if real != ours {
            wrong.push(format!("{real:?} with kube-proxy, {ours:?} with Skep"));
        }
        wrong
    }

    /// Why the two have nothing in common.
    fn reason_for_all(&self) -> Option<&'static str> {
        let is = |o: &Outcome, only| o.iter().eq([&only]);
        let own_port = self.probe.client == Client::Node && is_node(self.probe.to.ip());
        if !self.hooks && own_port && is(self.ours, Once::Refused) && self.real != self.ours {
            return Some("own-ports-by-hooks");
        }
        if self.ours.contains(&Once::Untouched) && self.comes_in() && self.is_inner_only() {
            return Some("uplinks-with-external-fronts");
        }
        let socket = self.hooks && self.probe.client.is_socket();
        if socket && is(self.real, Once::Dropped) && is(self.ours, Once::Refused) {
            return Some("calls-end-at-once");
        }
        None
    }

    /// By the uplink, to a cluster address.
    fn comes_in(&self) -> bool {
        !self.probe.client.is_of_the_node() && is_service(self.probe.to.ip())
    }

    /// There are cluster addresses alone.
    fn is_inner_only(&self) -> bool {
        rules(self.cluster).keys().all(|(ip, ..)| is_service(*ip))
    }

    /// Endpoints that one of them leads to and the other does not. Where clients keep theirs, each may lead to any of the possible ones.
    fn other_endpoints(&self, used: &mut Reasons) -> Option<String> {
        let (real, ours) = (drawn(self.real), drawn(self.ours));
        let all = rules(self.cluster);
        let Some(rule) = all.get(&front(self.probe)).filter(|r| r.affinity > 0) else {
            return real.keys().ne(ours.keys()).then(|| "other endpoints".to_owned());
        };
        let possible = possible(rule, self.probe);
        if !real.keys().chain(ours.keys()).all(|e| possible.contains(e)) {
            return Some(format!("not among {possible:?}"));
        }
        let one_client = self.probe.address.is_some() || self.probe.client.is_socket();
        if !one_client || (real.len() < 2 && ours.len() < 2) {
            return None;
        }
        if leads_elsewhere(&all, rule) {
            *used.entry("one-endpoint-is-kept").or_default() += 1;
            return None;
        }
        Some("the endpoint is not kept".to_owned())
    }

    /// Endpoints that see another client.
    fn seen(&self, used: &mut Reasons) -> Vec<String> {
        let (real, ours) = (drawn(self.real), drawn(self.ours));
        let mut wrong = Vec::new();
        for (end, theirs) in &real {
            let Some(own) = ours.get(end).filter(|own| *own != theirs) else {
                continue;
            };
            match reason(self.probe, *end, theirs, own) {
                Some(reason) => *used.entry(reason).or_default() += 1,
                None => wrong.push(format!(
                    "{end} sees {theirs:?} with kube-proxy, {own:?} with Skep"
                )),
            }
        }
        wrong
    }
}

/// The plain rule of the address that is asked.
pub fn rule(cluster: &Cluster, probe: &Probe) -> Option<Rule> {
    rules(cluster).remove(&front(probe))
}

fn front(probe: &Probe) -> Front {
    let proto = match probe.proto {
        Proto::Tcp => "TCP",
        Proto::Udp => "UDP",
    };
    (probe.to.ip(), proto, probe.to.port())
}

fn possible(rule: &Rule, probe: &Probe) -> BTreeSet<SocketAddr> {
    let inside = !matches!(probe.client, Client::Outside | Client::Elsewhere);
    match if inside { &rule.inside } else { &rule.outside } {
        Fate::OneOf(ends) => ends
            .iter()
            .map(|(ip, port)| SocketAddr::new(*ip, *port))
            .collect(),
        _ => BTreeSet::new(),
    }
}

/// Whether another front of the same port leads to other endpoints.
fn leads_elsewhere(all: &BTreeMap<Front, Rule>, rule: &Rule) -> bool {
    let of_port = all.values().filter(|r| r.service == rule.service);
    let mut fates = of_port.flat_map(|r| [&r.inside, &r.outside]);
    fates.any(|fate| *fate != rule.inside)
}

/// Endpoints, each with whom it sees.
fn drawn(outcome: &Outcome) -> BTreeMap<SocketAddr, BTreeSet<Shown>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for once in outcome {
        if let Once::Endpoint(end, shown) | Once::Broken(end, shown, _) = once {
            found.entry(*end).or_default().insert(*shown);
        }
    }
    found
}

/// What else tries came to.
fn rest(outcome: &Outcome) -> BTreeSet<Once> {
    let of = outcome.iter().copied();
    of.filter(|o| !matches!(o, Once::Endpoint(..) | Once::Broken(..)))
        .collect()
}

/// Why an endpoint sees another client.
fn reason(
    probe: &Probe,
    end: SocketAddr,
    real: &BTreeSet<Shown>,
    ours: &BTreeSet<Shown>,
) -> Option<&'static str> {
    let is = |set: &BTreeSet<Shown>, shown| set.iter().eq([&shown]);
    let comes_back = probe.client.is_of_the_node() || is_local(end.ip());
    if is(real, Shown::Node) && is(ours, Shown::Client) && comes_back {
        return Some("keeps-the-client");
    }
    if is(real, Shown::Client) && is(ours, Shown::Node) && !comes_back {
        return Some("answers-come-back");
    }
    None
}
