//! The node's own devices and addresses, as they are and as they change.
//!
//! The kernel announces changes of links, addresses and routes to multicast groups (`rtnetlink(7)`). An announcement only
//! wakes: what counts is read afresh, so that a lost one is made good by the next.
use crate::link::LinkError;
use futures::StreamExt;
use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use tokio::sync::watch;

/// `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
const MAIN_TABLE: u8 = 254;

/// One device of the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Its Ethernet address; devices of other kinds (tunnels over IP) have none.
    pub mac: Option<[u8; 6]>,
    /// Whether it is one end of a veth pair whose other end lies in another namespace: a pod's, or the way out of ours.
    pub leads_elsewhere: bool,
    /// Whether it is part of another device, such as a bridge or a bond.
    pub has_master: bool,
    /// Its addresses of global scope with their prefix lengths, in the kernel's order.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether a default route leads out of it.
    pub default_route: bool,
}

impl Interface {
    /// Whether packets from outside arrive here: not loopback, and with an address of its own or a default route.
    pub fn is_uplink(&self) -> bool {
        !self.loopback && (self.default_route || !self.addresses.is_empty())
    }

    /// Whether this looks like the node's end of a pod's network, whoever made it.
    pub fn is_pod_device(&self) -> bool {
        self.leads_elsewhere && !self.is_uplink()
    }
}

/// The present devices and those to come: the first list is there before this returns, and each change publishes the
/// next. The returned future keeps it going; dropped, it stops.
///
/// # Errors
/// [`LinkError`] when netlink does not answer.
pub async fn watch() -> Result<
    (
        watch::Receiver<Vec<Interface>>,
        Pin<Box<dyn Future<Output = ()> + Send>>,
    ),
    LinkError,
> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _, mut changes) =
        rtnetlink::new_multicast_connection(&groups).map_err(LinkError::Connect)?;
    // Questions go over a socket of their own: answers and announcements on one would mix.
    let (asking, handle, _) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
    tokio::spawn(asking);
    let (sender, receiver) = watch::channel(list(&handle).await?);
    let follow = async move {
        while changes.next().await.is_some() {
            // A flood of announcements is one change.
            while changes.try_recv().is_ok() {}
            match list(&handle).await {
                Ok(now) => {
                    sender.send_if_modified(|known| {
                        let changed = *known != now;
                        *known = now;
                        changed
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's devices cannot be listed; the next change tries again");
                }
            }
        }
    };
    let work = async move {
        tokio::select! {
            () = connection => {}
            () = follow => {}
        }
    };
    Ok((receiver, Box::pin(work)))
}

async fn list(handle: &Handle) -> Result<Vec<Interface>, LinkError> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(refused("list devices"))?;
    let addresses: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(refused("list addresses"))?;
    let defaults = default_routes(handle).await?;
    let mut by_index: BTreeMap<u32, Vec<(IpAddr, u8)>> = BTreeMap::new();
    for message in &addresses {
        if let Some(address) = global(message) {
            by_index.entry(message.header.index).or_default().push(address);
        }
    }
    let whole = |link: &LinkMessage| {
        let index = link.header.index;
        let addresses = by_index.get(&index).cloned().unwrap_or_default();
        interface(link, addresses, defaults.contains(&index))
    };
    Ok(links.iter().map(whole).collect())
}

fn refused(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |source| LinkError::Refused {
        what: what.to_owned(),
        source,
    }
}

/// The devices that default routes of the main table lead out of.
async fn default_routes(handle: &Handle) -> Result<BTreeSet<u32>, LinkError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(refused("list routes"))? {
            found.extend(out_of(&route));
        }
    }
    Ok(found)
}

fn out_of(route: &RouteMessage) -> Vec<u32> {
    let main = route.header.table == MAIN_TABLE;
    if !main || route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let devices = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    devices.collect()
}

fn interface(link: &LinkMessage, addresses: Vec<(IpAddr, u8)>, default_route: bool) -> Interface {
    let flags = link.header.flags;
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        mac: None,
        leads_elsewhere: false,
        has_master: false,
        addresses,
        default_route,
    };
    let (mut veth, mut namespace) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(_) => interface.has_master = true,
            LinkAttribute::LinkNetNsId(_) => namespace = true,
            LinkAttribute::LinkInfo(infos) => {
                veth = infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    interface.leads_elsewhere = veth && namespace;
    interface
}

/// An address that others may use to reach this node: of global scope, found to be unique.
fn global(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    use netlink_packet_route::address::AddressScope;
    let header = &message.header;
    let usable = !header
        .flags
        .intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed);
    if header.scope != AddressScope::Universe || !usable {
        return None;
    }
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device `Address` is the other end.
            AddressAttribute::Local(ip) => found = Some(*ip),
            AddressAttribute::Address(ip) => found = found.or(Some(*ip)),
            _ => {}
        }
    }
    Some((found?, header.prefix_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(leads_elsewhere: bool, addresses: &[&str], default_route: bool) -> Interface {
        Interface {
            index: 2,
            name: "eth0".to_owned(),
            up: true,
            loopback: false,
            mac: None,
            leads_elsewhere,
            has_master: false,
            addresses: addresses.iter().map(|a| (a.parse().unwrap(), 24)).collect(),
            default_route,
        }
    }

    #[test]
    fn a_veth_with_an_address_is_an_uplink_and_one_without_is_a_pods() {
        assert!(device(true, &["192.0.2.1"], false).is_uplink());
        assert!(!device(true, &["192.0.2.1"], false).is_pod_device());
        assert!(device(true, &[], false).is_pod_device());
        assert!(device(false, &[], true).is_uplink());
        assert!(!device(false, &[], false).is_uplink());
    }

    #[test]
    fn loopback_is_never_an_uplink() {
        let mut lo = device(false, &["192.0.2.1"], false);
        lo.loopback = true;
        assert!(!lo.is_uplink());
    }
}
