//! Services and EndpointSlices, from the API to the maps.
//!
//! One task owns the planner. It takes whatever the watches have ready, plans once, writes once: the more changes come at a
//! time, the fewer writes each of them costs. Nothing is written before both lists have arrived in full, so an agent that
//! starts never takes away what it has not yet heard of.
use agent_datapath::{Datapath, DatapathError};
use agent_services::{Node, ObjectName, Planner, ServiceView, SliceView};
use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use machinery_lifecycle::{Condition, Shutdown};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long to wait before writing again after the maps refused: the reason (no memory, a full map) rarely goes by itself.
const RETRY: Duration = Duration::from_secs(2);
/// Events taken before a plan is made; a flood of changes must not keep the first of them from the maps.
const AT_ONCE: usize = 4096;

/// What the task needs besides the API and the data path.
#[derive(Clone, Debug)]
pub struct ServicesConfig {
    pub node_name: String,
    /// Label `topology.kubernetes.io/zone` of the node.
    pub zone: Option<String>,
}

/// Why the services of this node cannot be kept up to date any more.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error("what stands in the service maps cannot be read")]
    Read(#[source] DatapathError),
    #[error("a watch ended for good")]
    WatchEnded,
}

/// Keeps the service maps as the API wants them, until shutdown. `synced` holds once everything was written once.
pub async fn run(
    client: Client,
    datapath: Arc<Datapath>,
    config: ServicesConfig,
    synced: Condition,
    shutdown: Shutdown,
) -> Result<(), ServicesError> {
    let node = Node {
        name: config.node_name.into(),
        zone: config.zone.map(Into::into),
    };
    let existing = datapath.existing().map_err(ServicesError::Read)?;
    let mut task = Task {
        planner: Planner::new(node, existing),
        services: Listed::default(),
        slices: Listed::default(),
        ranges: BTreeMap::new(),
        new_ranges: false,
        datapath,
        synced,
        retry: None,
    };
    let mut sources = Sources::open(&client);
    while !shutdown.is_requested() {
        tokio::select! {
            () = shutdown.requested() => break,
            seen = sources.next() => task.take(seen?),
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

type Watch<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

/// The three watches.
struct Sources {
    services: Watch<Service>,
    slices: Watch<EndpointSlice>,
    ranges: Watch<ServiceCIDR>,
}

/// One event of one of them.
enum Seen {
    Service(Box<Event<Service>>),
    Slice(Event<EndpointSlice>),
    Range(Event<ServiceCIDR>),
    /// A watch that is being repeated.
    Trouble,
}

impl Sources {
    fn open(client: &Client) -> Self {
        Self {
            services: open(client),
            slices: open(client),
            ranges: open(client),
        }
    }

    async fn next(&mut self) -> Result<Seen, ServicesError> {
        tokio::select! {
            e = self.services.next() => seen(e, |event| Seen::Service(Box::new(event))),
            e = self.slices.next() => seen(e, Seen::Slice),
            e = self.ranges.next() => seen(e, Seen::Range),
        }
    }
}

fn open<K>(client: &Client) -> Watch<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    Box::pin(watcher(api, watcher::Config::default()).default_backoff())
}

fn seen<K>(
    event: Option<Result<Event<K>, watcher::Error>>,
    of: impl FnOnce(Event<K>) -> Seen,
) -> Result<Seen, ServicesError> {
    match event {
        None => Err(ServicesError::WatchEnded),
        Some(Ok(event)) => Ok(of(event)),
        Some(Err(error)) => {
            tracing::debug!(%error, "a watch of services is being repeated");
            Ok(Seen::Trouble)
        }
    }
}

/// How far a list has come: names of a list under way are gathered, so that what it lacks is known at its end.
#[derive(Default)]
struct Listed {
    complete: bool,
    names: Option<HashSet<ObjectName>>,
}

impl Listed {
    fn begin(&mut self) {
        self.names = Some(HashSet::new());
    }

    fn add(&mut self, name: &Option<ObjectName>) {
        if let (Some(names), Some(name)) = (&mut self.names, name) {
            names.insert(name.clone());
        }
    }

    /// Ends the list and returns which of the known objects it lacks.
    fn end<'a>(&mut self, known: impl Iterator<Item = &'a ObjectName>) -> Vec<ObjectName> {
        self.complete = true;
        let names = self.names.take().unwrap_or_default();
        known.filter(|n| !names.contains(n)).cloned().collect()
    }
}

/// The owner of the planner.
struct Task {
    planner: Planner,
    services: Listed,
    slices: Listed,
    ranges: BTreeMap<String, Vec<String>>,
    new_ranges: bool,
    datapath: Arc<Datapath>,
    synced: Condition,
    /// When to write again, after a failure.
    retry: Option<Instant>,
}

impl Task {
    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Service(e) => self.service(*e),
            Seen::Slice(e) => self.slice(e),
            Seen::Range(e) => self.range(e),
            Seen::Trouble => {}
        }
    }

    fn service(&mut self, event: Event<Service>) {
        match event {
            Event::Init => self.services.begin(),
            Event::InitApply(s) | Event::Apply(s) => {
                let view = ServiceView::of(&s);
                self.services.add(&view.as_ref().map(|v| v.name.clone()));
                if let Some(view) = view {
                    self.planner.service(view);
                }
            }
            Event::Delete(s) => {
                if let Some(name) = name(&s.metadata) {
                    self.planner.service_gone(&name);
                }
            }
            Event::InitDone => {
                for gone in self.services.end(self.planner.known_services()) {
                    self.planner.service_gone(&gone);
                }
            }
        }
    }

    fn slice(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.slices.begin(),
            Event::InitApply(s) | Event::Apply(s) => {
                let own = name(&s.metadata);
                self.slices.add(&own);
                match (SliceView::of(&s), own) {
                    (Some(view), _) => self.planner.slice(view),
                    // It may have lost the label that made it count.
                    (None, Some(own)) => self.planner.slice_gone(&own),
                    (None, None) => {}
                }
            }
            Event::Delete(s) => {
                if let Some(own) = name(&s.metadata) {
                    self.planner.slice_gone(&own);
                }
            }
            Event::InitDone => {
                for gone in self.slices.end(self.planner.known_slices()) {
                    self.planner.slice_gone(&gone);
                }
            }
        }
    }

    fn range(&mut self, event: Event<ServiceCIDR>) {
        self.new_ranges = true;
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
        if !self.services.complete || !self.slices.complete || self.retry.is_some() {
            return;
        }
        if let Err(error) = self.try_write() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "services are not up to date on this node"
            );
            self.synced.set(false);
            self.retry = Some(Instant::now() + RETRY);
            return;
        }
        self.synced.set(true);
    }

    fn try_write(&mut self) -> Result<(), DatapathError> {
        let changes = self.planner.plan();
        if !changes.is_empty() {
            let entries = changes.entries();
            let start = Instant::now();
            self.datapath.apply(&changes)?;
            tracing::debug!(entries, took = ?start.elapsed(), "service maps written");
        }
        if std::mem::take(&mut self.new_ranges) && !self.ranges.is_empty() {
            self.datapath.set_service_ranges(&ranges(&self.ranges))?;
        }
        self.datapath.commit()
    }

    fn replan(&mut self) -> Result<(), ServicesError> {
        self.retry = None;
        let existing = self.datapath.existing().map_err(ServicesError::Read)?;
        self.planner.restart(existing);
        Ok(())
    }
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

    #[test]
    fn a_list_tells_what_it_lacks() {
        let (a, b) = (ObjectName::new("n", "a"), ObjectName::new("n", "b"));
        let mut listed = Listed::default();
        listed.begin();
        listed.add(&Some(a.clone()));
        assert_eq!(listed.end([&a, &b].into_iter()), vec![b]);
        assert!(listed.complete);
    }
}
