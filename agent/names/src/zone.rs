//! What is known, kept up to date one change at a time.

use crate::view::{Endpoint, Port, ServiceKey, ServiceView, Shape, SliceView};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// What the zone is told once.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// The cluster's domain, lower case, without its last dot.
    pub origin: Box<str>,
    /// Addresses of the cluster's DNS service: the zone's name server.
    pub servers: Vec<IpAddr>,
}

/// A Service with the slices that count for it: none unless it is headless.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) view: ServiceView,
    pub(crate) slices: Vec<SliceView>,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressOwner {
    pub(crate) service: ServiceKey,
    /// The endpoint's name; none for a ClusterIP.
    pub(crate) host: Option<Box<str>>,
}

/// The cluster's zone.
#[derive(Debug)]
pub struct Zone {
    pub(crate) config: ZoneConfig,
    pub(crate) services: HashMap<ServiceKey, Service>,
    /// How many services each namespace has.
    pub(crate) namespaces: HashMap<Box<str>, usize>,
    pub(crate) reverse: HashMap<IpAddr, Vec<AddressOwner>>,
    /// The Service of each slice that is held, by `namespace/slice`.
    homes: HashMap<Box<str>, ServiceKey>,
    /// Slices that came before their Service.
    early: HashMap<ServiceKey, Vec<SliceView>>,
    /// Which services' slices were not kept, since those services are not headless: most of a cluster's endpoints.
    passed_over: HashSet<ServiceKey>,
    /// Whether slices that were not kept are needed now.
    slices_wanted: bool,
    changes: u32,
}

impl Service {
    /// A headless service without a ready endpoint has no name (specification, 2.4.1).
    pub(crate) fn shows(&self) -> bool {
        self.view.shape != Shape::Headless || self.slices.iter().any(|s| !s.endpoints.is_empty())
    }

    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.slices.iter().flat_map(|s| &s.endpoints)
    }

    /// The ports that have records: a headless service's are where its endpoints are.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &Port> {
        let own = match self.view.shape {
            Shape::Cluster(_) => &*self.view.ports,
            Shape::Headless | Shape::External(_) => &[],
        };
        let filled = self.slices.iter().filter(|s| !s.endpoints.is_empty());
        own.iter().chain(filled.flat_map(|s| &s.ports))
    }

    pub(crate) fn hosts<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Endpoint> {
        self.slices.iter().flat_map(move |s| {
            let from = s.endpoints.partition_point(|e| *e.host < *name);
            s.endpoints[from..].iter().take_while(move |e| *e.host == *name)
        })
    }
}

impl Zone {
    /// A zone without services.
    #[must_use]
    pub fn new(config: ZoneConfig) -> Self {
        Self {
            config,
            services: HashMap::new(),
            namespaces: HashMap::new(),
            reverse: HashMap::new(),
            homes: HashMap::new(),
            early: HashMap::new(),
            passed_over: HashSet::new(),
            slices_wanted: false,
            changes: 0,
        }
    }

