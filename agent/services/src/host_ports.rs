//! Ports of the node that lead to one pod (`ports[].hostPort`), as the `portmap` plugin of other clusters makes them.
use crate::endpoints::Usable;
use crate::node::Node;
use crate::programmed::{Front, Programmed, Wanted};
use crate::view::{ObjectName, PortView, parse_ip, proto};
use datapath_abi::{Address, Backend, Be16, FrontendFlags, FrontendKey, Proto};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What of a pod makes it reachable at its node's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortsView {
    /// The pod.
    pub pod: ObjectName,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Not empty.
    pub ports: Vec<HostPort>,
}

/// One of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `hostIP`; an unspecified address means all of its family, none means all.
    pub addr: Option<IpAddr>,
    pub port: u16,
    pub proto: Proto,
    /// The port in the pod.
    pub pod_port: u16,
}

impl HostPortsView {
    /// Reads a pod; `None` if it has no such ports, no addresses of its own yet, or is over. A pod in the node's own network has its
    /// ports there anyway.
    pub fn of(pod: &Pod) -> Option<Self> {
        let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
        let status = pod.status.as_ref()?;
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if over || spec.host_network == Some(true) {
            return None;
        }
        let ips = status.pod_ips.iter().flatten();
        let view = Self {
            pod: ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?),
            ips: ips.filter_map(|ip| parse_ip(&ip.ip)).collect(),
            ports: containers(spec)
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(HostPort::of)
                .collect(),
        };
        (!view.ports.is_empty() && !view.ips.is_empty()).then_some(view)
    }
}

/// Those that run beside one another: init containers only where they go on as sidecars.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

impl HostPort {
    /// `None` for a port of the pod alone, and for an address or protocol that there is not.
    fn of(port: &ContainerPort) -> Option<Self> {
        let number = |n: i32| u16::try_from(n).ok().filter(|n| *n != 0);
        let addr = match port.host_ip.as_deref() {
            None | Some("") => None,
            Some(text) => Some(parse_ip(text)?),
        };
        Some(Self {
            addr,
            port: number(port.host_port?)?,
            proto: proto(port.protocol.as_deref())?,
            pod_port: number(port.container_port)?,
        })
    }

    /// Where it is served: at the node's addresses of the family and its loopback address, or at the one that was asked for. The loopback
    /// address is another one in each pod: there it counts for the node's own processes only.
    fn addresses(&self, v4: bool, node: &Node) -> Vec<IpAddr> {
        let loopback = match v4 {
            true => IpAddr::from(Ipv4Addr::LOCALHOST),
            false => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        match self.addr {
            Some(ip) if ip.is_ipv4() != v4 => Vec::new(),
            Some(ip) if !ip.is_unspecified() => vec![ip],
            _ => {
                let own = node.addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4);
                own.filter(|ip| !is_of_link(ip)).chain([loopback]).collect()
            }
        }
    }

    /// The name of its set: ports of one number at several addresses are told apart.
    fn name(&self) -> String {
        match self.addr {
            None => self.port.to_string(),
            Some(IpAddr::V4(ip)) => format!("{ip}:{}", self.port),
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
        }
    }
}

/// An address that means another one on each device.
fn is_of_link(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// A pod and what stands of it in the maps.
pub(crate) struct PodEntry {
    /// The number by which holders of frontends are told apart.
    pub number: u32,
    /// None once it is gone.
    pub view: Option<HostPortsView>,
    pub sets: Vec<Programmed>,
}

/// A pod's name among those of services, which have no slash.
pub(crate) fn key(pod: &ObjectName) -> ObjectName {
    ObjectName::new(&pod.namespace, &format!("pod/{}", pod.name))
}

/// The sets of a pod, each with what is needed to find it again.
pub(crate) fn wanted(view: &HostPortsView, node: &Node) -> Vec<(PortView, bool, Vec<Front>, Usable)> {
    let mut found = Vec::new();
    for port in &view.ports {
        for v4 in [true, false] {
            let Some(ip) = view.ips.iter().find(|ip| ip.is_ipv4() == v4) else {
                continue;
            };
            let fronts: Vec<_> = port
                .addresses(v4, node)
                .into_iter()
                .map(|ip| front(ip, port))
                .collect();
            if !fronts.is_empty() {
                let name = port.name().into();
                let view = PortView {
                    name,
                    proto: port.proto,
                    port: port.port,
                    node_port: 0,
                };
                found.push((view, v4, fronts, only(*ip, port.pod_port)));
            }
        }
    }
    found
}

fn front(ip: IpAddr, port: &HostPort) -> Front {
    let flags = FrontendFlags::EXTERNAL.with_if(ip.is_loopback(), FrontendFlags::NODE_ONLY);
    Front {
        key: FrontendKey::new(ip.into(), Be16::new(port.port), port.proto),
        flags: flags.with(FrontendFlags::HOST_PORT),
    }
}

/// The pod as the only endpoint.
fn only(ip: IpAddr, port: u16) -> Usable {
    let backend = Backend {
        addr: Address::from(ip),
        port: Be16::new(port),
        flags: Backend::LOCAL,
        ..Backend::default()
    };
    Usable {
        slots: vec![backend],
        count: 1,
        local_first: 0,
        local: 1,
        elsewhere: false,
        serving: vec![(backend.addr, backend.port)],
    }
}

impl<'a> Wanted<'a> {
    /// A set without affinity, tables and ranges.
    pub(crate) fn plain(port: &'a PortView, v4: bool, fronts: Vec<Front>, usable: Usable) -> Self {
        Self {
            port,
            v4,
            fronts,
            usable,
            affinity: 0,
            maglev: false,
            ranges: Vec::new(),
        }
    }
}
