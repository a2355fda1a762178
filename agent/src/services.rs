//! Services and EndpointSlices, from the API to the maps.
//!
//! One task owns the planner. It takes whatever the watches have ready, plans once, writes once: the more changes come at a
//! time, the fewer writes each of them costs. Nothing is written before both lists have arrived in full and the node's own
//! state is known, so an agent that starts never takes away what it has not yet heard of.
use crate::edge::api::Remembered;
use crate::edge::elect::Addresses;
use crate::edge::facts::NodeFacts;
use crate::edge::health::{self, Family, HealthPort, HealthPorts, LocalEndpoints};
use crate::edge::metrics::ServiceMetrics;
use crate::edge::ports::Health;
use crate::edge::sources::{Listed, Seen, Sources};
use crate::host_ports::HostPorts;
use agent_datapath::{Datapath, DatapathError};
use agent_services::{Node, ObjectName, Planner, ServiceView, SliceView, Unused};
use datapath_abi::{Settings, SettingsFlags};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Client;
use kube::runtime::watcher::Event;
use machinery_lifecycle::{Condition, Shutdown};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long to wait before writing again after the maps refused: the reason (no memory, a full map) rarely goes by itself.
const RETRY: Duration = Duration::from_secs(2);
/// Events taken before a plan is made; a flood of changes must not keep the first of them from the maps.
const AT_ONCE: usize = 4096;

/// The annotation by which the endpoint slice controller tells when what it wrote had changed.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The class of services whose addresses our own controller hands out.
const BALANCER_CLASS: &str = "skep.io/pool";

/// What the task needs besides the API and the data path.
#[derive(Clone)]
pub struct ServicesConfig {
    /// The node's name.
    pub node_name: String,
    /// What is known of the node.
    pub facts: watch::Receiver<Option<NodeFacts>>,
    /// Addresses of services that the node answers itself: the cluster's DNS.
    pub dns: Vec<IpAddr>,
    /// The pods that have ports of the node.
    pub host_ports: watch::Receiver<HostPorts>,
    /// Is told how far the writing has come.
    pub health: Health,
    /// Are told what is written, and how long it takes.
    pub metrics: ServiceMetrics,
    /// Is told which LoadBalancer addresses there are, and where their endpoints are.
    pub addresses: watch::Sender<Addresses>,
    /// Is told where the API's endpoints are.
    pub remembered: Option<Arc<Remembered>>,
    /// Whether another proxy has connections on this node.
    pub foreign: watch::Receiver<bool>,
}

/// Why the services of this node cannot be kept up to date any more.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The maps cannot be read.
    #[error("what stands in the service maps cannot be read")]
    Read(#[source] DatapathError),
    /// A watch ended, which it never should.
    #[error("a watch ended for good")]
    WatchEnded,
}

/// Keeps the service maps as the API wants them, until shutdown. `synced` holds once everything was written once.
///
/// # Errors
/// [`ServicesError`].
pub async fn run(
    client: Client,
    datapath: Arc<Datapath>,
    config: ServicesConfig,
    synced: Condition,
    shutdown: Shutdown,
) -> Result<(), ServicesError> {
    let node = Node {
        name: config.node_name.as_str().into(),
        ..Node::default()
    };
    let existing = datapath.existing().map_err(ServicesError::Read)?;
    let mut facts = config.facts.clone();
    facts.mark_changed();
    let mut host_ports = config.host_ports.clone();
    host_ports.mark_changed();
    let mut foreign = config.foreign.clone();
    let mut task = Task {
        planner: Planner::new(node, existing),
        services: Listed::default(),
        slices: Listed::default(),
        ranges: BTreeMap::new(),
        settings: None,
        netns: agent_datapath::netns_cookie(),
        knows_node: false,
        knows_pods: false,
        first: true,
        moments: Vec::new(),
        ports: HealthPorts::new(),
        balancers: BTreeMap::new(),
        local: LocalEndpoints::default(),
        api: HashMap::new(),
        config,
        datapath,
        synced,
        retry: None,
    };
    let mut sources = Sources::open(&client);
    while !shutdown.is_requested() {
        tokio::select! {
            () = shutdown.requested() => break,
            seen = sources.next() => task.take(seen?),
            Ok(()) = facts.changed() => {
                let now = facts.borrow_and_update().clone();
                task.node(now);
            }
            Ok(()) = host_ports.changed() => task.pods(&host_ports.borrow_and_update()),
            // The programs are told.
            Ok(()) = foreign.changed() => {}
            () = wait(task.retry) => task.replan()?,
        }
        for _ in 0..AT_ONCE {
            match sources.next().now_or_never() {
                Some(seen) => task.take(seen?),
                None => break,
            }
        }
        task.write();
    }
    Ok(())
}