    /// How often it has changed: the lower part of its serial number.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// The zone's own name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.config.origin
    }

    /// The name of its name server.
    #[must_use]
    pub fn server_name(&self) -> String {
        self.absolute("ns.dns")
    }

    pub(crate) fn absolute(&self, relative: &str) -> String {
        format!("{relative}.{}", self.config.origin)
    }

    /// How many services it knows.
    #[must_use]
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// A Service is there, or has changed.
    pub fn service(&mut self, view: ServiceView) {
        if self
            .services
            .get(view.key.as_str())
            .is_some_and(|s| s.view == view)
        {
            return;
        }
        self.changes = self.changes.wrapping_add(1);
        let key = view.key.clone();
        let headless = view.shape == Shape::Headless;
        let before = self.remove(&key);
        let known = before.is_some_and(|b| b.view.shape == Shape::Headless);
        if headless && !known && self.passed_over.remove(&key) {
            self.slices_wanted = true;
        }
        if let Shape::Cluster(ips) = &view.shape {
            for &ip in ips {
                self.own(ip, &key, None);
            }
        }
        let namespace = key.namespace().into();
        *self.namespaces.entry(namespace).or_default() += 1;
        let slices = Vec::new();
        self.services.insert(key.clone(), Service { view, slices });
        for slice in self.early.remove(&key).unwrap_or_default() {
            self.slice(slice);
        }
    }

    /// A Service has been deleted.
    pub fn service_gone(&mut self, key: &ServiceKey) {
        if self.remove(key).is_some() {
            self.changes = self.changes.wrapping_add(1);
        }
    }

    /// Takes a Service out; slices of a headless one are kept for the next of that name.
    fn remove(&mut self, key: &ServiceKey) -> Option<Service> {
        let mut old = self.services.remove(key)?;
        if let Shape::Cluster(ips) = &old.view.shape {
            for &ip in ips {
                self.disown(ip, key, None);
            }
        }
        for slice in &old.slices {
            self.disown_all(slice);
        }
        if !old.slices.is_empty() {
            self.early.entry(key.clone()).or_default().append(&mut old.slices);
        }
        if let Some(count) = self.namespaces.get_mut(key.namespace()) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(key.namespace());
            }
        }
        Some(old)
    }

    /// An EndpointSlice is there, or has changed.
    pub fn slice(&mut self, view: SliceView) {
        let home = home(view.service.namespace(), &view.name);
        if self.homes.get(&home).is_some_and(|s| *s != view.service) {
            self.slice_gone(view.service.namespace(), &view.name);
        }
        let Some(service) = self.services.get(view.service.as_str()) else {
            self.homes.insert(home, view.service.clone());
            let early = self.early.entry(view.service.clone()).or_default();
            early.retain(|s| s.name != view.name);
            early.push(view);
            return;
        };
        if service.view.shape != Shape::Headless {
            self.homes.remove(&home);
            let shared = service.view.key.clone();
            self.passed_over.insert(shared);
            return;
        }
        let old = service.slices.iter().position(|s| s.name == view.name);
        if old.is_some_and(|n| service.slices[n] == view) {
            return;
        }
        self.changes = self.changes.wrapping_add(1);
        if let Some(n) = old {
            self.take_slice(&view.service, n);
        }
        for endpoint in &view.endpoints {
            self.own(endpoint.ip, &view.service, Some(&endpoint.host));
        }
        self.homes.insert(home, view.service.clone());
        if let Some(service) = self.services.get_mut(view.service.as_str()) {
            service.slices.push(view);
        }
    }

    /// An EndpointSlice has been deleted, or belongs to no Service any more.
    pub fn slice_gone(&mut self, namespace: &str, name: &str) {
        let Some(service) = self.homes.remove(&home(namespace, name)) else {
            return;
        };
        if let Some(early) = self.early.get_mut(&service) {
            early.retain(|s| *s.name != *name);
            if early.is_empty() {
                self.early.remove(&service);
            }
        }
        let Some(known) = self.services.get(&service) else {
            return;
        };
        if let Some(n) = known.slices.iter().position(|s| *s.name == *name) {
            self.changes = self.changes.wrapping_add(1);
            self.take_slice(&service, n);
        }
    }

    fn take_slice(&mut self, key: &ServiceKey, n: usize) {
        if let Some(service) = self.services.get_mut(key) {
            let slice = service.slices.swap_remove(n);
            self.disown_all(&slice);
        }
    }

    /// Whether slices that were passed over are needed after all, since their Service has become headless: list them
    /// again. Asking takes the wish back.
    pub fn take_slices_wanted(&mut self) -> bool {
        std::mem::take(&mut self.slices_wanted)
    }

    /// The slices that are held, as `namespace/slice`: what a new list does not have is gone.
    pub fn known_slices(&self) -> impl Iterator<Item = &str> {
        self.homes.keys().map(|home| &**home)
    }

    fn own(&mut self, ip: IpAddr, key: &ServiceKey, host: Option<&str>) {
        let service = key.clone();
        let host = host.map(Into::into);
        let owners = self.reverse.entry(ip).or_insert_with(|| Vec::with_capacity(1));
        owners.push(AddressOwner { service, host });
    }

    fn disown_all(&mut self, slice: &SliceView) {
        for endpoint in &slice.endpoints {
            self.disown(endpoint.ip, &slice.service, Some(&endpoint.host));
        }
    }

    /// Takes one ownership back; another slice may say the same once more.
    fn disown(&mut self, ip: IpAddr, key: &ServiceKey, host: Option<&str>) {
        let Some(owners) = self.reverse.get_mut(&ip) else {
            return;
        };
        let same = |o: &AddressOwner| o.service == *key && o.host.as_deref() == host;
        if let Some(n) = owners.iter().position(same) {
            owners.swap_remove(n);
        }
        if owners.is_empty() {
            self.reverse.remove(&ip);
        }
    }
}

fn home(namespace: &str, slice: &str) -> Box<str> {
    format!("{namespace}/{slice}").into()
}
