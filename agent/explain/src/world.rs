//! The Kubernetes objects that a question is about, and what its ends are among them.
use crate::question::{End, Port, Question};
use agent_services::parse_ip;
use datapath_abi::Proto;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::net::{IpAddr, SocketAddr};

/// Everything that was observed.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub ranges: Vec<ServiceCIDR>,
}

/// Why the ends of a question are not to be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    #[error("there is no {kind} {name}")]
    Missing { kind: &'static str, name: String },
    #[error("pod {0} has no address yet: kubectl describe pod tells what it waits for")]
    NoAddress(String),
    #[error("node {0} has no address in its status")]
    NodeAddress(String),
    #[error(
        "service {0} is headless: its name resolves to the endpoints themselves, and nothing is translated"
    )]
    Headless(String),
    #[error("service {0} is of type ExternalName: DNS answers with {1}, and nothing is translated")]
    ExternalName(String, String),
    #[error("service {0} has no address yet")]
    Unallocated(String),
    #[error("service {service} has no port {port}; it has {ports}")]
    NoPort {
        service: String,
        port: String,
        ports: String,
    },
    #[error("service {service} has several ports: add one of {ports} to the question")]
    WhichPort { service: String, ports: String },
    #[error("a port is needed: {0} is no service whose port could be taken")]
    PortNeeded(String),
    #[error("only a service's port has a name: {0:?} has to be a number here")]
    PortName(String),
    #[error("{from} has no {family} address, which {to} needs")]
    Family {
        from: String,
        to: String,
        family: &'static str,
    },
    #[error("the objects that were given cannot be read: {0}")]
    Unreadable(String),
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod with its own network.
    Pod { name: String, node: String },
    /// A process of a node's own network: the node itself or a pod with hostNetwork.
    Node(String),
    /// Neither.
    Outside,
}

/// A question with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: Source,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub port: u16,
    pub proto: Proto,
    /// The destination as it was asked for, in words.
    pub to: String,
}

impl Packet {
    /// `10.0.0.2 → 10.96.0.5:80/TCP`.
    pub(crate) fn text(&self) -> String {
        let to = match self.proto {
            Proto::ICMP | Proto::ICMPV6 => self.dst.to_string(),
            _ => SocketAddr::new(self.dst, self.port).to_string(),
        };
        format!("{} → {to}/{}", self.src, crate::explain::name(self.proto))
    }
}

