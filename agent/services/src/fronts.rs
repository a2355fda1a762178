//! The addresses and ports at which a service is reached, and who has them.
use crate::node::Node;
use crate::programmed::Front;
use crate::view::{ObjectName, PortView, ServiceView};
use datapath_abi::{Address, Be16, FrontendFlags, FrontendKey, Range};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

/// All frontends of one port in one family; none without a cluster address of the family. The first of two that are the same counts:
/// the load balancer's address before the same external one, since it may be guarded by source ranges.
pub(crate) fn of_port(
    view: &ServiceView,
    port: &PortView,
    v4: bool,
    is_first: bool,
    node: &Node,
) -> Vec<Front> {
    let mut found = Vec::with_capacity(4);
    for ip in of_family(&view.cluster_ips, v4) {
        let flags = FrontendFlags::NONE
            .with_if(view.internal_local, FrontendFlags::LOCAL_ALWAYS)
            .with_if(node.dns.contains(&ip), FrontendFlags::HERE);
        found.push(front(ip, port.port, port, flags));
        if is_first {
            found.push(Front {
                key: FrontendKey::whole_address(ip.into()),
                // The node's own sockets are answered there at any port.
                flags: FrontendFlags::NONE.with_if(node.dns.contains(&ip), FrontendFlags::HERE),
            });
        }
    }
    if found.is_empty() {
        return found;
    }
    let outside = FrontendFlags::EXTERNAL.with_if(view.external_local, FrontendFlags::LOCAL_OUTSIDE);
    let guarded = outside.with_if(is_guarded(view, v4), FrontendFlags::RANGES);
    for ip in of_family(&view.balancer_ips, v4) {
        found.push(front(ip, port.port, port, guarded));
    }
    for ip in of_family(&view.external_ips, v4) {
        found.push(front(ip, port.port, port, outside));
    }
    if port.node_port != 0 {
        for ip in of_family(&node.node_port_addresses, v4) {
            let flags = outside.with(FrontendFlags::NODE_PORT);
            found.push(front(ip, port.node_port, port, flags));
        }
    }
    found
}

fn front(ip: IpAddr, number: u16, port: &PortView, flags: FrontendFlags) -> Front {
    Front {
        key: FrontendKey::new(ip.into(), Be16::new(number), port.proto),
        flags,
    }
}

fn of_family(ips: &[IpAddr], v4: bool) -> impl Iterator<Item = IpAddr> {
    ips.iter().copied().filter(move |ip| ip.is_ipv4() == v4)
}

/// A family of which no range is given, or the range of everything, is not guarded.
fn is_guarded(view: &ServiceView, v4: bool) -> bool {
    let mut of_family = view
        .source_ranges
        .iter()
        .filter(|(ip, _)| ip.is_ipv4() == v4)
        .peekable();
    of_family.peek().is_some() && of_family.all(|(_, bits)| *bits != 0)
}

/// Who may use the guarded fronts. Where the node itself may, the guarded addresses may too: a node that holds one is asked
/// by it.
pub(crate) fn ranges(view: &ServiceView, v4: bool, fronts: &[Front], node: &Node) -> Vec<Range> {
    let guarded = || fronts.iter().filter(|f| f.flags.has(FrontendFlags::RANGES));
    if guarded().next().is_none() {
        return Vec::new();
    }
    let mut found: Vec<Range> = view
        .source_ranges
        .iter()
        .filter(|(ip, _)| ip.is_ipv4() == v4)
        .map(|(ip, bits)| Range::new(*ip, *bits))
        .collect();
    let own = node.primary(v4).map(Address::from);
    if own.is_some_and(|own| found.iter().any(|r| r.contains(own))) {
        found.extend(guarded().map(|f| Range {
            addr: f.key.addr,
            bits: 128,
        }));
    }
    found
}

/// Who has a frontend. Two services with one address exist only for a moment (an address is given away again before
/// the deletion of its old owner arrived), or where two want one external address: the first one keeps it until then.
#[derive(Default)]
pub(crate) struct Holders {
    holders: HashMap<FrontendKey, Holder, BuildHasherDefault<KeyHasher>>,
    waiting: HashMap<FrontendKey, BTreeSet<ObjectName>>,
    /// The plan under way.
    plan: u32,
    external: usize,
}

struct Holder {
    number: u32,
    /// The plan in which it was last wanted.
    plan: u32,
    external: bool,
}

impl Holders {
    /// The plan of another service begins.
    pub fn begin(&mut self) {
        self.plan = self.plan.wrapping_add(1);
    }

    /// Whether the service has the frontend, or can have it now; else it waits for it. False too if it has it in this plan already.
    pub fn hold(&mut self, front: &Front, number: u32, name: &ObjectName) -> bool {
        let plan = self.plan;
        let is_external = front.flags.has(FrontendFlags::EXTERNAL);
        let new = Holder {
            number,
            plan,
            external: is_external,
        };
        match self.holders.entry(front.key) {
            std::collections::hash_map::Entry::Vacant(place) => {
                self.external += usize::from(is_external);
                place.insert(new);
                true
            }
            std::collections::hash_map::Entry::Occupied(mut place) if place.get().number == number => {
                if place.get().plan == plan {
                    return false;
                }
                self.external += usize::from(is_external);
                self.external -= usize::from(place.get().external);
                place.insert(new);
                true
            }
            std::collections::hash_map::Entry::Occupied(_) => {
                self.waiting.entry(front.key).or_default().insert(name.clone());
                false
            }
        }
    }

    /// Gives up those that the service held and did not want in this plan; returns who waits for them.
    pub fn release(&mut self, held: &[FrontendKey], number: u32) -> BTreeSet<ObjectName> {
        let mut woken = BTreeSet::new();
        for key in held {
            let stale = |h: &&Holder| h.number == number && h.plan != self.plan;
            if self.holders.get(key).filter(stale).is_none() {
                continue;
            }
            if let Some(holder) = self.holders.remove(key) {
                self.external -= usize::from(holder.external);
            }
            woken.extend(self.waiting.remove(key).unwrap_or_default());
        }
        woken
    }

    /// How many frontends are no cluster addresses.
    pub fn external(&self) -> usize {
        self.external
    }
}

/// A hash of frontends: short keys that no client chooses, asked for at each change of a service.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl KeyHasher {
    fn stir(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        // The upper bits are the well-mixed ones, and tables use the lower.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.stir(u64::from_ne_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.stir(u64::from(n));
    }

    fn write_u16(&mut self, n: u16) {
        self.stir(u64::from(n));
    }

    fn write_usize(&mut self, _: usize) {
        // The length of an address, always the same.
    }
}
