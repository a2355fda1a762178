//! The planner: observed objects in, ordered changes out, in time that grows with what changed only.
use crate::book::{Book, Entry};
use crate::changes::Changes;
use crate::endpoints::{Needs, Usable, usable};
use crate::existing::Existing;
use crate::fronts::{self, Holders};
use crate::host_ports::{self, HostPortsView, PodEntry};
use crate::in_use::InUse;
use crate::node::Node;
use crate::numbers::Numbers;
use crate::packed::{PackedSlice, Packer};
use crate::programmed::{Front, Programmed, SetKey, Wanted};
use crate::view::{ObjectName, PortView, ServiceView, SliceView};
use datapath_abi::{Address, FrontendFlags, FrontendKey, Proto, SetId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Holders of frontends are told apart by number: pods from here on, services before.
const FIRST_POD: u32 = 1 << 31;

/// Turns observations into changes. It assumes that every change it returned is carried out; where that failed, make a new
/// planner from what stands in the maps and observe everything again.
pub struct Planner {
    pub(crate) book: Book,
    packer: Packer,
    /// Pods with ports of the node, by [`host_ports::key`].
    pods: BTreeMap<ObjectName, PodEntry>,
    pods_seen: u32,
    /// Services whose entries say so.
    dirty: Vec<u32>,
    dirty_pods: BTreeSet<ObjectName>,
    /// Services that load balancers ask about.
    pub(crate) asked: BTreeSet<ObjectName>,
    pub(crate) rest: Rest,
}

/// All that planning one service needs besides the service.
pub(crate) struct Rest {
    pub node: Node,
    holders: Holders,
    numbers: Numbers,
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
            book: Book::default(),
            packer: Packer::default(),
            pods: BTreeMap::new(),
            pods_seen: 0,
            dirty: Vec::new(),
            dirty_pods: BTreeSet::new(),
            asked: BTreeSet::new(),
            rest: Rest {
                node,
                holders: Holders::default(),
                numbers: Numbers::new(&existing),
                next: first_free(&existing),
                existing: Some(existing),
                adopted: HashSet::new(),
                here: None,
            },
        }
    }

    /// A Service is there, or changed.
    pub fn service(&mut self, view: ServiceView) {
        if view.health_port.is_some() {
            self.asked.insert(view.name.clone());
        } else if !self.asked.is_empty() {
            self.asked.remove(&view.name);
        }
        let number = self.book.enter(&view.name);
        let Some(entry) = self.book.get_mut(number) else {
            return;
        };
        if let Some(changed) = self.packer.service(&view, entry.view.as_ref()) {
            entry.view = Some(changed);
            self.mark(number);
        }
    }

    /// A Service is gone.
    pub fn service_gone(&mut self, name: &ObjectName) {
        self.asked.remove(name);
        let Some(number) = self.book.find(name) else {
            return;
        };
        if let Some(entry) = self.book.get_mut(number) {
            entry.view = None;
        }
        self.mark(number);
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
            let entry = PodEntry {
                number: FIRST_POD | self.pods_seen,
                view: None,
                sets: Vec::new(),
            };
            self.pods_seen = self.pods_seen.wrapping_add(1);
            self.pods.insert(name.clone(), entry);
        }
        if let Some(entry) = self.pods.get_mut(name)
            && entry.view.as_ref() != view
        {
            entry.view = view.cloned();
            self.dirty_pods.insert(name.clone());
        }
    }

    /// An EndpointSlice is there, or changed; it may have changed its service too.
    pub fn slice(&mut self, view: SliceView) {
        let own = ObjectName {
            namespace: view.service.namespace.clone(),
            name: view.name.clone(),
        };
        let number = self.book.enter(&view.service);
        let owner = self.book.owner(&own);
        if owner.is_some_and(|owner| owner != number) {
            self.slice_gone(&own);
        }
        let before = self.book.get(number).and_then(|e| e.slice(&own.name));
        if let Some(changed) = self.packer.slice(&view, before) {
            self.book.put_slice(number, &own, changed);
            self.mark(number);
        }
    }

    /// An EndpointSlice is gone, or no longer counts.
    pub fn slice_gone(&mut self, own: &ObjectName) {
        if let Some(number) = self.book.take_slice(own) {
            self.mark(number);
        }
    }

    /// The node changed: every service may choose differently now.
    pub fn set_node(&mut self, node: Node) {
        if self.rest.node != node {
            self.rest.node = node;
            self.book.numbers().for_each(|number| self.mark(number));
            self.dirty_pods.extend(self.pods.keys().cloned());
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
        self.rest.numbers.restart(&existing);
        self.rest.existing = Some(existing);
        self.rest.holders = Holders::default();
        self.rest.here = None;
        for number in self.book.numbers() {
            if let Some(entry) = self.book.get_mut(number) {
                entry.sets.clear();
            }
            self.mark(number);
        }
        for (name, entry) in &mut self.pods {
            entry.sets.clear();
            self.dirty_pods.insert(name.clone());
        }
    }

    /// All services observed, for whoever re-lists.
    pub fn known_services(&self) -> impl Iterator<Item = ObjectName> {
        let observed = self.book.entries().filter(|e| e.view.is_some());
        observed.map(|e| e.name.clone())
    }

    /// All slices observed, by their own names.
    pub fn known_slices(&self) -> impl Iterator<Item = ObjectName> {
        let of = |e: &Entry, slice: &PackedSlice| ObjectName {
            namespace: e.name.namespace.clone(),
            name: slice.name().into(),
        };
        let entries = self.book.entries();
        entries.flat_map(move |e| e.slices().iter().map(move |s| of(e, s)))
    }

    /// Whether any service is to be reached from outside the cluster: then packets on uplinks are looked at.
    pub fn has_external_fronts(&self) -> bool {
        self.rest.holders.external() > 0
    }

    /// What flows may lead to and come by, as planned.
    pub fn in_use(&self) -> InUse {
        let mut found = InUse::default();
        for set in self.sets() {
            set.tell_use(&mut found);
        }
        found
    }

    /// What to do since the last call. The first call must come after both lists have arrived in full: it deletes whatever
    /// stands in the maps and was not observed.
    pub fn plan(&mut self) -> Changes {
        let mut out = Changes::default();
        while !self.dirty.is_empty() || !self.dirty_pods.is_empty() {
            for number in std::mem::take(&mut self.dirty) {
                self.plan_service(number, &mut out);
            }
            for name in std::mem::take(&mut self.dirty_pods) {
                self.plan_pod(&name, &mut out);
            }
        }
        self.rest.plan_here(&mut out);
        if let Some(existing) = self.rest.existing.take() {
            self.sweep(&existing, &mut out);
            let used: Vec<_> = self.sets().flat_map(Programmed::numbers).collect();
            self.rest.numbers.sweep(used, &mut out);
            leave_standing(&existing, &mut out);
            self.rest.adopted = HashSet::new();
        }
        self.rest.numbers.settle(&mut out);
        settle(&mut out);
        out
    }

    fn mark(&mut self, number: u32) {
        if let Some(entry) = self.book.get_mut(number)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(number);
        }
    }

    fn plan_service(&mut self, number: u32, out: &mut Changes) {
        let view = self.book.view(number);
        let Some(entry) = self.book.get_mut(number) else {
            return;
        };
        entry.dirty = false;
        let woken = self.rest.plan(number, view, entry, out);
        if entry.is_over() {
            self.book.remove(number);
        }
        self.wake(woken);
    }

    fn plan_pod(&mut self, name: &ObjectName, out: &mut Changes) {
        let Some(entry) = self.pods.get_mut(name) else {
            return;
        };
        let woken = self.rest.plan_pod(name, entry, out);
        if entry.view.is_none() {
            self.pods.remove(name);
        }
        self.wake(woken);
    }

    fn wake(&mut self, names: BTreeSet<ObjectName>) {
        for name in names {
            match self.book.find(&name) {
                Some(number) => self.mark(number),
                None => drop(self.dirty_pods.insert(name)),
            }
        }
    }

    /// Everything that stands.
    fn sets(&self) -> impl Iterator<Item = &Programmed> {
        let of_services = self.book.entries().flat_map(|e| &e.sets);
        let of_pods = self.pods.values().flat_map(|e| &e.sets);
        of_services.chain(of_pods).chain(&self.rest.here)
    }

    /// Deletes what an earlier agent left and nothing wants.
    fn sweep(&self, existing: &Existing, out: &mut Changes) {
        let sets = || self.sets();
        out.gone_frontends.extend(left(
            existing.frontends.keys(),
            sets().flat_map(|s| s.fronts.iter().map(|f| f.key)),
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
    fn plan(
        &mut self,
        number: u32,
        view: Option<ServiceView>,
        entry: &mut Entry,
        out: &mut Changes,
    ) -> BTreeSet<ObjectName> {
        self.holders.begin();
        let held = begin_again(&mut entry.sets);
        if let Some(view) = view {
            for v4 in [true, false] {
                for (i, port) in view.ports.iter().enumerate() {
                    self.plan_port(number, &view, entry, (port, i == 0, v4), out);
                }
            }
        }
        drop_unwanted(&mut entry.sets, &mut self.numbers, out);
        self.holders.release(&held, number)
    }

    /// Brings the ports of one pod up to date; returns as [`plan`](Self::plan) does.
    fn plan_pod(
        &mut self,
        name: &ObjectName,
        entry: &mut PodEntry,
        out: &mut Changes,
    ) -> BTreeSet<ObjectName> {
        self.holders.begin();
        let PodEntry { number, view, sets } = entry;
        let held = begin_again(sets);
        let all = view.as_ref().map(|v| host_ports::wanted(v, &self.node));
        for (port, v4, mut fronts, usable) in all.into_iter().flatten() {
            fronts.retain(|f| self.holders.hold(f, *number, name));
            if !fronts.is_empty() {
                let wanted = Wanted::plain(&port, v4, fronts, usable);
                self.bring(name, sets, wanted, out);
            }
        }
        drop_unwanted(sets, &mut self.numbers, out);
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
            let mut set = self.start(name, &wanted, out);
            set.expect_flows(&wanted.usable);
            sets.reserve_exact(1);
            sets.push(set);
            sets.len() - 1
        });
        sets[place].kept = true;
        sets[place].become_(wanted, &mut self.numbers, out);
    }

    fn plan_port(
        &mut self,
        number: u32,
        view: &ServiceView,
        entry: &mut Entry,
        (port, is_first, v4): (&PortView, bool, bool),
        out: &mut Changes,
    ) {
        let name = &view.name;
        let mut fronts = fronts::of_port(view, port, v4, is_first, &self.node);
        fronts.retain(|f| !self.is_reserved(&f.key) && self.holders.hold(f, number, name));
        if fronts.is_empty() {
            // Another service has them all: nothing would lead to this set.
            return;
        }
        let wanted = Wanted {
            usable: self.usable(view, entry.slices(), port, v4, &fronts),
            port,
            v4,
            affinity: view.affinity,
            maglev: !view.external_local && fronts.iter().any(is_external),
            ranges: fronts::ranges(view, v4, &fronts, &self.node),
            fronts,
        };
        self.bring(name, &mut entry.sets, wanted, out);
    }

    fn usable(
        &self,
        view: &ServiceView,
        slices: &[PackedSlice],
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
        usable(slices, port, v4, needs, &self.node)
    }

    /// The node's own resolver has the whole address, whether or not a service has it too.
    fn is_reserved(&self, key: &FrontendKey) -> bool {
        key.proto == Proto::ANY && self.node.dns.iter().any(|ip| Address::from(*ip) == key.addr)
    }

    /// The addresses that the node answers itself are known whether or not a service has them.
    fn plan_here(&mut self, out: &mut Changes) {
        if self.node.dns.is_empty() {
            if let Some(set) = self.here.take() {
                set.vanish(&mut self.numbers, out);
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
        set.become_(wanted, &mut self.numbers, out);
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
                return Programmed::adopt(id, key, owner, &w.fronts, existing, &mut self.numbers, out);
            }
        }
        let id = SetId(self.next);
        // Four thousand million sets later an id could come back; by then its first owner is long gone.
        self.next = self.next.checked_add(1).unwrap_or(1);
        let number = self.numbers.take();
        Programmed::new(id, key, owner, number, out)
    }
}

/// A plan of these sets begins: what they hold.
fn begin_again(sets: &mut [Programmed]) -> Vec<FrontendKey> {
    sets.iter_mut().for_each(|s| s.kept = false);
    sets.iter().flat_map(|s| s.fronts.iter().map(|f| f.key)).collect()
}

/// It ends: sets that nobody wants any more go.
fn drop_unwanted(sets: &mut Vec<Programmed>, numbers: &mut Numbers, out: &mut Changes) {
    let mut i = 0;
    while i < sets.len() {
        if sets[i].kept {
            i += 1;
        } else {
            sets.swap_remove(i).vanish(numbers, out);
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
        [&name.namespace, "/", &name.name].concat()
    } else {
        [&name.namespace, "/", &name.name, ":", &port.name].concat()
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