impl World {
    /// Adds the objects of a manifest; kinds that decide nothing about packets are left out.
    ///
    /// # Errors
    /// An object of a kind that counts, which does not have its form.
    pub fn add(&mut self, object: serde_json::Value) -> Result<(), WorldError> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if let Some(items) = object["items"].as_array() {
            return items.iter().try_for_each(|item| {
                let mut item = item.clone();
                // The items of a typed list need not say what they are.
                if item["kind"].is_null()
                    && let Some(of) = kind.strip_suffix("List")
                {
                    item["kind"] = of.into();
                }
                self.add(item)
            });
        }
        match kind.as_str() {
            "Service" => push(&mut self.services, object),
            "EndpointSlice" => push(&mut self.slices, object),
            "Pod" => push(&mut self.pods, object),
            "Node" => push(&mut self.nodes, object),
            "ServiceCIDR" => push(&mut self.ranges, object),
            _ => Ok(()),
        }
    }

    /// Finds the ends of a question; names without a namespace are of `namespace`.
    ///
    /// # Errors
    /// What is missing, and what there is instead.
    pub fn resolve(&self, question: &Question, namespace: &str) -> Result<Packet, WorldError> {
        let (source, sources) = self.source(&question.from, namespace)?;
        let (targets, service) = self.target(&question.to, namespace, &sources)?;
        let to = question.to.to_string();
        let (port, proto) = match service {
            // An echo has no port.
            _ if question.proto == Some(Proto::ICMP) => (0, Proto::ICMP),
            Some(service) => service_port(service, question)?,
            None => (plain_port(question)?, question.proto.unwrap_or(Proto::TCP)),
        };
        let pair = targets
            .iter()
            .find_map(|t| Some((*t, *sources.iter().find(|s| s.is_ipv4() == t.is_ipv4())?)));
        let Some((dst, src)) = pair else {
            return Err(WorldError::Family {
                from: question.from.to_string(),
                to,
                family: if targets.iter().any(IpAddr::is_ipv4) {
                    "IPv4"
                } else {
                    "IPv6"
                },
            });
        };
        let proto = if proto == Proto::ICMP && dst.is_ipv6() {
            Proto::ICMPV6
        } else {
            proto
        };
        Ok(Packet {
            source,
            src,
            dst,
            port,
            proto,
            to,
        })
    }

    fn source(&self, end: &End, namespace: &str) -> Result<(Source, Vec<IpAddr>), WorldError> {
        match end {
            End::Pod { namespace: own, name } => {
                let pod = self.pod(own.as_deref().unwrap_or(namespace), name)?;
                Ok((of_pod(pod), pod_addresses(pod)?))
            }
            End::Node(name) => Ok((Source::Node(name.clone()), node_addresses(self.node(name)?)?)),
            End::Address(ip) => Ok((self.who_has(*ip), vec![*ip])),
            End::Service { name, .. } => Err(missing("pod, node or address", name)),
        }
    }

    /// The addresses of a destination in the order in which a client would try them, and the service they are of.
    fn target(
        &self,
        end: &End,
        namespace: &str,
        sources: &[IpAddr],
    ) -> Result<(Vec<IpAddr>, Option<&Service>), WorldError> {
        match end {
            End::Pod { namespace: own, name } => {
                let pod = self.pod(own.as_deref().unwrap_or(namespace), name)?;
                Ok((pod_addresses(pod)?, None))
            }
            End::Node(name) => Ok((node_addresses(self.node(name)?)?, None)),
            End::Address(ip) => Ok((vec![*ip], self.service_at(*ip))),
            End::Service { namespace: own, name } => {
                let namespace = own.as_deref().unwrap_or(namespace);
                let service = find(&self.services, namespace, name, |s| &s.metadata)
                    .ok_or_else(|| missing("service", &format!("{namespace}/{name}")))?;
                let mut ips = service_addresses(service)?;
                // The family that the client has comes first.
                ips.sort_by_key(|ip| !sources.iter().any(|s| s.is_ipv4() == ip.is_ipv4()));
                Ok((ips, Some(service)))
            }
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<&Pod, WorldError> {
        find(&self.pods, namespace, name, |p| &p.metadata)
            .ok_or_else(|| missing("pod", &format!("{namespace}/{name}")))
    }

    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node, WorldError> {
        self.nodes
            .iter()
            .find(|n| n.metadata.name.as_deref() == Some(name))
            .ok_or_else(|| missing("node", name))
    }

    /// Whose address it is: a pod's, a node's, or nobody's here.
    pub fn who_has(&self, ip: IpAddr) -> Source {
        let pod = self
            .pods
            .iter()
            .find(|p| !is_host_network(p) && pod_addresses(p).is_ok_and(|ips| ips.contains(&ip)));
        if let Some(pod) = pod {
            return of_pod(pod);
        }
        let node = self
            .nodes
            .iter()
            .find(|n| node_addresses(n).is_ok_and(|ips| ips.contains(&ip)));
        match node.and_then(|n| n.metadata.name.clone()) {
            Some(name) => Source::Node(name),
            None => Source::Outside,
        }
    }

    /// The pod that has this address, as `namespace/name`.
    pub fn pod_at(&self, ip: IpAddr) -> Option<String> {
        match self.who_has(ip) {
            Source::Pod { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The service that a packet is for on a node: by address, or by a node port of that node's addresses.
    pub(crate) fn service_of(&self, packet: &Packet, node: &str) -> Option<&Service> {
        let of_node = self
            .node(node)
            .ok()
            .and_then(|n| node_addresses(n).ok())
            .is_some_and(|ips| ips.contains(&packet.dst));
        let by_port = || {
            self.services.iter().find(|s| {
                ports(s)
                    .iter()
                    .any(|p| p.node_port == Some(i32::from(packet.port)) && proto(p) == packet.proto)
            })
        };
        self.service_at(packet.dst)
            .or_else(|| by_port().filter(|_| of_node))
    }

    /// The service of this name, as `namespace/name`.
    pub(crate) fn service_named(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|s| full_name(&s.metadata) == name)
    }

    /// The service's port that a packet is for.
    pub(crate) fn port_of<'a>(&self, service: &'a Service, packet: &Packet) -> Option<&'a ServicePort> {
        let own = self.service_at(packet.dst).is_some();
        ports(service).iter().find(|p| {
            let number = if own { Some(p.port) } else { p.node_port };
            number == Some(i32::from(packet.port)) && proto(p) == packet.proto
        })
    }

    /// The slices that name the service as theirs.
    pub(crate) fn slices_of<'a>(
        &'a self,
        service: &Service,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        let own = full_name(&service.metadata);
        self.slices.iter().filter(move |s| {
            let meta = &s.metadata;
            let name = meta
                .labels
                .as_ref()
                .and_then(|l| l.get("kubernetes.io/service-name"));
            name.is_some_and(|n| format!("{}/{n}", meta.namespace.as_deref().unwrap_or("default")) == own)
        })
    }

    /// The service one of whose addresses this is, whatever their kind.
    pub fn service_at(&self, ip: IpAddr) -> Option<&Service> {
        self.services.iter().find(|s| {
            let spec = s.spec.as_ref();
            let listed =
                |ips: Option<&Vec<String>>| ips.into_iter().flatten().any(|t| parse_ip(t) == Some(ip));
            let status = s.status.as_ref().and_then(|s| s.load_balancer.as_ref());
            let balancer = status.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
            // Objects from before there were several have one alone.
            let only = spec.and_then(|s| s.cluster_ip.as_ref());
            only.and_then(|t| parse_ip(t)) == Some(ip)
                || listed(spec.and_then(|s| s.cluster_ips.as_ref()))
                || listed(spec.and_then(|s| s.external_ips.as_ref()))
                || balancer
                    .filter_map(|i| i.ip.as_ref())
                    .any(|t| parse_ip(t) == Some(ip))
        })
    }
}

