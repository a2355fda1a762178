use datapath_abi::Proto;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    /// From its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What of a Service decides about packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    pub name: ObjectName,
    /// Empty for headless services and those that another proxy serves.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<PortView>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortView {
    /// Empty for the only port of a Service.
    pub name: Arc<str>,
    pub proto: Proto,
    pub port: u16,
}

/// What of an EndpointSlice decides about packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceView {
    /// The slice's own name.
    pub name: Arc<str>,
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<EndpointView>,
}

/// One port of a slice: pairs with a Service's port by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub proto: Proto,
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    pub zone_hints: Vec<Arc<str>>,
    pub node_hints: Vec<Arc<str>>,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

impl ServiceView {
    /// Reads a Service; `None` if it has no name or namespace.
    pub fn of(service: &Service) -> Option<Self> {
        let meta = &service.metadata;
        let name = ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?);
        let labels = meta.labels.as_ref();
        let foreign = labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS));
        let spec = service.spec.as_ref();
        let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
        Some(Self {
            name,
            cluster_ips: if foreign || external {
                Vec::new()
            } else {
                cluster_ips(service)
            },
            ports: spec
                .and_then(|s| s.ports.as_ref())
                .into_iter()
                .flatten()
                .filter_map(port)
                .collect(),
            internal_local: spec.and_then(|s| s.internal_traffic_policy.as_deref()) == Some("Local"),
        })
    }
}

/// `clusterIPs`, or the single `clusterIP` of older objects. "None" parses as no address, so headless needs no case.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    if many.is_empty() {
        spec.cluster_ip.iter().filter_map(|s| parse_ip(s)).collect()
    } else {
        many.iter().filter_map(|s| parse_ip(s)).collect()
    }
}

/// Zeros before a number in old objects are decimal: 172.30.0.041 is .41.
fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let parts: Vec<u8> = text.split('.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let octets: [u8; 4] = parts.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn port(p: &ServicePort) -> Option<PortView> {
    Some(PortView {
        name: p.name.as_deref().unwrap_or_default().into(),
        proto: proto(p.protocol.as_deref())?,
        port: number(Some(p.port))?,
    })
}

fn proto(name: Option<&str>) -> Option<Proto> {
    match name {
        None | Some("TCP") => Some(Proto::TCP),
        Some("UDP") => Some(Proto::UDP),
        Some("SCTP") => Some(Proto::SCTP),
        Some(_) => None,
    }
}

/// A port number that can be used; zero and absent are ignored.
fn number(port: Option<i32>) -> Option<u16> {
    port.and_then(|n| u16::try_from(n).ok()).filter(|&n| n != 0)
}

impl SliceView {
    /// Reads an EndpointSlice; `None` if it belongs to no Service, or is of a headless one (kube-proxy ignores those).
    pub fn of(slice: &EndpointSlice) -> Option<Self> {
        let meta = &slice.metadata;
        let labels = meta.labels.as_ref()?;
        if labels.contains_key(HEADLESS) || labels.contains_key(PROXY_NAME) {
            return None;
        }
        let ports = slice.ports.iter().flatten();
        Some(Self {
            name: meta.name.as_deref()?.into(),
            service: ObjectName::new(meta.namespace.as_deref()?, labels.get(SERVICE_NAME)?),
            ports: ports
                .filter_map(|p| {
                    Some(SlicePort {
                        name: p.name.as_deref()?.into(),
                        proto: proto(p.protocol.as_deref())?,
                        port: number(p.port)?,
                    })
                })
                .collect(),
            endpoints: if matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
                slice.endpoints.iter().flatten().filter_map(endpoint).collect()
            } else {
                Vec::new()
            },
        })
    }
}

/// Only the first address of an endpoint counts; unset conditions mean ready, serving and not terminating.
fn endpoint(e: &Endpoint) -> Option<EndpointView> {
    let conditions = e.conditions.as_ref();
    let hints = e.hints.as_ref();
    Some(EndpointView {
        addr: parse_ip(e.addresses.first()?)?,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: e.node_name.as_deref().map(Arc::from),
        zone_hints: hints
            .and_then(|h| h.for_zones.as_ref())
            .into_iter()
            .flatten()
            .map(|z| z.name.as_str().into())
            .collect(),
        node_hints: hints
            .and_then(|h| h.for_nodes.as_ref())
            .into_iter()
            .flatten()
            .map(|n| n.name.as_str().into())
            .collect(),
    })
}
