//! The planner: observed objects in, ordered changes out, in time that grows with what changed only.
use crate::changes::Changes;
use crate::endpoints::{Usable, usable};
use crate::existing::Existing;
use crate::programmed::{Programmed, SetKey, Wanted};
use crate::view::{ObjectName, ServiceView, SliceView};
use datapath_abi::{Address, Be16, FrontendKey, Proto, SetId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The node for which is planned.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; without it zone hints are ignored.
    pub zone: Option<Arc<str>>,
}

/// One service: what was observed and what stands in the maps.
#[derive(Default)]
struct Entry {
    view: Option<ServiceView>,
    slices: BTreeMap<Arc<str>, SliceView>,
    sets: BTreeMap<SetKey, Programmed>,
}

/// Turns observations into changes. It assumes that every change it returned is carried out; where that failed, make a new
/// planner from what stands in the maps and observe everything again.
pub struct Planner {
    node: Node,
    services: HashMap<ObjectName, Entry>,
    /// Which service a slice belongs to, by the slice's name.
    slices: HashMap<ObjectName, ObjectName>,
    dirty: BTreeSet<ObjectName>,
    /// Who has a frontend. Two services with one address exist only for a moment (an address is given away again before
    /// the deletion of its old owner arrived): the first one keeps it until then.
    holders: HashMap<FrontendKey, ObjectName>,
    waiting: HashMap<FrontendKey, BTreeSet<ObjectName>>,
    next: u32,
    /// What an earlier agent left; taken at the first plan.
    existing: Option<Existing>,
}

impl Planner {
    /// A planner that goes on from what stands in the maps.
    pub fn new(node: Node, existing: Existing) -> Self {
        let used = existing.frontends.values().map(|v| v.set.0);
        let owned = existing
            .owners
            .keys()
            .chain(existing.backends.keys().map(|k| &k.set))
            .map(|s| s.0);
        Self {
            node,
            services: HashMap::new(),
            slices: HashMap::new(),
            dirty: BTreeSet::new(),
            holders: HashMap::new(),
            waiting: HashMap::new(),
            next: used.chain(owned).max().unwrap_or(0).saturating_add(1),
            existing: Some(existing),
        }
    }

    /// A Service is there, or changed.
    pub fn service(&mut self, view: ServiceView) {
        let name = view.name.clone();
        let entry = self.services.entry(name.clone()).or_default();
        if entry.view.as_ref() != Some(&view) {
            entry.view = Some(view);
            self.dirty.insert(name);
        }
    }

    /// A Service is gone.
    pub fn service_gone(&mut self, name: &ObjectName) {
        if let Some(entry) = self.services.get_mut(name) {
            entry.view = None;
            self.dirty.insert(name.clone());
        }
    }

    /// An EndpointSlice is there, or changed; it may have changed its service too.
    pub fn slice(&mut self, view: SliceView) {
        let own = ObjectName {
            namespace: view.service.namespace.clone(),
            name: view.name.clone(),
        };
        match self.slices.get(&own) {
            Some(service) if *service == view.service => {}
            _ => {
                self.slice_gone(&own);
                self.slices.insert(own, view.service.clone());
            }
        }
        let entry = self.services.entry(view.service.clone()).or_default();
        if entry.slices.get(&view.name) != Some(&view) {
            self.dirty.insert(view.service.clone());
            entry.slices.insert(view.name.clone(), view);
        }
    }

    /// An EndpointSlice is gone, or no longer counts.
    pub fn slice_gone(&mut self, own: &ObjectName) {
        let Some(service) = self.slices.remove(own) else {
            return;
        };
        if let Some(entry) = self.services.get_mut(&service) {
            entry.slices.remove(&own.name);
        }
        self.dirty.insert(service);
    }