fn push<T: serde::de::DeserializeOwned>(
    list: &mut Vec<T>,
    object: serde_json::Value,
) -> Result<(), WorldError> {
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or("without a name")
        .to_owned();
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    list.push(
        serde_json::from_value(object).map_err(|e| WorldError::Unreadable(format!("{kind} {name}: {e}")))?,
    );
    Ok(())
}

fn missing(kind: &'static str, name: &str) -> WorldError {
    WorldError::Missing {
        kind,
        name: name.to_owned(),
    }
}

fn find<'a, T>(
    list: &'a [T],
    namespace: &str,
    name: &str,
    meta: impl Fn(&T) -> &ObjectMeta,
) -> Option<&'a T> {
    list.iter().find(|o| {
        let meta = meta(o);
        // Manifests may leave the namespace out.
        meta.name.as_deref() == Some(name) && meta.namespace.as_deref().unwrap_or("default") == namespace
    })
}

fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

fn of_pod(pod: &Pod) -> Source {
    let node = pod
        .spec
        .as_ref()
        .and_then(|s| s.node_name.clone())
        .unwrap_or_default();
    if is_host_network(pod) {
        return Source::Node(node);
    }
    Source::Pod {
        name: full_name(&pod.metadata),
        node,
    }
}

/// `namespace/name`.
pub(crate) fn full_name(meta: &ObjectMeta) -> String {
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or("default"),
        meta.name.as_deref().unwrap_or_default()
    )
}

