//! The watches that the services task lives on.

use crate::services::ServicesError;
use agent_services::ObjectName;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use std::collections::HashSet;
use std::pin::Pin;

type Watch<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

/// The three watches.
pub(crate) struct Sources {
    services: Watch<Service>,
    slices: Watch<EndpointSlice>,
    ranges: Watch<ServiceCIDR>,
}

/// One event of one of them.
pub(crate) enum Seen {
    Service(Box<Event<Service>>),
    Slice(Event<EndpointSlice>),
    Range(Event<ServiceCIDR>),
    /// A watch that is being repeated.
    Trouble,
}

impl Sources {
    pub(crate) fn open(client: &Client) -> Self {
        Self {
            services: open(client),
            slices: open(client),
            ranges: open(client),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Seen, ServicesError> {
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
pub(crate) struct Listed {
    pub(crate) complete: bool,
    names: Option<HashSet<ObjectName>>,
}

impl Listed {
    /// A list begins. Without anything known it cannot lack anything, and no names are gathered.
    pub(crate) fn begin(&mut self, knows_some: bool) {
        self.names = knows_some.then(HashSet::new);
    }

    pub(crate) fn add(&mut self, name: &Option<ObjectName>) {
        if let (Some(names), Some(name)) = (&mut self.names, name) {
            names.insert(name.clone());
        }
    }

    /// Ends the list and returns which of the known objects it lacks.
    pub(crate) fn end(&mut self, known: impl Iterator<Item = ObjectName>) -> Vec<ObjectName> {
        self.complete = true;
        match self.names.take() {
            Some(names) => known.filter(|n| !names.contains(n)).collect(),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_what_it_lacks() {
        let (a, b) = (ObjectName::new("n", "a"), ObjectName::new("n", "b"));
        let mut listed = Listed::default();
        listed.begin(true);
        listed.add(&Some(a.clone()));
        assert_eq!(listed.end([a.clone(), b.clone()].into_iter()), vec![b]);
        assert!(listed.complete);
    }

    #[test]
    fn a_first_list_lacks_nothing() {
        let a = ObjectName::new("n", "a");
        let mut listed = Listed::default();
        listed.begin(false);
        listed.add(&Some(a.clone()));
        assert_eq!(listed.end([a].into_iter()), []);
        assert!(listed.complete);
    }
}
