use datapath_abi::Proto;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
    /// Empty for headless services and those that another proxy serves; then nothing else counts either.
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer that come to nodes unchanged (status, `ipMode` not `Proxy`).
    pub balancer_ips: Vec<IpAddr>,
    /// Who may use the load balancer's addresses, as address and prefix length; everybody if empty for a family.
    pub source_ranges: Vec<(IpAddr, u8)>,
    pub ports: Vec<PortView>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds for which a client keeps its endpoint (`sessionAffinity: ClientIP`); 0 for none.
    pub affinity: u32,
    /// Where load balancers ask for local endpoints (`healthCheckNodePort`), if they are to.
    pub health_port: Option<u16>,
}

impl ServiceView {
    /// A Service without addresses and ports.
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            internal_local: false,
            external_local: false,
            affinity: 0,
            health_port: None,
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortView {
    /// Empty for the only port of a Service.
    pub name: Arc<str>,
    pub proto: Proto,
    pub port: u16,
    /// 0 for none.
    pub node_port: u16,
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

/// How long a client keeps its endpoint where the Service does not say.
const AFFINITY: u32 = 10_800;

impl ServiceView {
    /// Reads a Service; `None` if it has no name or namespace.
    pub fn of(service: &Service) -> Option<Self> {
        let meta = &service.metadata;
        let name = ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?);
        let Some(spec) = service.spec.as_ref().filter(|s| is_ours(service, s)) else {
            return Some(Self::new(name));
        };
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        Some(Self {
            name,
            cluster_ips: cluster_ips(spec),
            external_ips: addresses(spec.external_ips.as_deref()),
            balancer_ips: balancer_ips(service),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|r| parse_range(r))
                .collect(),
            ports: spec.ports.iter().flatten().filter_map(port).collect(),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            affinity: affinity(spec),
            health_port: number(spec.health_check_node_port)
                .filter(|_| external_local && spec.type_.as_deref() == Some("LoadBalancer")),
        })
    }
}

/// Neither left to another proxy, nor a mere name.
fn is_ours(service: &Service, spec: &ServiceSpec) -> bool {
    let labels = service.metadata.labels.as_ref();
    let foreign = labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS));
    !foreign && spec.type_.as_deref() != Some("ExternalName")
}

fn affinity(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    seconds
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n != 0)
        .unwrap_or(AFFINITY)
}

/// Only status counts. Addresses that the balancer itself terminates (`ipMode: Proxy`) are none of ours.
fn balancer_ips(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|b| b.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| parse_ip(i.ip.as_deref()?))
        .collect()
}

fn addresses(texts: Option<&[String]>) -> Vec<IpAddr> {
    texts
        .unwrap_or_default()
        .iter()
        .filter_map(|t| parse_ip(t))
        .collect()
}

/// `clusterIPs`, or the single `clusterIP` of older objects. "None" parses as no address, so headless needs no case.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let many = addresses(spec.cluster_ips.as_deref());
    if spec.cluster_ips.as_ref().is_some_and(|l| !l.is_empty()) {
        many
    } else {
        spec.cluster_ip.iter().filter_map(|s| parse_ip(s)).collect()
    }
}

/// `192.0.2.0/24` as address and prefix length, bits behind the prefix cleared; spaces around it are ignored.
pub(crate) fn parse_range(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, bits) = text.trim().split_once('/')?;
    let bits: u8 = bits.parse().ok()?;
    match parse_ip(addr)? {
        IpAddr::V4(ip) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Some((IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask)), bits))
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Some((IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask)), bits))
        }
        _ => None,
    }
}

/// An address as objects may have it. Zeros before a number in old ones are decimal: 172.30.0.041 is .41.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
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
        node_port: number(p.node_port).unwrap_or(0),
    })
}

pub(crate) fn proto(name: Option<&str>) -> Option<Proto> {
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