fn pod_addresses(pod: &Pod) -> Result<Vec<IpAddr>, WorldError> {
    let status = pod.status.as_ref();
    let many = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
    let mut ips: Vec<IpAddr> = many.filter_map(|ip| parse_ip(&ip.ip)).collect();
    if ips.is_empty() {
        ips.extend(status.and_then(|s| s.pod_ip.as_ref()).and_then(|ip| parse_ip(ip)));
    }
    if ips.is_empty() {
        return Err(WorldError::NoAddress(full_name(&pod.metadata)));
    }
    Ok(ips)
}

/// A node's addresses in the order of its status; names are left out.
pub(crate) fn node_addresses(node: &Node) -> Result<Vec<IpAddr>, WorldError> {
    let status = node.status.as_ref().and_then(|s| s.addresses.as_ref());
    let ips: Vec<IpAddr> = status
        .into_iter()
        .flatten()
        .filter_map(|a| parse_ip(&a.address))
        .collect();
    if ips.is_empty() {
        return Err(WorldError::NodeAddress(
            node.metadata.name.clone().unwrap_or_default(),
        ));
    }
    Ok(ips)
}

fn service_addresses(service: &Service) -> Result<Vec<IpAddr>, WorldError> {
    let name = full_name(&service.metadata);
    let Some(spec) = &service.spec else {
        return Err(WorldError::Unallocated(name));
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(WorldError::ExternalName(
            name,
            spec.external_name.clone().unwrap_or_default(),
        ));
    }
    let mut texts: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.cluster_ip);
    }
    if texts.iter().any(|t| *t == "None") {
        return Err(WorldError::Headless(name));
    }
    let ips: Vec<IpAddr> = texts.iter().filter_map(|t| parse_ip(t)).collect();
    if ips.is_empty() {
        Err(WorldError::Unallocated(name))
    } else {
        Ok(ips)
    }
}

fn ports(service: &Service) -> &[ServicePort] {
    service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_deref())
        .unwrap_or_default()
}

fn proto(port: &ServicePort) -> Proto {
    match port.protocol.as_deref() {
        Some("UDP") => Proto::UDP,
        Some("SCTP") => Proto::SCTP,
        _ => Proto::TCP,
    }
}

/// The port of a service that the question means. A number that the service lacks is no error: what becomes of such a packet
/// is what was asked.
fn service_port(service: &Service, question: &Question) -> Result<(u16, Proto), WorldError> {
    let all = ports(service);
    let fits = |p: &&ServicePort| question.proto.is_none_or(|wanted| wanted == proto(p));
    let number = |p: &ServicePort| (u16::try_from(p.port).unwrap_or(0), proto(p));
    match &question.port {
        Some(Port::Number(n)) => {
            let known = all.iter().filter(fits).find(|p| p.port == i32::from(*n));
            Ok(known.map_or((*n, question.proto.unwrap_or(Proto::TCP)), number))
        }
        Some(Port::Name(name)) => all
            .iter()
            .filter(fits)
            .find(|p| p.name.as_deref() == Some(name))
            .map(number)
            .ok_or_else(|| WorldError::NoPort {
                service: full_name(&service.metadata),
                port: name.clone(),
                ports: list(service),
            }),
        None => match all.iter().filter(fits).collect::<Vec<_>>()[..] {
            [only] => Ok(number(only)),
            _ => Err(WorldError::WhichPort {
                service: full_name(&service.metadata),
                ports: list(service),
            }),
        },
    }
}

fn plain_port(question: &Question) -> Result<u16, WorldError> {
    match &question.port {
        Some(Port::Number(n)) => Ok(*n),
        Some(Port::Name(name)) => Err(WorldError::PortName(name.clone())),
        None => Err(WorldError::PortNeeded(question.to.to_string())),
    }
}

