//! Addresses of services of type LoadBalancer, handed out of pools.
//!
//! All services are planned for at once, so that no address is used twice. What is given stands in the service's status and
//! nowhere else: an address is free again when no service's status has it. Which node answers for it is the nodes' affair.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use machinery_plan::{Action, EventKind, Plan};
use serde_json::{Value, json};

use crate::ipam::Range;

/// The class of services that are served from the pools; those without a class are, too.
pub const CLASS: &str = "skep.io/pool";

/// Gives addresses to services that lack one, and takes them from those that are no longer of this type.
#[must_use]
pub fn plan(services: &[Arc<Service>], pools: &[Range]) -> Plan {
    let mut plan = Plan::nothing();
    if pools.is_empty() {
        return plan;
    }
    let mut order: Vec<&Arc<Service>> = services.iter().filter(|s| !is_foreign(s)).collect();
    // Where two have the same address, the older one keeps it.
    order.sort_by_key(|s| {
        let meta = &s.metadata;
        let born = meta.creation_timestamp.as_ref().map(|t| t.0);
        (born, meta.namespace.clone(), meta.name.clone())
    });
    let mut book = Book::new(services, pools);
    for service in &order {
        book.keep(service);
    }
    for service in order {
        plan.together(book.settle(service));
    }
    plan
}

/// Of a class that somebody else serves.
fn is_foreign(service: &Service) -> bool {
    let class = service
        .spec
        .as_ref()
        .and_then(|s| s.load_balancer_class.as_deref());
    class.is_some_and(|class| class != CLASS)
}

fn wants(service: &Service) -> bool {
    let of_type = |spec: &ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
    service.spec.as_ref().is_some_and(of_type)
}

/// The families that a service has, the primary one first.
fn families(service: &Service) -> Vec<bool> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.as_ref());
    let listed: Vec<bool> = listed.into_iter().flatten().map(|f| f == "IPv4").collect();
    if listed.is_empty() { vec![true] } else { listed }
}

/// The addresses that a service's status has.
fn held(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|s| s.ingress.as_ref());
    let ips = ingress.into_iter().flatten().filter_map(|i| i.ip.as_deref());
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

/// `spec.loadBalancerIP`, deprecated but still what people write.
fn asked_for(service: &Service) -> Option<IpAddr> {
    let text = service.spec.as_ref()?.load_balancer_ip.as_deref()?;
    text.parse().ok()
}

/// Which addresses are taken, and by whom.
struct Book<'a> {
    pools: &'a [Range],
    taken: HashSet<IpAddr>,
    /// What each service keeps, by uid.
    kept: HashMap<String, Vec<IpAddr>>,
    /// Where the search for a free address goes on, per pool: what was passed is taken.
    free: Vec<Box<dyn Iterator<Item = IpAddr>>>,
}

