//! Addresses and ports of Services: `clusterIPs` from the service ranges, `nodePort` and `healthCheckNodePort` from
//! the port range. The sets are built from the stored services at start, which also repairs them after a crash.

mod addresses;
mod pool;
mod ports;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use api::catalog::Resource;
use api::meta::Meta;
use api::status::{Cause, Status};
use control_plane_store::Snapshot;
use serde_json::Value;

use crate::cidr::Cidr;
use crate::error::{Result, fail};
use pool::Pool;

/// The largest part of a service range that is used; an IPv6 range can be much larger than needed.
const LARGEST: u64 = 1 << 20;

/// What a service holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

/// The free and taken addresses and ports of the cluster.
#[derive(Clone)]
pub(crate) struct Services {
    cidrs: Arc<[Cidr]>,
    node_ports: RangeInclusive<u16>,
    state: Arc<Mutex<State>>,
}

struct State {
    addresses: Vec<Pool>,
    ports: Pool,
}

impl Services {
    /// Pools with everything taken that stored services hold.
    pub(crate) fn new(cidrs: &[Cidr], node_ports: RangeInclusive<u16>, snapshot: &Snapshot) -> Self {
        let addresses = cidrs.iter().map(|cidr| address_pool(*cidr)).collect();
        let size = u64::from(node_ports.end().saturating_sub(*node_ports.start())) + 1;
        let ports = Pool::new(size, (size / 32).clamp(16, 128));
        let services = Self {
            cidrs: cidrs.into(),
            node_ports,
            state: Arc::new(Mutex::new(State { addresses, ports })),
        };
        for (_, entry) in snapshot.range(b"/registry/services/", b"") {
            if let Ok(service) = serde_json::from_slice::<Value>(&entry.value) {
                services.held(&service).into_iter().for_each(|item| {
                    services.take(item);
                });
            }
        }
        services
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the pools")
    }

    /// The address families of the cluster, the primary first.
    fn families(&self) -> Vec<&'static str> {
        self.cidrs
            .iter()
            .map(|c| if c.is_ipv6() { "IPv6" } else { "IPv4" })
            .collect()
    }

    /// Gives a new service its addresses and ports.
    pub(crate) fn create(&self, service: &mut Value) -> Result<Claim> {
        let mut claim = Claim::new(self);
        let mut causes = Vec::new();
        addresses::assign(self, service, None, &mut claim, &mut causes);
        ports::assign(self, service, None, &mut claim, &mut causes);
        finish(service, claim, causes)
    }

    /// Gives a changed service what it needs in addition, and marks what it no longer needs.
    pub(crate) fn update(&self, old: &Value, new: &mut Value) -> Result<Claim> {
        let mut claim = Claim::new(self);
        let mut causes = Vec::new();
        addresses::assign(self, new, Some(old), &mut claim, &mut causes);
        ports::assign(self, new, Some(old), &mut claim, &mut causes);
        let now = self.held(new);
        claim.freed = self
            .held(old)
            .into_iter()
            .filter(|item| !now.contains(item))
            .collect();
        finish(new, claim, causes)
    }

    /// Takes back what a deleted object held, if it is a service.
    pub(crate) fn release(&self, res: &Resource, object: &Value) {
        if crate::object::storage(res) == "services" {
            self.held(object).into_iter().for_each(|item| self.free(item));
        }
    }

    fn held(&self, service: &Value) -> Vec<Item> {
        let spec = &service["spec"];
        let ips = spec["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let ports = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| &p["nodePort"]);
        let ports = ports
            .chain([&spec["healthCheckNodePort"]])
            .filter_map(Value::as_u64);
        let mut held: Vec<Item> = ips.filter_map(|ip| ip.parse().ok()).map(Item::Address).collect();
        for port in ports.filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0) {
            // The same port may serve TCP and UDP.
            if !held.contains(&Item::Port(port)) {
                held.push(Item::Port(port));
            }
        }
        held
    }

    fn take(&self, item: Item) -> bool {
        let mut state = self.lock();
        match item {
            Item::Port(port) => state.ports.take(self.port_offset(port)),
            Item::Address(ip) => self
                .place(ip)
                .is_some_and(|(i, offset)| state.addresses[i].take(offset)),
        }
    }

    fn free(&self, item: Item) {
        let mut state = self.lock();
        match item {
            Item::Port(port) => state.ports.free(self.port_offset(port)),
            Item::Address(ip) => {
                if let Some((i, offset)) = self.place(ip) {
                    state.addresses[i].free(offset);
                }
            }
        }
    }

    /// Takes any free address of a family.
    fn draw_address(&self, family: &str) -> Option<IpAddr> {
        let i = self.families().iter().position(|f| *f == family)?;
        let offset = self.lock().addresses[i].draw(crate::random::number())?;
        self.cidrs[i].nth(offset)
    }

    /// Takes any free port.
    fn draw_port(&self) -> Option<u16> {
        let offset = self.lock().ports.draw(crate::random::number())?;
        self.node_ports.start().checked_add(u16::try_from(offset).ok()?)
    }

    /// Which range an address is in, and where.
    fn place(&self, ip: IpAddr) -> Option<(usize, u64)> {
        let sizes: Vec<u64> = self.cidrs.iter().map(|c| c.size().min(LARGEST)).collect();
        self.cidrs.iter().enumerate().find_map(|(i, cidr)| {
            cidr.offset(ip)
                .filter(|o| *o < sizes[i])
                .map(|offset| (i, offset))
        })
    }

    /// Ports below the range wrap to a number that no pool has.
    fn port_offset(&self, port: u16) -> u64 {
        u64::from(port).wrapping_sub(u64::from(*self.node_ports.start()))
    }
}

/// All addresses of a range but the first, which names it, and the last of IPv4, which is its broadcast address.
fn address_pool(cidr: Cidr) -> Pool {
    let size = cidr.size().min(LARGEST);
    let mut pool = Pool::new(size, (size / 16).clamp(16, 256));
    pool.take(0);
    if !cidr.is_ipv6() {
        pool.take(pool.size() - 1);
    }
    pool
}

fn finish(service: &Value, claim: Claim, causes: Vec<Cause>) -> Result<Claim> {
    if causes.is_empty() {
        return Ok(claim);
    }
    fail(Status::invalid(("", "Service"), Meta::of(service).name(), causes))
}

/// What a write took and will give back. Dropping it undoes it; [`Claim::keep`] makes it last.
pub(crate) struct Claim {
    services: Option<Services>,
    taken: Vec<Item>,
    freed: Vec<Item>,
}

impl Claim {
    /// A claim on nothing.
    pub(crate) fn none() -> Self {
        Self {
            services: None,
            taken: Vec::new(),
            freed: Vec::new(),
        }
    }

    fn new(services: &Services) -> Self {
        Self {
            services: Some(services.clone()),
            taken: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// The write is stored: what was taken stays taken, what is no longer used is free.
    pub(crate) fn keep(mut self) {
        self.taken.clear();
        if let Some(services) = &self.services {
            self.freed.drain(..).for_each(|item| services.free(item));
        }
    }

    /// Takes an item for this write; false when it is taken.
    fn take(&mut self, item: Item) -> bool {
        let taken = self.services.as_ref().is_some_and(|s| s.take(item));
        if taken {
            self.taken.push(item);
        }
        taken
    }

    /// Notes an item that was drawn.
    fn note(&mut self, item: Item) {
        self.taken.push(item);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(services) = &self.services {
            self.taken.drain(..).for_each(|item| services.free(item));
        }
    }
}

#[cfg(test)]
mod tests;
