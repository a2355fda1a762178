//! What stands under a name.

use crate::view::{Proto, Shape};
use crate::zone::{Service, Zone};
use crate::{Endpoint, arpa};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of record asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Cname,
    Srv,
    Ptr,
    Txt,
    Soa,
    Ns,
    /// All of them.
    Any,
    /// One that no name of the zone has.
    Other,
}

/// Whether the name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It does; no records then mean "not of this kind".
    Exists,
    /// Neither it nor anything below it does.
    Missing,
}

/// Whose a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The name that was asked for.
    Asked,
    /// Another one, absolute and without its last dot.
    Name(String),
}

/// A record's content. Names are absolute, without their last dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(String),
    Srv { port: u16, target: String },
    Ptr(String),
    Txt(&'static str),
    Soa,
    Ns(String),
}

impl Data {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::A(ip),
            IpAddr::V6(ip) => Self::Aaaa(ip),
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub owner: Owner,
    pub data: Data,
}

/// What is known of a name of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: Code,
    /// The answers proper. Without any, the zone's SOA record belongs into the authority section (RFC 2308).
    pub records: Vec<Record>,
    /// Addresses of the names in `records`.
    pub additional: Vec<Record>,
    /// Where the name really leads, if it is an alias and its target was not what was asked for: to be looked up next.
    pub follow: Option<String>,
}

/// Weight and priority of SRV records say nothing: all endpoints are alike.
const VERSION: &str = "1.1.0";

