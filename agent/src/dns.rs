//! The cluster's DNS on this node: what it knows comes from the watches, its addresses are put on the node's loopback
//! device, and its sockets may outlive the agent.

use agent_dns::names::{Routes, ServiceKey, ServiceView, SliceView, Zone, ZoneConfig};
pub use agent_dns::sockets;
use agent_dns::sockets::Sockets;
use agent_dns::{ForwardConfig, Server};
use agent_network::link::{LinkError, Netlink};
use agent_pods::dns::Resolver;
use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use machinery_client::{Cache, Change};
use machinery_lifecycle::TaskSet;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// The port of the DNS.
pub const PORT: u16 = 53;
/// How long questions wait in the sockets for the zone to be whole. Later ones are told to ask again, so that names of
/// others are served even without the API.
const FIRST_LIST: Duration = Duration::from_secs(3);
/// Where a node's own servers are named; the second where the first only leads to a local service.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The operator's decisions about names that are not the cluster's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSettings {
    /// Whom to ask; those of the node's `resolv.conf` when empty.
    pub upstream: Vec<SocketAddr>,
    /// Whom to ask about names in some domains.
    pub stub_domains: BTreeMap<String, Vec<SocketAddr>>,
}

/// What the DNS needs of the agent.
pub struct Dns {
    /// The addresses of the cluster's DNS service.
    pub addresses: Vec<IpAddr>,
    /// The cluster's domain.
    pub domain: String,
    /// About other names.
    pub settings: DnsSettings,
    /// Access to the API.
    pub client: Client,
    /// The cluster's services.
    pub services: Cache<Service>,
}

/// Starts the DNS.
///
/// # Errors
/// When none of its addresses can be served.
pub async fn start(dns: Dns, tasks: &mut TaskSet) -> Result<()> {
    let addresses = local(&dns.addresses)
        .await
        .context("the DNS has no address on this node")?;
    let sockets = sockets::take(&addresses, sockets::given(sockets::NAME))?;
    let server = server(&dns, &addresses);
    let wanted = Arc::new(Notify::new());
    let (target, wake) = (Arc::clone(&server), Arc::clone(&wanted));
    dns.services
        .on_change(move |change| service(&target, change, &wake));
    let (synced_sender, synced) = watch::channel(false);
    let target = Arc::clone(&server);
    tasks.spawn_endless("DNS endpoints", async move {
        dns.services.synced().await;
        follow_slices(dns.client, &target, &wanted, &synced_sender).await;
    });
    tasks.spawn("DNS", move |shutdown| async move {
        serve(server, sockets, synced, shutdown.requested()).await
    });
    Ok(())
}

/// Puts the addresses on the loopback device, so that they are this node's own; those of a family that the kernel does
/// not have are left out.
async fn local(addresses: &[IpAddr]) -> Result<Vec<SocketAddr>, LinkError> {
    let netlink = Netlink::connect()?;
    let device = netlink.get("lo").await?;
    netlink.up(device.index).await?;
    let (mut served, mut failure) = (Vec::new(), None);
    for &address in addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        match netlink.add_serving_address(device.index, address, length).await {
            Ok(()) => served.push(SocketAddr::new(address, PORT)),
            Err(error) => {
                tracing::warn!(%address, error = &error as &dyn std::error::Error, "not served by the DNS");
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) if served.is_empty() => Err(error),
        _ => Ok(served),
    }
}

fn server(dns: &Dns, addresses: &[SocketAddr]) -> Arc<Server> {
    let zone = Zone::new(ZoneConfig {
        origin: dns.domain.to_ascii_lowercase().into(),
        servers: addresses.iter().map(SocketAddr::ip).collect(),
    });
    let upstream = match &*dns.settings.upstream {
        [] => nodes_servers(&RESOLV_CONF.map(Path::new)),
        given => given.to_vec(),
    };
    if upstream.is_empty() {
        tracing::warn!("no DNS server is known for names outside the cluster");
    }
    let routes = Routes::new(upstream, dns.settings.stub_domains.clone(), addresses);
    let config = ForwardConfig {
        routes,
        ..ForwardConfig::default()
    };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Serial numbers may wrap (RFC 1982).
    let born = u32::try_from(since_1970.as_secs() & u64::from(u32::MAX)).unwrap_or_default();
    Server::new(zone, config, born)
}