/// Until `at`; without one, for ever.
async fn wait(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The owner of the planner.
struct Task {
    planner: Planner,
    services: Listed,
    slices: Listed,
    ranges: BTreeMap<String, Vec<String>>,
    /// What the programs were told of the node and the ranges.
    settings: Option<Settings>,
    /// The cookie of the node's own network namespace.
    netns: u64,
    /// Whether the node's state has arrived once.
    knows_node: bool,
    /// Whether the node's pods are known.
    knows_pods: bool,
    /// Whether the next plan compares everything with what stands in the maps.
    first: bool,
    /// When what is not written yet had changed.
    moments: Vec<Timestamp>,
    ports: HealthPorts,
    balancers: BTreeMap<ObjectName, Balancer>,
    local: LocalEndpoints,
    /// The endpoints of the API itself, by slice.
    api: HashMap<ObjectName, Vec<SocketAddr>>,
    config: ServicesConfig,
    datapath: Arc<Datapath>,
    synced: Condition,
    /// When to write again, after a failure.
    retry: Option<Instant>,
}

impl Task {
    fn take(&mut self, seen: Seen) {
        if !matches!(seen, Seen::Trouble) {
            self.queued();
        }
        match seen {
            Seen::Service(e) => self.service(*e),
            Seen::Slice(e) => self.slice(e),
            Seen::Range(e) => self.range(e),
            Seen::Trouble => {}
        }
    }

    /// Something is to be written.
    fn queued(&self) {
        let (mut proxy, now) = (self.config.health.proxy(), Timestamp::now());
        Family::BOTH.iter().for_each(|f| proxy.queued(*f, now));
        self.config.metrics.queued(now);
    }

    /// Everything is written.
    fn written(&mut self, entries: usize, took: Duration) {
        let now = Timestamp::now();
        {
            let mut proxy = self.config.health.proxy();
            Family::BOTH.iter().for_each(|f| proxy.written(*f, now));
        }
        let full = std::mem::take(&mut self.first);
        if full {
            // Lists, what stood in the maps, and a plan of everything: many times what stays.
            agent_datapath::release_freed_memory();
            tracing::info!(entries, ?took, "all services of this node are written");
        }
        let moments = std::mem::take(&mut self.moments);
        self.config.metrics.written(entries, took, full, &moments, now);
        self.config
            .health
            .set_ports(health::counted(&self.ports, &self.local));
        let addresses = self.addresses();
        self.config.addresses.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
    }

    /// The LoadBalancer addresses, and under external policy Local the nodes with a ready endpoint.
    fn addresses(&self) -> Addresses {
        let mut all = Addresses::new();
        for (name, balancer) in &self.balancers {
            let nodes = balancer.local.then(|| ready_nodes(&self.planner, name));
            all.extend(balancer.ips.iter().map(|ip| (*ip, nodes.clone())));
        }
        all
    }

    /// The node's state is known, or changed.
    fn node(&mut self, facts: Option<NodeFacts>) {
        let Some(facts) = facts else { return };
        self.config.health.proxy().set_eligible(facts.is_eligible());
        self.knows_node = true;
        self.planner.set_node(Node {
            name: self.config.node_name.as_str().into(),
            zone: facts.zone,
            addresses: facts.addresses,
            node_port_addresses: facts.node_ports,
            pod_ranges: facts.pod_ranges.iter().map(|r| (r.base(), r.length())).collect(),
            dns: self.config.dns.clone(),
        });
    }

    /// The ports that pods have of the node.
    fn pods(&mut self, known: &HostPorts) {
        if let Some(all) = known {
            self.knows_pods = true;
            self.planner.host_ports(all);
        }
    }

    fn service(&mut self, event: Event<Service>) {
        self.config.metrics.service_changed();
        match event {
            Event::Init => {
                let knows_some = self.planner.known_services().next().is_some();
                self.services.begin(knows_some);
            }
            Event::InitApply(s) | Event::Apply(s) => {
                let view = ServiceView::of(&s);
                self.services.add(&view.as_ref().map(|v| v.name.clone()));
                if let Some(view) = view {
                    self.health_port(&view.name, HealthPort::of(&s));
                    match Balancer::of(&s) {
                        Some(balancer) => drop(self.balancers.insert(view.name.clone(), balancer)),
                        None => drop(self.balancers.remove(&view.name)),
                    }
                    self.planner.service(view);
                }
            }
            Event::Delete(s) => {
                if let Some(name) = name(&s.metadata) {
                    self.service_gone(&name);
                }
            }
            Event::InitDone => {
                for gone in self.services.end(self.planner.known_services()) {
                    self.service_gone(&gone);
                }
            }
        }
    }

    fn service_gone(&mut self, name: &ObjectName) {
        self.ports.remove(name);
        self.balancers.remove(name);
        self.planner.service_gone(name);
    }

    fn health_port(&mut self, name: &ObjectName, port: Option<HealthPort>) {
        match port {
            Some(port) => drop(self.ports.insert(name.clone(), port)),
            None => drop(self.ports.remove(name)),
        }
    }

    fn slice(&mut self, event: Event<EndpointSlice>) {
        self.config.metrics.slice_changed();
        if let Event::Apply(s) = &event {
            // What a list tells changed long ago.
            self.moments.extend(changed_at(s));
        }
        match event {
            Event::Init => {
                let knows_some = self.planner.known_slices().next().is_some();
                self.slices.begin(knows_some);
            }
            Event::InitApply(s) | Event::Apply(s) => {
                let own = name(&s.metadata);
                self.slices.add(&own);
                match (SliceView::of(&s), own) {
                    (Some(view), own) => self.slice_there(view, own),
                    // It may have lost the label that made it count.
                    (None, Some(own)) => self.slice_gone(&own),
                    (None, None) => {}
                }
            }
            Event::Delete(s) => {
                if let Some(own) = name(&s.metadata) {
                    self.slice_gone(&own);
                }
            }
            Event::InitDone => {
                for gone in self.slices.end(self.planner.known_slices()) {
                    self.slice_gone(&gone);
                }
            }
        }
    }

    fn slice_there(&mut self, view: SliceView, own: Option<ObjectName>) {
        self.local.slice(&view, &self.config.node_name);
        if let Some(own) = own.filter(|_| is_api(&view)) {
            self.api.insert(own, endpoints(&view));
            self.learn();
        }
        self.planner.slice(view);
    }

    fn slice_gone(&mut self, own: &ObjectName) {
        self.local.slice_gone(own);
        if self.api.remove(own).is_some() {
            self.learn();
        }
        self.planner.slice_gone(own);
    }

    /// Keeps in mind where the API is, for the next start of this machine.
    fn learn(&self) {
        if let Some(remembered) = &self.config.remembered {
            remembered.learn(self.api.values().flatten().copied().collect());
        }
    }

    fn range(&mut self, event: Event<ServiceCIDR>) {
        match event {
            Event::Init => self.ranges.clear(),
            Event::InitApply(r) | Event::Apply(r) => {
                let cidrs = r.spec.and_then(|s| s.cidrs).unwrap_or_default();
                self.ranges.insert(r.metadata.name.unwrap_or_default(), cidrs);
            }
            Event::Delete(r) => {
                self.ranges.remove(&r.metadata.name.unwrap_or_default());
            }
            Event::InitDone => {}
        }
    }

    /// Writes what changed; after a failure the plan is made anew, from what stands in the maps then.
    fn write(&mut self) {
        let listed = self.services.complete && self.slices.complete;
        if !listed || !self.knows_node || !self.knows_pods || self.retry.is_some() {
            return;
        }
        match self.try_write() {
            Ok((entries, took)) => self.written(entries, took),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "services are not up to date on this node"
                );
                self.config.metrics.failed();
                self.synced.set(false);
                self.retry = Some(Instant::now() + RETRY);
                return;
            }
        }
        self.synced.set(true);
    }

    /// How many entries were written, in what time.
    fn try_write(&mut self) -> Result<(usize, Duration), DatapathError> {
        let start = Instant::now();
        let changes = self.planner.plan();
        let entries = changes.entries();
        if !changes.is_empty() {
            self.datapath.apply(&changes)?;
            tracing::debug!(entries, took = ?start.elapsed(), "service maps written");
        }
        self.tell_programs()?;
        self.datapath.commit()?;
        if self.first {
            self.datapath.end_others(&self.planner.in_use())?;
        }
        Ok((entries, start.elapsed()))
    }

    /// What the programs know of the node, if it changed: after the fronts that an uplink is to look for are there.
    fn tell_programs(&mut self) -> Result<(), DatapathError> {
        let uplink = self.planner.has_external_fronts();
        let mut now = self
            .planner
            .node()
            .settings(&ranges(&self.ranges), uplink, self.netns);
        now.flags = now
            .flags
            .set(SettingsFlags::FOREIGN, *self.config.foreign.borrow());
        if self.settings != Some(now) {
            self.datapath.set_settings(&now)?;
            self.settings = Some(now);
        }
        Ok(())
    }

    fn replan(&mut self) -> Result<(), ServicesError> {
        self.retry = None;
        self.first = true;
        self.settings = None;
        let existing = self.datapath.existing().map_err(ServicesError::Read)?;
        self.planner.restart(existing);
        Ok(())
    }
}