/// What a name is, before it is known which records are wanted.
enum Node<'z> {
    Missing,
    /// Nothing but names below it.
    Empty,
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`, the zone's name server.
    Server,
    Service(&'z Service),
    /// `_port._proto.web.default`.
    Port(&'z Service, &'z str, Proto),
    /// One or more addresses.
    Host(Vec<IpAddr>),
}

impl Zone {
    /// What stands under `name` (lower case, absolute, without its last dot); `None` if it is not this zone's to say.
    /// `turn` is any number, another one each time: answers of several addresses begin with another of them.
    #[must_use]
    pub fn answer(&self, name: &str, kind: Kind, turn: usize) -> Option<Answer> {
        let Some(relative) = self.relative(name) else {
            return self.reverse_answer(name, kind);
        };
        let node = self.node(relative);
        let mut answer = Answer::exists();
        match node {
            Node::Missing => answer.code = Code::Missing,
            Node::Empty => {}
            Node::Apex => self.apex(kind, &mut answer),
            Node::Version => answer.push(kind, Kind::Txt, || Data::Txt(VERSION)),
            Node::Server => answer.addresses(kind, &self.config.servers),
            Node::Service(service) => self.service_records(service, kind, &mut answer),
            Node::Port(service, port, proto) => self.port_records(service, port, proto, kind, &mut answer),
            Node::Host(ips) => answer.addresses(kind, &ips),
        }
        if answer.records.len() > 1 {
            let by = turn % answer.records.len();
            answer.records.rotate_left(by);
        }
        Some(answer)
    }

    /// Whether the zone has a say about `name`, without looking further.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.relative(name).is_some()
    }

    /// `web.default.svc` of `web.default.svc.cluster.local`; empty for the zone itself.
    fn relative<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_suffix(&*self.config.origin)?;
        if rest.is_empty() {
            return Some(rest);
        }
        rest.strip_suffix('.')
    }

    fn node<'z>(&'z self, relative: &'z str) -> Node<'z> {
        match relative {
            "" => return Node::Apex,
            "dns-version" => return Node::Version,
            "svc" | "pod" | "dns" => return Node::Empty,
            "ns.dns" => return Node::Server,
            _ => {}
        }
        if let Some(rest) = relative.strip_suffix(".svc") {
            self.service_node(rest)
        } else if let Some(rest) = relative.strip_suffix(".pod") {
            pod_node(rest)
        } else {
            Node::Missing
        }
    }

    /// `default`, `web.default`, `host.web.default`, `_tcp.web.default`, `_http._tcp.web.default`.
    fn service_node<'z>(&'z self, rest: &'z str) -> Node<'z> {
        let Some((before, namespace)) = rest.rsplit_once('.') else {
            return self.namespace_node(rest);
        };
        let at = before.rfind('.').map_or(0, |dot| dot + 1);
        let Some(service) = self.services.get(&rest[at..]).filter(|s| s.shows()) else {
            return Node::Missing;
        };
        debug_assert_eq!(service.view.key.namespace(), namespace);
        let Some(below) = before[..at].strip_suffix('.') else {
            return Node::Service(service);
        };
        match below.split_once('.') {
            None => below_service(service, below),
            Some((port, proto)) => port_node(service, port, proto),
        }
    }

    fn namespace_node(&self, namespace: &str) -> Node<'_> {
        if self.namespaces.contains_key(namespace) {
            Node::Empty
        } else {
            Node::Missing
        }
    }

    fn apex(&self, kind: Kind, answer: &mut Answer) {
        answer.push(kind, Kind::Soa, || Data::Soa);
        answer.push(kind, Kind::Ns, || Data::Ns(self.server_name()));
        if kind == Kind::Ns {
            let name = self.server_name();
            answer.add_hosts(&name, self.config.servers.iter().copied());
        }
    }

    fn service_records(&self, service: &Service, kind: Kind, answer: &mut Answer) {
        match &service.view.shape {
            Shape::Cluster(ips) => answer.addresses(kind, ips),
            Shape::Headless => {
                let mut ips: Vec<IpAddr> = service.endpoints().map(|e| e.ip).collect();
                ips.sort_unstable();
                ips.dedup();
                answer.addresses(kind, &ips);
            }
            Shape::External(target) => {
                answer.records.push(Record {
                    owner: Owner::Asked,
                    data: Data::Cname(target.to_string()),
                });
                let done = matches!(kind, Kind::Cname | Kind::Any);
                answer.follow = (!done).then(|| target.to_string());
            }
        }
    }

    fn port_records(&self, service: &Service, port: &str, proto: Proto, kind: Kind, answer: &mut Answer) {
        if !matches!(kind, Kind::Srv | Kind::Any) {
            return;
        }
        let of_service = self.absolute(&format!("{}.svc", service.view.key.as_str()));
        match &service.view.shape {
            Shape::Cluster(ips) => {
                let ports = service.view.ports.iter();
                for port in ports.filter(|p| *p.name == *port && p.proto == proto) {
                    answer.srv(port.number, of_service.clone());
                }
                answer.add_hosts(&of_service, ips.iter().copied());
            }
            Shape::Headless => headless_port(service, port, proto, &of_service, answer),
            Shape::External(_) => {}
        }
    }

    /// Names of addresses that are services' or endpoints of headless ones; about others the world may know more.
    fn reverse_answer(&self, name: &str, kind: Kind) -> Option<Answer> {
        let owners = self.reverse.get(&arpa::reverse_address(name)?)?;
        let mut answer = Answer::exists();
        for owner in owners {
            let host = owner.host.as_deref();
            let host = host.map_or(String::new(), |h| format!("{h}."));
            let target = self.absolute(&format!("{host}{}.svc", owner.service.as_str()));
            let data = Data::Ptr(target);
            if !answer.records.iter().any(|r| r.data == data) {
                answer.push(kind, Kind::Ptr, || data);
            }
        }
        Some(answer)
    }
}

/// `_tcp` stands above ports, any other label may be an endpoint's name.
fn below_service<'z>(service: &'z Service, label: &str) -> Node<'z> {
    if let Some(proto) = Proto::from_label(label) {
        let there = service.ports().any(|p| p.proto == proto);
        return if there { Node::Empty } else { Node::Missing };
    }
    let mut ips: Vec<IpAddr> = service.hosts(label).map(|e| e.ip).collect();
    ips.sort_unstable();
    ips.dedup();
    if ips.is_empty() {
        Node::Missing
    } else {
        Node::Host(ips)
    }
}

fn port_node<'z>(service: &'z Service, port: &'z str, proto: &str) -> Node<'z> {
    let (Some(port), Some(proto)) = (port.strip_prefix('_'), Proto::from_label(proto)) else {
        return Node::Missing;
    };
    let there = service.ports().any(|p| *p.name == *port && p.proto == proto);
    if there {
        Node::Port(service, port, proto)
    } else {
        Node::Missing
    }
}

fn headless_port(service: &Service, port: &str, proto: Proto, of_service: &str, answer: &mut Answer) {
    let mut found: Vec<(u16, &Endpoint)> = Vec::new();
    for slice in &service.slices {
        let ports = slice.ports.iter();
        for port in ports.filter(|p| *p.name == *port && p.proto == proto) {
            found.extend(slice.endpoints.iter().map(|e| (port.number, e)));
        }
    }
    // One endpoint may stand in two slices while it is moved between them.
    found.sort_unstable();
    found.dedup();
    let mut last = None;
    for (number, endpoint) in found {
        let target = format!("{}.{of_service}", endpoint.host);
        // A host with addresses of both families is one target.
        if last != Some((number, &endpoint.host)) {
            answer.srv(number, target.clone());
        }
        last = Some((number, &endpoint.host));
        answer.add_hosts(&target, std::iter::once(endpoint.ip));
    }
}

/// `10-1-2-3.default`: the address is in the name, so no pod has to be known (what CoreDNS calls `pods insecure`).
fn pod_node<'z>(rest: &str) -> Node<'z> {
    let Some((address, namespace)) = rest.split_once('.') else {
        return Node::Empty;
    };
    if namespace.is_empty() || namespace.contains('.') {
        return Node::Missing;
    }
    match pod_address(address) {
        Some(ip) => Node::Host(vec![ip]),
        None => Node::Missing,
    }
}

/// `10-1-2-3` and `fd00--1-5`.
fn pod_address(label: &str) -> Option<IpAddr> {
    if let Ok(ip) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(ip.into());
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

impl Answer {
    fn exists() -> Self {
        Self {
            code: Code::Exists,
            records: Vec::new(),
            additional: Vec::new(),
            follow: None,
        }
    }

    fn push(&mut self, wanted: Kind, has: Kind, data: impl FnOnce() -> Data) {
        if wanted == has || wanted == Kind::Any {
            self.records.push(Record {
                owner: Owner::Asked,
                data: data(),
            });
        }
    }

    fn addresses(&mut self, wanted: Kind, ips: &[IpAddr]) {
        for &ip in ips {
            let has = if ip.is_ipv4() { Kind::A } else { Kind::Aaaa };
            self.push(wanted, has, || Data::of(ip));
        }
    }

    fn srv(&mut self, port: u16, target: String) {
        self.records.push(Record {
            owner: Owner::Asked,
            data: Data::Srv { port, target },
        });
    }

    fn add_hosts(&mut self, name: &str, ips: impl Iterator<Item = IpAddr>) {
        self.additional.extend(ips.map(|ip| Record {
            owner: Owner::Name(name.to_owned()),
            data: Data::of(ip),
        }));
    }
}