/// A service's ports in words: `http (80/TCP), 53/UDP`.
pub(crate) fn list(service: &Service) -> String {
    let one = |p: &ServicePort| {
        let number = format!("{}/{}", p.port, p.protocol.as_deref().unwrap_or("TCP"));
        match &p.name {
            Some(name) => format!("{name} ({number})"),
            None => number,
        }
    };
    let all: Vec<_> = ports(service).iter().map(one).collect();
    if all.is_empty() {
        "none".into()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn world() -> World {
        let mut w = World::default();
        for object in [
            json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "default"},
                "spec": {"nodeName": "n1", "containers": []}, "status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}),
            json!({"kind": "Pod", "metadata": {"name": "h"},
                "spec": {"nodeName": "n1", "hostNetwork": true, "containers": []}, "status": {"podIP": "192.0.2.1"}}),
            json!({"kind": "Pod", "metadata": {"name": "new"}, "spec": {"containers": []}}),
            json!({"kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.5", "clusterIPs": ["fd00:10:96::5", "10.96.0.5"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
            json!({"kind": "Service", "metadata": {"name": "one"}, "spec": {"clusterIP": "10.96.0.6", "ports": [{"port": 53, "protocol": "UDP"}]}}),
            json!({"kind": "Service", "metadata": {"name": "none"}, "spec": {"clusterIP": "None"}}),
            json!({"kind": "NodeList", "items": [{"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}]}),
            json!({"kind": "ConfigMap", "metadata": {"name": "ignored"}}),
        ] {
            w.add(object).unwrap();
        }
        w
    }

    fn ask(text: &str) -> Result<Packet, WorldError> {
        world().resolve(&text.parse().unwrap(), "default")
    }

    #[test]
    fn the_ends_of_a_question_are_found_in_the_clients_family() {
        let p = ask("pod/a -> svc/b:http").unwrap();
        assert_eq!(
            (p.src, p.dst),
            ("fd00::2".parse().unwrap(), "fd00:10:96::5".parse().unwrap())
        );
        assert_eq!((p.port, p.proto), (80, Proto::TCP));
        let p = ask("203.0.113.9 -> svc/b:53/udp").unwrap();
        assert_eq!((p.source, p.dst), (Source::Outside, "10.96.0.5".parse().unwrap()));
        let p = ask("pod/a -> svc/one").unwrap();
        assert_eq!((p.port, p.proto), (53, Proto::UDP));
    }

    #[test]
    fn an_address_is_known_by_its_owner() {
        assert_eq!(
            ask("10.0.0.2 -> node/n1:80").unwrap().source,
            Source::Pod {
                name: "default/a".into(),
                node: "n1".into()
            }
        );
        assert_eq!(
            ask("192.0.2.1 -> pod/a:80").unwrap().source,
            Source::Node("n1".into())
        );
        assert_eq!(
            ask("pod/h -> pod/a:80").unwrap().source,
            Source::Node("n1".into())
        );
    }

    #[test]
    fn a_port_that_a_service_lacks_may_be_asked_for() {
        assert_eq!(ask("pod/a -> svc/b:81").unwrap().port, 81);
    }

    #[test]
    fn what_is_missing_is_named() {
        let wrong = |text| ask(text).unwrap_err().to_string();
        assert_eq!(wrong("pod/zz -> svc/b:80"), "there is no pod default/zz");
        assert!(wrong("pod/new -> svc/b:80").contains("no address yet"));
        assert!(wrong("pod/a -> svc/none:80").contains("headless"));
        assert!(wrong("pod/a -> svc/b").contains("http (80/TCP), dns (53/UDP)"));
        assert!(wrong("pod/a -> svc/b:web").contains("no port web"));
        assert!(wrong("pod/a -> node/n1").contains("a port is needed"));
        assert!(wrong("fd00::9 -> svc/one:53").contains("no IPv4 address"));
    }

    #[test]
    fn an_object_that_cannot_be_read_is_named() {
        let e =
            World::default().add(json!({"kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": 5}}));
        assert!(e.unwrap_err().to_string().contains("Service x"));
    }
}