/// When the pod or service changed that this slice was written for, as the endpoint slice controller noted it.
fn changed_at(slice: &EndpointSlice) -> Option<Timestamp> {
    let notes = slice.metadata.annotations.as_ref()?;
    notes.get(TRIGGER)?.parse().ok()
}

/// A service whose addresses a node of the cluster has to answer for.
struct Balancer {
    ips: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`.
    local: bool,
}

impl Balancer {
    /// `None` for other services, and for those of a class that others serve.
    fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let class = spec.load_balancer_class.as_deref();
        if spec.type_.as_deref() != Some("LoadBalancer") || class.is_some_and(|class| class != BALANCER_CLASS)
        {
            return None;
        }
        let status = service.status.as_ref()?.load_balancer.as_ref()?;
        let ours = status
            .ingress
            .iter()
            .flatten()
            .filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        let ips: Vec<IpAddr> = ours.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect();
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        (!ips.is_empty()).then_some(Self { ips, local })
    }
}

/// The nodes with a ready endpoint of a service.
fn ready_nodes(planner: &Planner, service: &ObjectName) -> BTreeSet<Arc<str>> {
    let ports = planner.endpoints(service).unwrap_or_default();
    let endpoints = ports.iter().flat_map(|port| &port.endpoints);
    let ready = endpoints.filter(|e| matches!(e.unused, None | Some(Unused::HintedElsewhere)));
    ready.filter_map(|e| e.node.clone()).collect()
}

/// Whether the slice is one of the service `kubernetes`, which is the API itself.
fn is_api(view: &SliceView) -> bool {
    &*view.service.namespace == "default" && &*view.service.name == "kubernetes"
}

fn endpoints(view: &SliceView) -> Vec<SocketAddr> {
    let ready = view.endpoints.iter().filter(|e| e.ready);
    ready
        .flat_map(|e| view.ports.iter().map(|p| SocketAddr::new(e.addr, p.port)))
        .collect()
}

fn name(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

/// `10.96.0.0/16` as address and prefix length; what does not parse is left out.
fn ranges(of: &BTreeMap<String, Vec<String>>) -> Vec<(IpAddr, u8)> {
    let all: BTreeSet<_> = of
        .values()
        .flatten()
        .filter_map(|cidr| parse_range(cidr))
        .collect();
    all.into_iter().collect()
}

fn parse_range(cidr: &str) -> Option<(IpAddr, u8)> {
    let (addr, bits) = cidr.split_once('/')?;
    Some((addr.parse().ok()?, bits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_all_objects_count_once() {
        let of = [
            (
                "a".to_owned(),
                vec!["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()],
            ),
            (
                "b".to_owned(),
                vec!["10.96.0.0/16".to_owned(), "nonsense".to_owned()],
            ),
        ];
        let parsed = ranges(&of.into_iter().collect());
        assert_eq!(
            parsed,
            vec![
                (IpAddr::from([10, 96, 0, 0]), 16),
                ("fd00:10:96::".parse().expect("an address"), 112)
            ]
        );
    }
}
