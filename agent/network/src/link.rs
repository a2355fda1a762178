//! The netlink calls the pod network is made of, `Documentation/networking` rtnetlink.
use crate::Prefix;
use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope, CacheInfo};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkMessage,
};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why a change of the network did not happen.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A namespace file could not be opened.
    #[error("network namespace {path} cannot be opened")]
    Namespace {
        /// Which one.
        path: PathBuf,
        /// The file's error.
        source: std::io::Error,
    },
    /// A thread could not change its namespace.
    #[error("cannot enter the network namespace: this needs CAP_SYS_ADMIN")]
    Enter(#[source] std::io::Error),
    /// No netlink socket.
    #[error("cannot talk to the kernel over netlink")]
    Connect(#[source] std::io::Error),
    /// The kernel refused a change.
    #[error("cannot {what}")]
    Refused {
        /// What was tried, in words.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A device is not there.
    #[error("there is no device {0}")]
    NoDevice(String),
    /// A setting under /proc/sys could not be written.
    #[error("a kernel setting could not be written")]
    Setting(#[source] std::io::Error),
}

impl LinkError {
    /// The kernel's error number, where it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            LinkError::Refused {
                source: rtnetlink::Error::NetlinkError(e),
                ..
            } => Some(-e.raw_code()),
            _ => None,
        }
    }

    fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }

    fn means_gone(&self) -> bool {
        use rustix::io::Errno;
        [Errno::NODEV, Errno::SRCH, Errno::NOENT, Errno::ADDRNOTAVAIL]
            .iter()
            .any(|e| self.is(*e))
    }
}

fn refused(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    |source| LinkError::Refused { what: what(), source }
}

/// What is asked of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's index of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its free-text alias; we keep the owning container's id there.
    pub alias: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

/// One end of a new veth pair.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// The device's name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// One route, as far as this crate uses them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// How.
    pub via: Via,
}

/// How a route's packets leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Over the next hop, whichever device leads to it.
    Gateway(IpAddr),
    /// Over the next hop, which is behind this device even though no address of the device says so.
    GatewayOn(IpAddr, u32),
    /// Straight out of this device.
    Device(u32),
    /// Not at all: the sender hears that it cannot be reached.
    Unreachable,
}

/// A netlink connection, bound to the network namespace of the thread that opened it.
#[derive(Clone)]
pub struct Netlink(rtnetlink::Handle);

/// Runs `work` with a netlink connection of the calling thread's namespace, to its end.
///
/// # Errors
/// What `work` returns, or [`LinkError::Connect`].
pub fn block_on<T, E, F, W>(work: F) -> Result<T, E>
where
    F: FnOnce(Netlink) -> W,
    W: Future<Output = Result<T, E>>,
    E: From<LinkError>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(LinkError::Connect)?;
    runtime.block_on(async { work(Netlink::connect()?).await })
}