/// The servers in the first of these files that names one beyond the machine, else those in the first.
fn nodes_servers(files: &[&Path]) -> Vec<SocketAddr> {
    let servers = |path: &&Path| -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let named = Resolver::parse(&text).servers;
        let addresses = named.iter().filter_map(|s| s.parse().ok());
        addresses.map(|ip: IpAddr| SocketAddr::new(ip, PORT)).collect()
    };
    let all: Vec<_> = files.iter().map(servers).collect();
    let beyond = all.iter().find(|list| list.iter().any(|s| !s.ip().is_loopback()));
    beyond.or(all.first()).cloned().unwrap_or_default()
}

fn service(server: &Server, change: &Change<Service>, wanted: &Notify) {
    let view = change.new.as_ref().and_then(|s| ServiceView::of(s));
    let relist = server.update(|zone| {
        match view {
            Some(view) => zone.service(view),
            None => zone.service_gone(&ServiceKey::new(&change.key.namespace, &change.key.name)),
        }
        zone.take_slices_wanted()
    });
    if relist {
        wanted.notify_one();
    }
}

/// Keeps the zone's endpoints up to date, for ever. Lists again when the zone wants slices that it passed over.
async fn follow_slices(client: Client, server: &Server, wanted: &Notify, synced: &watch::Sender<bool>) {
    loop {
        let api: Api<EndpointSlice> = Api::all(client.clone());
        let config = watcher::Config::default().streaming_lists();
        let mut events = watcher::watcher(api, config).default_backoff().boxed();
        let mut listed = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = wanted.notified() => break,
            };
            match event {
                Some(Ok(event)) => slices(server, event, &mut listed, synced),
                Some(Err(error)) => tracing::debug!(%error, "the watch of endpoints is being repeated"),
                None => break,
            }
        }
    }
}

/// Takes in one event. `listed` holds the names of a list under way.
fn slices(
    server: &Server,
    event: Event<EndpointSlice>,
    listed: &mut Option<HashSet<String>>,
    synced: &watch::Sender<bool>,
) {
    match event {
        Event::Init => *listed = Some(HashSet::new()),
        Event::InitApply(slice) | Event::Apply(slice) => {
            let (namespace, name) = own_name(&slice);
            if let Some(listed) = listed {
                listed.insert(format!("{namespace}/{name}"));
            }
            server.update(|zone| match SliceView::of(&slice) {
                Some(view) => zone.slice(view),
                None => zone.slice_gone(namespace, name),
            });
        }
        Event::Delete(slice) => {
            let (namespace, name) = own_name(&slice);
            server.update(|zone| zone.slice_gone(namespace, name));
        }
        Event::InitDone => {
            let listed = listed.take().unwrap_or_default();
            server.update(|zone| forget_others(zone, &listed));
            server.set_synced();
            synced.send_replace(true);
        }
    }
}

fn own_name(slice: &EndpointSlice) -> (&str, &str) {
    let meta = &slice.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn forget_others(zone: &mut Zone, listed: &HashSet<String>) {
    let known = zone.known_slices();
    let gone: Vec<String> = known
        .filter(|s| !listed.contains(*s))
        .map(str::to_owned)
        .collect();
    for slice in gone {
        if let Some((namespace, name)) = slice.split_once('/') {
            zone.slice_gone(namespace, name);
        }
    }
}

async fn serve(
    server: Arc<Server>,
    sockets: Sockets,
    mut synced: watch::Receiver<bool>,
    stop: impl Future<Output = ()>,
) -> Result<(), sockets::SocketsError> {
    let mut stop = std::pin::pin!(stop);
    tokio::select! {
        // What has not been read by then waits for the next agent.
        () = &mut stop => return Ok(()),
        whole = timeout(FIRST_LIST, synced.wait_for(|s| *s)) => if whole.is_err() {
            tracing::warn!("the DNS starts without the cluster's names: they have not been listed yet");
        },
    }
    agent_dns::serve(server, sockets, stop).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_that_only_leads_to_the_machine_itself_gives_way_to_one_that_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let stub = file("stub", "nameserver 127.0.0.53\n");
        let full = file("full", "nameserver 192.0.2.1\nnameserver nonsense\n");
        let beyond: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap()];
        assert_eq!(nodes_servers(&[&stub, &full]), beyond);
        assert_eq!(nodes_servers(&[&full, &stub]), beyond);
        let missing = dir.path().join("missing");
        assert_eq!(
            nodes_servers(&[&stub, &missing]),
            ["127.0.0.53:53".parse().unwrap()]
        );
        assert_eq!(nodes_servers(&[&missing, &missing]), []);
    }
}