    /// The node's zone changed: every service may choose differently now.
    pub fn set_zone(&mut self, zone: Option<Arc<str>>) {
        if self.node.zone != zone {
            self.node.zone = zone;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Writing failed somewhere in the middle: plans everything again, from what stands in the maps now.
    pub fn restart(&mut self, existing: Existing) {
        let fresh = Self::new(self.node.clone(), existing);
        self.next = self.next.max(fresh.next);
        self.existing = fresh.existing;
        self.holders.clear();
        self.waiting.clear();
        for (name, entry) in &mut self.services {
            entry.sets.clear();
            self.dirty.insert(name.clone());
        }
    }

    /// All services observed, for whoever re-lists.
    pub fn known_services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services
            .iter()
            .filter(|(_, e)| e.view.is_some())
            .map(|(n, _)| n)
    }

    /// All slices observed, by their own names.
    pub fn known_slices(&self) -> impl Iterator<Item = &ObjectName> {
        self.slices.keys()
    }

    /// What to do since the last call. The first call must come after both lists have arrived in full: it deletes whatever
    /// stands in the maps and was not observed.
    pub fn plan(&mut self) -> Changes {
        let mut out = Changes::default();
        let first = self.existing.is_some();
        let mut adopted = HashSet::new();
        while let Some(name) = self.dirty.pop_first() {
            self.plan_service(&name, &mut adopted, &mut out);
        }
        if first {
            self.sweep(&mut out);
            self.existing = None;
        }
        settle(&mut out);
        out
    }

    fn plan_service(&mut self, name: &ObjectName, adopted: &mut HashSet<SetId>, out: &mut Changes) {
        let Some(mut entry) = self.services.remove(name) else {
            return;
        };
        let held: HashSet<_> = frontends(&entry).collect();
        let wanted = self.wanted(name, &entry);
        let keys: BTreeSet<_> = wanted.iter().map(|w| w.key.clone()).collect();
        for (key, set) in std::mem::take(&mut entry.sets) {
            if keys.contains(&key) {
                entry.sets.insert(key, set);
            } else {
                set.vanish(key.port.proto, out);
            }
        }
        for w in wanted {
            let proto = w.key.port.proto;
            let set = match entry.sets.remove(&w.key) {
                Some(set) => set,
                None => self.start(name, &w, adopted, out),
            };
            let (key, mut set) = (w.key.clone(), set);
            set.become_(w, proto, out);
            entry.sets.insert(key, set);
        }
        self.release(held.difference(&frontends(&entry).collect()));
        if entry.view.is_some() || !entry.slices.is_empty() {
            self.services.insert(name.clone(), entry);
        }
    }

    /// Every set that the service shall have, with the frontends that it can have.
    fn wanted(&mut self, name: &ObjectName, entry: &Entry) -> Vec<Wanted> {
        let Some(view) = &entry.view else {
            return Vec::new();
        };
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for v4 in [true, false] {
            let ips: Vec<Address> = view
                .cluster_ips
                .iter()
                .filter(|ip| ip.is_ipv4() == v4)
                .map(|ip| Address::from(*ip))
                .collect();
            if ips.is_empty() {
                continue;
            }
            for (i, port) in view.ports.iter().enumerate() {
                let mut frontends: Vec<_> = ips
                    .iter()
                    .map(|ip| FrontendKey::new(*ip, Be16::new(port.port), port.proto))
                    .collect();
                if i == 0 {
                    frontends.extend(ips.iter().map(|ip| FrontendKey::whole_address(*ip)));
                }
                frontends.retain(|key| seen.insert(*key) && self.hold(key, name));
                if frontends.is_empty() {
                    // Another service has them all: nothing would lead to this set.
                    continue;
                }
                let leads_here = frontends.iter().any(|k| k.proto != Proto::ANY);
                let usable = if leads_here {
                    usable(entry.slices.values(), port, v4, view.internal_local, &self.node)
                } else {
                    Usable::default()
                };
                all.push(Wanted {
                    usable,
                    key: SetKey {
                        port: port.clone(),
                        v4,
                    },
                    frontends,
                    local_only: view.internal_local,
                });
            }
        }
        all
    }

    /// Whether the service has the frontend, or can have it now; else it waits for it.
    fn hold(&mut self, key: &FrontendKey, name: &ObjectName) -> bool {
        match self.holders.get(key) {
            Some(holder) if holder != name => {
                self.waiting.entry(*key).or_default().insert(name.clone());
                false
            }
            Some(_) => true,
            None => {
                self.holders.insert(*key, name.clone());
                true
            }
        }
    }

    fn release<'a>(&mut self, keys: impl Iterator<Item = &'a FrontendKey>) {
        for key in keys {
            self.holders.remove(key);
            if let Some(names) = self.waiting.remove(key) {
                self.dirty.extend(names);
            }
        }
    }

    /// A set for the first time: the one that an earlier agent wrote for these frontends, or a new one.
    fn start(
        &mut self,
        name: &ObjectName,
        w: &Wanted,
        adopted: &mut HashSet<SetId>,
        out: &mut Changes,
    ) -> Programmed {
        let owner = owner(name, &w.key);
        if let Some(existing) = &self.existing {
            let of_ports = w.frontends.iter().filter(|k| k.proto != Proto::ANY);
            let id = of_ports
                .filter_map(|k| existing.frontends.get(k))
                .map(|v| v.set)
                .next();
            if let Some(id) = id.filter(|id| adopted.insert(*id)) {
                return Programmed::adopt(id, &owner, &w.frontends, existing, out);
            }
        }
        let id = SetId(self.next);
        // Four thousand million sets later an id could come back; by then its first owner is long gone.
        self.next = self.next.checked_add(1).unwrap_or(1);
        Programmed::new(id, &owner, out)
    }

    /// Deletes what an earlier agent left and nothing wants.
    fn sweep(&self, out: &mut Changes) {
        let Some(existing) = &self.existing else {
            return;
        };
        let sets = || self.services.values().flat_map(|e| e.sets.values());
        let frontends: HashSet<_> = sets().flat_map(|s| s.frontends.keys()).collect();
        let slots: HashSet<_> = sets().flat_map(Programmed::slot_keys).collect();
        let ids: HashSet<_> = sets().map(|s| s.id).collect();
        let left = existing.frontends.keys().filter(|k| !frontends.contains(k));
        out.gone_frontends.extend(left);
        let left = existing.backends.keys().filter(|k| !slots.contains(k));
        out.gone_backends.extend(left);
        out.gone_owners
            .extend(existing.owners.keys().filter(|k| !ids.contains(k)));
    }
}

/// The frontends that a service has in the maps.
fn frontends(entry: &Entry) -> impl Iterator<Item = FrontendKey> {
    entry.sets.values().flat_map(|s| s.frontends.keys().copied())
}

/// `namespace/service:port`, or without the port's name if it has none.
fn owner(name: &ObjectName, key: &SetKey) -> String {
    if key.port.name.is_empty() {
        name.to_string()
    } else {
        format!("{name}:{}", key.port.name)
    }
}

/// A frontend that went from one set to another within one plan is both gone and written: it is written.
fn settle(out: &mut Changes) {
    out.gone_backends.sort_unstable();
    out.gone_backends.dedup();
    out.gone_frontends.sort_unstable();
    out.gone_frontends.dedup();
    if out.gone_frontends.is_empty() {
        return;
    }
    let written: HashSet<_> = out.frontends.iter().map(|(k, _)| *k).collect();
    out.gone_frontends.retain(|k| !written.contains(k));
}
