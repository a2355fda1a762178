//! What of a Service and of an EndpointSlice stands in the DNS.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointPort, EndpointSlice};
use std::net::IpAddr;
use std::sync::Arc;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service as names show it: `web.default`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey(Arc<str>);

impl ServiceKey {
    /// Of a Service's name and namespace.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{name}.{namespace}").to_ascii_lowercase().into())
    }

    /// `web.default`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace; neither part of the key can hold a dot.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, namespace)| namespace)
    }
}

impl std::borrow::Borrow<str> for ServiceKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The transport a port speaks; in names `_tcp`, `_udp`, `_sctp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl Proto {
    fn of(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// From the label of a name, such as `_tcp`.
    #[must_use]
    pub fn from_label(label: &str) -> Option<Self> {
        match label {
            "_tcp" => Some(Self::Tcp),
            "_udp" => Some(Self::Udp),
            "_sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A named port; others have no records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// In lower case.
    pub name: Box<str>,
    pub proto: Proto,
    pub number: u16,
}

/// What a Service's own name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Its ClusterIPs.
    Cluster(Box<[IpAddr]>),
    /// Its ready endpoints.
    Headless,
    /// Another name, in lower case and without its last dot.
    External(Box<str>),
}

/// What of a Service stands in the DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    pub key: ServiceKey,
    pub shape: Shape,
    /// The named ones.
    pub ports: Box<[Port]>,
}

/// One ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its name below the Service's: its `hostname`, or its address with dashes.
    pub host: Box<str>,
    pub ip: IpAddr,
}

/// What of an EndpointSlice stands in the DNS if its Service is headless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceView {
    /// The slice's own name.
    pub name: Box<str>,
    pub service: ServiceKey,
    /// The named ones.
    pub ports: Box<[Port]>,
    /// The ready ones, ordered by name.
    pub endpoints: Box<[Endpoint]>,
}

impl ServiceView {
    /// Reads a Service; `None` if it has no name or namespace, or nothing that a name could lead to.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let meta = &service.metadata;
        let key = ServiceKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?);
        let spec = service.spec.as_ref()?;
        let shape = if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.as_deref()?.trim_end_matches('.');
            Shape::External(name.to_ascii_lowercase().into())
        } else if spec.cluster_ip.as_deref() == Some("None") {
            Shape::Headless
        } else {
            Shape::Cluster(cluster_ips(service))
        };
        let ports = spec.ports.iter().flatten().filter_map(service_port).collect();
        Some(Self { key, shape, ports })
    }
}

/// `clusterIPs`, or the single `clusterIP` of older objects; none while they are being given out.
fn cluster_ips(service: &Service) -> Box<[IpAddr]> {
    let Some(spec) = &service.spec else {
        return Box::default();
    };
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let one = spec.cluster_ip.as_slice();
    let all = if many.is_empty() { one } else { many };
    all.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn service_port(port: &ServicePort) -> Option<Port> {
    named(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
}

fn slice_port(port: &EndpointPort) -> Option<Port> {
    named(port.name.as_deref(), port.protocol.as_deref(), port.port)
}

fn named(name: Option<&str>, proto: Option<&str>, number: Option<i32>) -> Option<Port> {
    let name = name.filter(|n| !n.is_empty())?.to_ascii_lowercase().into();
    let number = u16::try_from(number?).ok()?;
    let proto = Proto::of(proto)?;
    Some(Port { name, proto, number })
}

impl SliceView {
    /// Reads an EndpointSlice; `None` if it belongs to no Service.
    #[must_use]
    pub fn of(slice: &EndpointSlice) -> Option<Self> {
        let meta = &slice.metadata;
        let service = meta.labels.as_ref()?.get(SERVICE_NAME)?;
        let mut endpoints: Vec<Endpoint> = slice.endpoints.iter().flatten().flat_map(ready).collect();
        endpoints.sort_unstable();
        Some(Self {
            name: meta.name.as_deref()?.into(),
            service: ServiceKey::new(meta.namespace.as_deref()?, service),
            ports: slice.ports.iter().flatten().filter_map(slice_port).collect(),
            endpoints: endpoints.into(),
        })
    }
}

/// Whoever makes the slice has `publishNotReadyAddresses` in it already: such endpoints are marked ready.
fn ready(endpoint: &ApiEndpoint) -> impl Iterator<Item = Endpoint> {
    let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let addresses = endpoint.addresses.iter().filter(move |_| ready);
    // Addresses of the type FQDN do not parse: deprecated, and no record type fits them.
    addresses.filter_map(|a| a.parse().ok()).map(|ip: IpAddr| {
        let host = endpoint.hostname.as_deref().filter(|h| !h.is_empty());
        let host = host.map_or_else(|| dashed(ip), |h| h.to_ascii_lowercase().into());
        Endpoint { host, ip }
    })
}

/// The identifier of an endpoint without a hostname: `10-1-2-3`, `fd00--5`.
fn dashed(ip: IpAddr) -> Box<str> {
    ip.to_string().replace(['.', ':'], "-").into()
}