impl<'a> Book<'a> {
    fn new(services: &[Arc<Service>], pools: &'a [Range]) -> Self {
        // Addresses of services that are none of ours are not given away either.
        let foreign = services.iter().filter(|s| is_foreign(s)).flat_map(|s| held(s));
        let outside = services
            .iter()
            .filter_map(|s| s.spec.as_ref()?.external_ips.clone())
            .flatten()
            .filter_map(|ip| ip.parse().ok());
        let hosts = |pool: &Range| Box::new(pool.hosts()) as Box<dyn Iterator<Item = IpAddr>>;
        Self {
            pools,
            taken: foreign.chain(outside).collect(),
            kept: HashMap::new(),
            free: pools.iter().map(hosts).collect(),
        }
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(ip))
    }

    /// Notes what a service has and may keep: one address per family that it wants, and the one that it asks for if any.
    fn keep(&mut self, service: &Service) {
        if !wants(service) {
            // Free at the next plan, when its status is seen to be without it.
            self.taken.extend(held(service));
            return;
        }
        let asked = asked_for(service);
        let mut kept: Vec<IpAddr> = Vec::new();
        for v4 in families(service) {
            let fits = |ip: &IpAddr| {
                ip.is_ipv4() == v4 && self.is_ours(*ip) && asked.is_none_or(|a| a.is_ipv4() != v4 || a == *ip)
            };
            let found = held(service)
                .into_iter()
                .find(|ip| fits(ip) && !self.taken.contains(ip));
            if let Some(ip) = found {
                self.taken.insert(ip);
                kept.push(ip);
            }
        }
        self.kept.insert(uid(service), kept);
    }

    /// What is to be done for a service.
    fn settle(&mut self, service: &Arc<Service>) -> Vec<Action> {
        if !wants(service) {
            let ours = held(service).into_iter().any(|ip| self.is_ours(ip));
            return ours.then(|| write(service, &[])).into_iter().collect();
        }
        let kept = self.kept.remove(&uid(service)).unwrap_or_default();
        let leaving = service.metadata.deletion_timestamp.is_some();
        let (mut ips, mut actions) = (Vec::new(), Vec::new());
        for v4 in families(service) {
            let had = kept.iter().find(|ip| ip.is_ipv4() == v4).copied();
            match had.map(Ok).unwrap_or_else(|| self.take(service, v4, leaving)) {
                Ok(ip) => ips.push(ip),
                Err(Lack::Nothing) => {}
                Err(Lack::Told(reason, message)) => {
                    actions.push(Action::event(
                        service.as_ref(),
                        EventKind::Warning,
                        reason,
                        message,
                    ));
                }
            }
        }
        if ips != held(service) && !leaving {
            actions.insert(0, write(service, &ips));
        }
        // A write and an event about one object do not race: the event is an object of its own.
        actions
    }

    fn take(&mut self, service: &Service, v4: bool, leaving: bool) -> Result<IpAddr, Lack> {
        if leaving || !self.pools.iter().any(|pool| pool.is_v4() == v4) {
            // A second family without a pool is no mistake: the cluster is reached over the other one.
            return Err(Lack::Nothing);
        }
        if let Some(ip) = asked_for(service).filter(|ip| ip.is_ipv4() == v4) {
            if !self.is_ours(ip) {
                return Err(Lack::told(
                    "AddressNotInPool",
                    format!("{ip} lies in none of the address pools"),
                ));
            }
            if !self.taken.insert(ip) {
                return Err(Lack::told("AddressInUse", format!("{ip} is another service's")));
            }
            return Ok(ip);
        }
        let (pools, taken) = (self.pools, &self.taken);
        let of_family = self
            .free
            .iter_mut()
            .zip(pools)
            .filter(|(_, pool)| pool.is_v4() == v4);
        let found = of_family
            .flat_map(|(free, _)| free)
            .find(|ip| !taken.contains(ip));
        let ip = found.ok_or_else(|| {
            let family = if v4 { "IPv4" } else { "IPv6" };
            Lack::told(
                "AddressPoolExhausted",
                format!("No {family} address is left in the pools"),
            )
        })?;
        self.taken.insert(ip);
        Ok(ip)
    }
}

/// Why there is no address.
enum Lack {
    /// None is wanted.
    Nothing,
    /// Worth an event: its reason and message.
    Told(&'static str, String),
}

impl Lack {
    fn told(reason: &'static str, message: String) -> Self {
        Self::Told(reason, message)
    }
}

fn uid(service: &Service) -> String {
    service.metadata.uid.clone().unwrap_or_default()
}

/// Sets exactly these addresses, if nobody else has changed the service meanwhile.
fn write(service: &Arc<Service>, ips: &[IpAddr]) -> Action {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let mut status = serde_json::to_value(service.status.clone().unwrap_or_default()).unwrap_or_default();
    status["loadBalancer"] = if ingress.is_empty() {
        json!({})
    } else {
        json!({"ingress": ingress})
    };
    Action::status(service.as_ref(), &status)
}

#[cfg(test)]
#[path = "load_balancer_tests.rs"]
mod tests;
