//! The planner: observed objects in, ordered changes out, in time that grows with what changed only.
use crate::changes::Changes;
use crate::endpoints::{Needs, Usable, usable};
use crate::existing::Existing;
use crate::fronts::{self, Holders};
use crate::host_ports::{self, HostPortsView, PodEntry};
use crate::node::Node;
use crate::programmed::{Front, Programmed, SetKey, Wanted};
use crate::view::{ObjectName, PortView, ServiceView, SliceView};
use datapath_abi::{Address, FrontendFlags, FrontendKey, Proto, SetId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// One service: what was observed and what stands in the maps.
#[derive(Default)]
pub(crate) struct Entry {
    /// The number by which holders of frontends are told apart.
    number: u32,
    pub view: Option<ServiceView>,
    pub slices: BTreeMap<Arc<str>, SliceView>,
    pub sets: Vec<Programmed>,
    dirty: bool,
}

/// Turns observations into changes. It assumes that every change it returned is carried out; where that failed, make a new
/// planner from what stands in the maps and observe everything again.
pub struct Planner {
    pub(crate) services: HashMap<ObjectName, Entry>,
    /// Pods with ports of the node, by [`host_ports::key`].
    pods: BTreeMap<ObjectName, PodEntry>,
    /// Which service a slice belongs to, by the slice's name.
    slices: HashMap<ObjectName, ObjectName>,
    /// Services whose entries say so.
    dirty: Vec<ObjectName>,
    /// Services that load balancers ask about.
    pub(crate) asked: BTreeSet<ObjectName>,
    entries: u32,
    pub(crate) rest: Rest,
}

/// All that planning one service needs besides the service.
pub(crate) struct Rest {
    pub node: Node,
    holders: Holders,
    next: u32,
    /// What an earlier agent left; taken at the first plan.
    existing: Option<Existing>,
    adopted: HashSet<SetId>,
    /// The addresses that the node answers itself.
    here: Option<Programmed>,
}

impl Planner {
    /// A planner that goes on from what stands in the maps.
    pub fn new(node: Node, existing: Existing) -> Self {
        Self {
            services: HashMap::new(),
            pods: BTreeMap::new(),
            slices: HashMap::new(),
            dirty: Vec::new(),
            asked: BTreeSet::new(),
            entries: 0,
            rest: Rest {
                node,
                holders: Holders::default(),
                next: first_free(&existing),
                existing: Some(existing),
                adopted: HashSet::new(),
                here: None,
            },
        }
    }

    /// A Service is there, or changed.
    pub fn service(&mut self, view: ServiceView) {
        let name = view.name.clone();
        if view.health_port.is_some() {
            self.asked.insert(name.clone());
        } else if !self.asked.is_empty() {
            self.asked.remove(&name);
        }
        let entry = self.entry(&name);
        if entry.view.as_ref() != Some(&view) {
            entry.view = Some(view);
            self.mark(&name);
        }
    }

    /// A Service is gone.
    pub fn service_gone(&mut self, name: &ObjectName) {
        self.asked.remove(name);
        if let Some(entry) = self.services.get_mut(name) {
            entry.view = None;
            self.mark(name);
        }
    }

    /// The pods that have ports of this node: all of them, each time.
    pub fn host_ports(&mut self, all: &[HostPortsView]) {
        let names: BTreeMap<_, _> = all.iter().map(|v| (host_ports::key(&v.pod), v)).collect();
        let gone = self.pods.keys().filter(|name| !names.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.pod(&name, None);
        }
        for (name, view) in names {
            self.pod(&name, Some(view));
        }
    }

    fn pod(&mut self, name: &ObjectName, view: Option<&HostPortsView>) {
        if !self.pods.contains_key(name) {
            self.entries = self.entries.wrapping_add(1);
            let entry = PodEntry {
                number: self.entries,
                view: None,
                sets: Vec::new(),
                dirty: false,
            };
            self.pods.insert(name.clone(), entry);
        }
        if let Some(entry) = self.pods.get_mut(name)
            && entry.view.as_ref() != view
        {
            entry.view = view.cloned();
            self.mark(name);
        }
    }

    /// An EndpointSlice is there, or changed; it may have changed its service too.
    pub fn slice(&mut self, view: SliceView) {
        let own = ObjectName {
            namespace: view.service.namespace.clone(),
            name: view.name.clone(),
        };
        let service = view.service.clone();
        match self.slices.get(&own) {
            Some(known) if *known == service => {}
            _ => {
                self.slice_gone(&own);
                self.slices.insert(own, service.clone());
            }
        }
        let entry = self.entry(&service);
        if entry.slices.get(&view.name) != Some(&view) {
            entry.slices.insert(view.name.clone(), view);
            self.mark(&service);
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
        self.mark(&service);
    }

    /// The node changed: every service may choose differently now.
    pub fn set_node(&mut self, node: Node) {
        if self.rest.node != node {
            self.rest.node = node;
            let all: Vec<_> = self.services.keys().chain(self.pods.keys()).cloned().collect();
            all.iter().for_each(|name| self.mark(name));
        }
    }

    /// The node's zone changed.
    pub fn set_zone(&mut self, zone: Option<Arc<str>>) {
        self.set_node(Node {
            zone,
            ..self.rest.node.clone()
        });
    }

    /// The node for which is planned.
    pub fn node(&self) -> &Node {
        &self.rest.node
    }

    /// Writing failed somewhere in the middle: plans everything again, from what stands in the maps now.
    pub fn restart(&mut self, existing: Existing) {
        self.rest.next = self.rest.next.max(first_free(&existing));
        self.rest.existing = Some(existing);
        self.rest.holders = Holders::default();
        self.rest.here = None;
        self.dirty.clear();
        for (name, entry) in &mut self.services {
            entry.sets.clear();
            entry.dirty = true;
            self.dirty.push(name.clone());
        }
        for (name, entry) in &mut self.pods {
            entry.sets.clear();
            entry.dirty = true;
            self.dirty.push(name.clone());
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

    /// Whether any service is to be reached from outside the cluster: then packets on uplinks are looked at.
    pub fn has_external_fronts(&self) -> bool {
        self.rest.holders.external() > 0
    }

    /// What to do since the last call. The first call must come after both lists have arrived in full: it deletes whatever
    /// stands in the maps and was not observed.
    pub fn plan(&mut self) -> Changes {
        let mut out = Changes::default();
        while !self.dirty.is_empty() {
            for name in std::mem::take(&mut self.dirty) {
                self.plan_service(&name, &mut out);
            }
        }
        self.rest.plan_here(&mut out);
        if let Some(existing) = self.rest.existing.take() {
            self.sweep(&existing, &mut out);
            leave_standing(&existing, &mut out);
            self.rest.adopted = HashSet::new();
        }
        settle(&mut out);
        out
    }

    /// The entry of a service, made if missing.
    fn entry(&mut self, name: &ObjectName) -> &mut Entry {
        if !self.services.contains_key(name) {
            self.entries = self.entries.wrapping_add(1);
            let entry = Entry {
                number: self.entries,
                ..Entry::default()
            };
            self.services.insert(name.clone(), entry);
        }
        self.services.get_mut(name).expect("it was just put there")
    }

    fn mark(&mut self, name: &ObjectName) {
        let of_service = self.services.get_mut(name).map(|e| &mut e.dirty);
        let dirty = of_service.or_else(|| self.pods.get_mut(name).map(|e| &mut e.dirty));
        if dirty.is_some_and(|dirty| !std::mem::replace(dirty, true)) {
            self.dirty.push(name.clone());
        }
    }

    fn plan_service(&mut self, name: &ObjectName, out: &mut Changes) {
        let Some(entry) = self.services.get_mut(name) else {
            return self.plan_pod(name, out);
        };
        entry.dirty = false;
        let woken = self.rest.plan(name, entry, out);
        if entry.view.is_none() && entry.slices.is_empty() {
            self.services.remove(name);
        }
        woken.iter().for_each(|name| self.mark(name));
    }

    fn plan_pod(&mut self, name: &ObjectName, out: &mut Changes) {
        let Some(entry) = self.pods.get_mut(name) else {
            return;
        };
        entry.dirty = false;
        let woken = self.rest.plan_pod(name, entry, out);
        if entry.view.is_none() {
            self.pods.remove(name);
        }
        woken.iter().for_each(|name| self.mark(name));
    }

    /// Deletes what an earlier agent left and nothing wants.
    fn sweep(&self, existing: &Existing, out: &mut Changes) {
        let sets = || {
            let of_services = self.services.values().flat_map(|e| &e.sets);
            let of_pods = self.pods.values().flat_map(|e| &e.sets);
            of_services.chain(of_pods).chain(&self.rest.here)
        };
        out.gone_frontends.extend(left(
            existing.frontends.keys(),
            sets().flat_map(|s| s.frontends.iter().map(|(k, _)| *k)),
        ));
        out.gone_backends.extend(left(
            existing.backends.keys(),
            sets().flat_map(Programmed::slot_keys),
        ));
        out.gone_members.extend(left(
            existing.members.keys(),
            sets().flat_map(Programmed::member_keys),
        ));
        out.gone_maglev.extend(left(
            existing.maglev.keys(),
            sets().flat_map(Programmed::maglev_key),
        ));
        out.gone_ranges.extend(left(
            existing.ranges.iter(),
            sets().flat_map(Programmed::range_keys),
        ));
        out.gone_owners
            .extend(left(existing.owners.keys(), sets().map(|s| s.id)));
    }
}

impl Rest {
    /// Brings one service up to date; returns who may have a frontend now that it gave up.
    fn plan(&mut self, name: &ObjectName, entry: &mut Entry, out: &mut Changes) -> BTreeSet<ObjectName> {
        self.holders.begin();
        let Entry {
            number,
            view,
            slices,
            sets,
            ..
        } = entry;
        let held = begin_again(sets);
        if let Some(view) = view {
            let owner = (name, *number);
            for v4 in [true, false] {
                for (i, port) in view.ports.iter().enumerate() {
                    self.plan_port(owner, view, slices, sets, (port, i == 0, v4), out);
                }
            }
        }
        drop_unwanted(sets, out);
        self.holders.release(&held, *number)
    }

    /// Brings the ports of one pod up to date; returns as [`plan`](Self::plan) does.
    fn plan_pod(
        &mut self,
        name: &ObjectName,
        entry: &mut PodEntry,
        out: &mut Changes,
    ) -> BTreeSet<ObjectName> {
        self.holders.begin();
        let PodEntry {
            number, view, sets, ..
        } = entry;
        let held = begin_again(sets);
        let all = view.as_ref().map(|v| host_ports::wanted(v, &self.node));
        for (port, v4, mut fronts, usable) in all.into_iter().flatten() {
            fronts.retain(|f| self.holders.hold(f, *number, name));
            if !fronts.is_empty() {
                let wanted = Wanted::plain(&port, v4, fronts, usable);
                self.bring(name, sets, wanted, out);
            }
        }
        drop_unwanted(sets, out);
        self.holders.release(&held, *number)
    }

    /// Finds or makes the set, and makes it what is wanted.
    fn bring(
        &mut self,
        name: &ObjectName,
        sets: &mut Vec<Programmed>,
        wanted: Wanted<'_>,
        out: &mut Changes,
    ) {
        let of = |s: &Programmed| !s.kept && s.key.is_of(wanted.port, wanted.v4);
        let place = sets.iter().position(of).unwrap_or_else(|| {
            sets.push(self.start(name, &wanted, out));
            sets.len() - 1
        });
        sets[place].kept = true;
        sets[place].become_(wanted, out);
    }

    fn plan_port(
        &mut self,
        (name, number): (&ObjectName, u32),
        view: &ServiceView,
        slices: &BTreeMap<Arc<str>, SliceView>,
        sets: &mut Vec<Programmed>,
        (port, is_first, v4): (&PortView, bool, bool),
        out: &mut Changes,
    ) {
        let mut fronts = fronts::of_port(view, port, v4, is_first, &self.node);
        fronts.retain(|f| !self.is_reserved(&f.key) && self.holders.hold(f, number, name));
        if fronts.is_empty() {
            // Another service has them all: nothing would lead to this set.
            return;
        }
        let wanted = Wanted {
            usable: self.usable(view, slices, port, v4, &fronts),
            port,
            v4,
            affinity: view.affinity,
            maglev: !view.external_local && fronts.iter().any(is_external),
            ranges: fronts::ranges(view, v4, &fronts, &self.node),
            fronts,
        };
        self.bring(name, sets, wanted, out);
    }

    fn usable(
        &self,
        view: &ServiceView,
        slices: &BTreeMap<Arc<str>, SliceView>,
        port: &PortView,
        v4: bool,
        fronts: &[Front],
    ) -> Usable {
        if fronts.iter().all(|f| f.key.proto == Proto::ANY) {
            return Usable::default();
        }
        let external = fronts.iter().any(is_external);
        let needs = Needs {
            cluster: !view.internal_local || external,
            local: view.internal_local || (view.external_local && external),
        };
        usable(slices.values(), port, v4, needs, &self.node)
    }

    /// The node's own resolver has the whole address, whether or not a service has it too.
    fn is_reserved(&self, key: &FrontendKey) -> bool {
        key.proto == Proto::ANY && self.node.dns.iter().any(|ip| Address::from(*ip) == key.addr)
    }

    /// The addresses that the node answers itself are known whether or not a service has them.
    fn plan_here(&mut self, out: &mut Changes) {
        if self.node.dns.is_empty() {
            if let Some(set) = self.here.take() {
                set.vanish(out);
            }
            return;
        }
        let port = PortView {
            name: "".into(),
            proto: Proto::ANY,
            port: 0,
            node_port: 0,
        };
        let mut fronts: Vec<_> = self.node.dns.iter().map(|ip| here(*ip)).collect();
        fronts.sort_unstable_by_key(|f| f.key);
        fronts.dedup_by_key(|f| f.key);
        let wanted = Wanted::plain(&port, true, fronts, Usable::default());
        let mut set = match self.here.take() {
            Some(set) => set,
            None => self.begin("this node's names", &wanted, out),
        };
        set.become_(wanted, out);
        self.here = Some(set);
    }

    /// A set for the first time: the one that an earlier agent wrote for these frontends, or a new one.
    fn start(&mut self, name: &ObjectName, w: &Wanted<'_>, out: &mut Changes) -> Programmed {
        self.begin(&owner(name, w.port), w, out)
    }

    fn begin(&mut self, owner: &str, w: &Wanted<'_>, out: &mut Changes) -> Programmed {
        let key = SetKey {
            name: w.port.name.clone(),
            proto: w.port.proto,
            port: w.port.port,
            v4: w.v4,
        };
        if let Some(existing) = &self.existing {
            let standing = |f: &Front| Some(existing.frontends.get(&f.key)?.set);
            // Of the address itself any set may have been the first; that of a port is this one.
            let of_ports = w
                .fronts
                .iter()
                .filter(|f| (f.key.proto != Proto::ANY) == (key.proto != Proto::ANY));
            let id = of_ports.filter_map(standing).next();
            if let Some(id) = id.filter(|id| self.adopted.insert(*id)) {
                return Programmed::adopt(id, key, owner, &w.fronts, existing, out);
            }
        }
        let id = SetId(self.next);
        // Four thousand million sets later an id could come back; by then its first owner is long gone.
        self.next = self.next.checked_add(1).unwrap_or(1);
        Programmed::new(id, key, owner, out)
    }
}

/// A plan of these sets begins: what they hold.
fn begin_again(sets: &mut [Programmed]) -> Vec<FrontendKey> {
    sets.iter_mut().for_each(|s| s.kept = false);
    sets.iter()
        .flat_map(|s| s.frontends.iter().map(|(k, _)| *k))
        .collect()
}

/// It ends: sets that nobody wants any more go.
fn drop_unwanted(sets: &mut Vec<Programmed>, out: &mut Changes) {
    let mut i = 0;
    while i < sets.len() {
        if sets[i].kept {
            i += 1;
        } else {
            sets.swap_remove(i).vanish(out);
        }
    }
}

fn is_external(f: &Front) -> bool {
    f.flags.has(FrontendFlags::EXTERNAL)
}

fn here(ip: std::net::IpAddr) -> Front {
    Front {
        key: FrontendKey::whole_address(ip.into()),
        flags: FrontendFlags::HERE,
    }
}

fn first_free(existing: &Existing) -> u32 {
    let used = existing.frontends.values().map(|v| v.set.0);
    let owned = existing
        .owners
        .keys()
        .chain(existing.backends.keys().map(|k| &k.set))
        .map(|s| s.0);
    let ranged = existing.ranges.iter().map(|r| u32::from_be_bytes(r.set));
    used.chain(owned)
        .chain(ranged)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}

/// `namespace/service:port`, or without the port's name if it has none.
fn owner(name: &ObjectName, port: &PortView) -> String {
    if port.name.is_empty() {
        name.to_string()
    } else {
        format!("{name}:{}", port.name)
    }
}

/// What stands and is not wanted.
fn left<'a, K: Copy + Eq + std::hash::Hash + 'a>(
    standing: impl ExactSizeIterator<Item = &'a K>,
    wanted: impl Iterator<Item = K>,
) -> Vec<K> {
    if standing.len() == 0 {
        return Vec::new();
    }
    let wanted: HashSet<K> = wanted.collect();
    standing.filter(|k| !wanted.contains(k)).copied().collect()
}

/// What stands already is not written again.
fn leave_standing(existing: &Existing, out: &mut Changes) {
    out.members.retain(|(k, v)| existing.members.get(k) != Some(v));
    out.maglev.retain(|(k, v)| existing.maglev.get(k) != Some(v));
    out.ranges.retain(|k| !existing.ranges.contains(k));
}

/// A frontend that went from one set to another within one plan is both gone and written: it is written.
fn settle(out: &mut Changes) {
    sorted(&mut out.gone_backends);
    sorted(&mut out.gone_members);
    sorted(&mut out.gone_maglev);
    sorted(&mut out.gone_ranges);
    sorted(&mut out.gone_frontends);
    if out.gone_frontends.is_empty() {
        return;
    }
    let written: HashSet<_> = out.frontends.iter().map(|(k, _)| *k).collect();
    out.gone_frontends.retain(|k| !written.contains(k));
}

fn sorted<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}