impl Netlink {
    /// Opens a connection; its task runs on the current tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Connect`].
    pub fn connect() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The device of this name, if there is one.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn find(&self, name: &str) -> Result<Option<Device>, LinkError> {
        let request = self
            .0
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await;
        match request.map_err(refused(|| format!("look up device {name}"))) {
            Ok(found) => Ok(found.map(|message| device(&message))),
            Err(e) if e.means_gone() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The device of this name.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`] when it is not there.
    pub async fn get(&self, name: &str) -> Result<Device, LinkError> {
        self.find(name)
            .await?
            .ok_or_else(|| LinkError::NoDevice(name.to_owned()))
    }

    /// All devices of the namespace.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn devices(&self) -> Result<Vec<Device>, LinkError> {
        let all: Vec<LinkMessage> = self
            .0
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(refused(|| "list devices".to_owned()))?;
        Ok(all.iter().map(device).collect())
    }

    /// Makes a veth pair: `here` in this namespace with `alias`, `there` in the namespace behind the descriptor.
    ///
    /// # Errors
    /// [`LinkError::Refused`], as when a name is taken.
    pub async fn add_veth(
        &self,
        here: &VethEnd<'_>,
        there: &VethEnd<'_>,
        there_ns: i32,
        alias: &str,
        mtu: Option<u32>,
    ) -> Result<(), LinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there.name)
            .address(there.mac.to_vec())
            .setns_by_fd(there_ns);
        let mut message =
            LinkMessageBuilder::<LinkVeth>::new(here.name, there.name).address(here.mac.to_vec());
        if let Some(mtu) = mtu {
            peer = peer.mtu(mtu);
            message = message.mtu(mtu);
        }
        let message = message
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        debug_assert!(has_kind(&message, &InfoKind::Veth));
        let what = || format!("make the veth pair {} – {}", here.name, there.name);
        self.0
            .link()
            .add(message)
            .execute()
            .await
            .map_err(refused(what))?;
        self.set_alias(here.name, alias).await
    }

    async fn set_alias(&self, name: &str, alias: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_name(name).alias(alias).build();
        self.0
            .link()
            .set(message)
            .execute()
            .await
            .map_err(refused(|| format!("name the owner of {name}")))
    }

    /// Makes a bridge, without spanning tree and without waiting before it forwards.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<(), LinkError> {
        let message = LinkBridge::new(name)
            .address(mac.to_vec())
            .mcast_snooping(false)
            .build();
        self.0
            .link()
            .add(message)
            .execute()
            .await
            .map_err(refused(|| format!("make the bridge {name}")))
    }

    /// Puts `device` under `bridge`.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn join_bridge(&self, device: u32, bridge: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(device).controller(bridge).build();
        self.0
            .link()
            .set(message)
            .execute()
            .await
            .map_err(refused(|| "join a device to the bridge".to_owned()))
    }

    /// Brings the device up.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn up(&self, index: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0
            .link()
            .set(message)
            .execute()
            .await
            .map_err(refused(|| format!("bring up device {index}")))
    }

    /// Removes the device; with a veth pair the other end goes, too. Fine when it is gone.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        let Some(device) = self.find(name).await? else {
            return Ok(());
        };
        let result = self.0.link().del(device.index).execute().await;
        gone_is_fine(result.map_err(refused(|| format!("remove device {name}"))))
    }

    /// Gives the device an address, without duplicate detection.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn add_address(&self, index: u32, address: IpAddr, length: u8) -> Result<(), LinkError> {
        let mut request = self.0.address().add(index, address, length).replace();
        if address.is_ipv6() {
            request
                .message_mut()
                .header
                .flags
                .insert(AddressHeaderFlags::Nodad);
        }
        request.execute().await.map_err(refused(|| {
            format!("give a device the address {address}/{length}")
        }))
    }

    /// Gives the device an address at which the node answers, and from which it never asks by itself: of scope host (IPv4), or
    /// deprecated from the start (IPv6, RFC 6724, rule 3).
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn add_serving_address(
        &self,
        index: u32,
        address: IpAddr,
        length: u8,
    ) -> Result<(), LinkError> {
        let mut request = self.0.address().add(index, address, length).replace();
        let message = request.message_mut();
        if address.is_ipv6() {
            message.header.flags.insert(AddressHeaderFlags::Nodad);
            let mut life = CacheInfo::default();
            life.ifa_preferred = 0;
            life.ifa_valid = u32::MAX;
            message.attributes.push(AddressAttribute::CacheInfo(life));
        } else {
            message.header.scope = AddressScope::Host;
        }
        request.execute().await.map_err(refused(|| {
            format!("give a device the address {address}/{length}")
        }))
    }

    /// The addresses of a device with their lengths, link-local IPv6 ones left out.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>, LinkError> {
        let all: Vec<_> = self
            .0
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(refused(|| format!("list addresses of device {index}")))?;
        let address = |a: &AddressAttribute| match a {
            AddressAttribute::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local() => None,
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        };
        Ok(all
            .iter()
            .filter_map(|m| Some((m.attributes.iter().find_map(address)?, m.header.prefix_len)))
            .collect())
    }

    /// Writes a permanent neighbour entry, so that nobody has to ask for it.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn add_neighbour(&self, index: u32, address: IpAddr, mac: &[u8]) -> Result<(), LinkError> {
        self.0
            .neighbours()
            .add(index, address)
            .link_layer_address(mac)
            .replace()
            .execute()
            .await
            .map_err(refused(|| format!("write the neighbour entry of {address}")))
    }

    /// Adds a route of ours (`protocol`) or replaces the one to the same range.
    ///
    /// # Errors
    /// [`LinkError::Refused`], as when the next hop cannot be reached.
    pub async fn add_route(&self, route: &Route, protocol: u8) -> Result<(), LinkError> {
        let message = route_message(route, protocol)?;
        self.0
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(refused(|| format!("add the route to {}", route.to)))
    }

    /// Removes a route of ours. Fine when it is gone.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn delete_route(&self, route: &Route, protocol: u8) -> Result<(), LinkError> {
        let message = route_message(route, protocol)?;
        let result = self.0.route().del(message).execute().await;
        gone_is_fine(result.map_err(refused(|| format!("remove the route to {}", route.to))))
    }

    /// The routes that carry `protocol`, of both families.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub async fn routes(&self, protocol: u8) -> Result<Vec<Route>, LinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let all: Vec<RouteMessage> = self
                .0
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .map_err(refused(|| "list routes".to_owned()))?;
            let ours = |m: &&RouteMessage| m.header.protocol == RouteProtocol::from(protocol);
            found.extend(all.iter().filter(ours).filter_map(read_route));
        }
        Ok(found)
    }
}

fn gone_is_fine(result: Result<(), LinkError>) -> Result<(), LinkError> {
    match result {
        Err(e) if e.means_gone() => Ok(()),
        other => other,
    }
}

fn has_kind(message: &LinkMessage, kind: &InfoKind) -> bool {
    use netlink_packet_route::link::LinkInfo;
    message.attributes.iter().any(|a| match a {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|i| matches!(i, LinkInfo::Kind(k) if k == kind)),
        _ => false,
    })
}

fn device(message: &LinkMessage) -> Device {
    let LinkHeader { index, flags, .. } = message.header;
    let mut device = Device {
        index,
        name: String::new(),
        alias: None,
        up: flags.contains(LinkFlags::Up),
        mac: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => device.alias = Some(alias.clone()),
            LinkAttribute::Address(mac) => device.mac.clone_from(mac),
            _ => {}
        }
    }
    device
}

fn route_message(route: &Route, protocol: u8) -> Result<RouteMessage, LinkError> {
    let invalid = |_| LinkError::Refused {
        what: format!(
            "write a route to {} through a next hop of the other family",
            route.to
        ),
        source: rtnetlink::Error::RequestFailed,
    };
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .protocol(RouteProtocol::from(protocol))
        .destination_prefix(route.to.base(), route.to.length())
        .map_err(invalid)?;
    let builder = match route.via {
        Via::Gateway(gateway) => builder.gateway(gateway).map_err(invalid)?,
        Via::GatewayOn(gateway, device) => builder
            .gateway(gateway)
            .map_err(invalid)?
            .output_interface(device)
            .onlink(),
        Via::Device(device) => builder.output_interface(device).scope(RouteScope::Link),
        Via::Unreachable => builder.kind(RouteType::Unreachable),
    };
    Ok(builder.build())
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    use netlink_packet_route::route::{RouteAddress, RouteAttribute};
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    };
    let (mut to, mut gateway, mut device) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => to = ip(a),
            RouteAttribute::Gateway(a) => gateway = ip(a),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let to = Prefix::containing(to?, message.header.destination_prefix_length)?;
    let via = match (message.header.kind, gateway, device) {
        (RouteType::Unreachable, ..) => Via::Unreachable,
        (_, Some(gateway), _) => Via::Gateway(gateway),
        (_, None, Some(device)) => Via::Device(device),
        (_, None, None) => return None,
    };
    Some(Route { to, via })
}
