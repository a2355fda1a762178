//! Observed objects in the fewest bytes: a planner holds every Service and EndpointSlice of its cluster, and reads one again only
//! when something of it changes.
//!
//! The form is this process's own. Numbers are in groups of seven bits, the lowest first; texts and lists have their length before
//! them; addresses have as many bytes as their family, after a byte that tells which.
use crate::texts::Texts;
use crate::view::{EndpointView, ObjectName, PortView, ServiceView, SliceView};
use datapath_abi::Proto;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const INTERNAL_LOCAL: u8 = 1;
const EXTERNAL_LOCAL: u8 = 2;

const READY: u8 = 1;
const SERVING: u8 = 2;
const TERMINATING: u8 = 4;
const HAS_NODE: u8 = 8;
const HAS_HINTS: u8 = 16;

/// A Service without its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PackedService(Box<[u8]>);

/// An EndpointSlice without its service and namespace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PackedSlice(Box<[u8]>);

/// Where objects are packed; used again and again.
#[derive(Default)]
pub(crate) struct Packer(Vec<u8>);

impl Packer {
    /// Packs a Service; `None` if that is what `before` holds.
    pub fn service(&mut self, view: &ServiceView, before: Option<&PackedService>) -> Option<PackedService> {
        self.0.clear();
        let ServiceView {
            name: _,
            cluster_ips,
            external_ips,
            balancer_ips,
            source_ranges,
            ports,
            internal_local,
            external_local,
            affinity,
            health_port,
        } = view;
        let internal = if *internal_local { INTERNAL_LOCAL } else { 0 };
        let external = if *external_local { EXTERNAL_LOCAL } else { 0 };
        self.0.push(internal | external);
        self.number(*affinity);
        self.number(health_port.unwrap_or(0).into());
        for ips in [cluster_ips, external_ips, balancer_ips] {
            self.list(ips, |out, ip| out.ip(*ip));
        }
        self.list(source_ranges, |out, (ip, bits)| {
            out.ip(*ip);
            out.0.push(*bits);
        });
        self.list(ports, |out, p| {
            out.0.push(p.proto.0);
            out.number(p.port.into());
            out.number(p.node_port.into());
            out.text(&p.name);
        });
        before
            .is_none_or(|b| *b.0 != *self.0)
            .then(|| PackedService(self.0.as_slice().into()))
    }

    /// Packs a slice; `None` if that is what `before` holds.
    pub fn slice(&mut self, view: &SliceView, before: Option<&PackedSlice>) -> Option<PackedSlice> {
        self.0.clear();
        let SliceView {
            name,
            service: _,
            ports,
            endpoints,
        } = view;
        self.text(name);
        self.list(ports, |out, p| {
            out.0.push(p.proto.0);
            out.number(p.port.into());
            out.text(&p.name);
        });
        self.list(endpoints, Self::endpoint);
        before
            .is_none_or(|b| *b.0 != *self.0)
            .then(|| PackedSlice(self.0.as_slice().into()))
    }

    fn endpoint(&mut self, e: &EndpointView) {
        let has_hints = !e.zone_hints.is_empty() || !e.node_hints.is_empty();
        let flags = [
            (e.ready, READY),
            (e.serving, SERVING),
            (e.terminating, TERMINATING),
            (e.node.is_some(), HAS_NODE),
            (has_hints, HAS_HINTS),
        ];
        let flags = flags.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        self.0.push(flags);
        self.ip(e.addr);
        if let Some(node) = &e.node {
            self.text(node);
        }
        if has_hints {
            self.list(&e.zone_hints, |out, hint| out.text(hint));
            self.list(&e.node_hints, |out, hint| out.text(hint));
        }
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.length(items.len());
        for item in items {
            each(self, item);
        }
    }

    fn length(&mut self, n: usize) {
        self.number(u32::try_from(n).unwrap_or(u32::MAX));
    }

    fn number(&mut self, mut n: u32) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                self.0.push(4);
                self.0.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.0.push(6);
                self.0.extend_from_slice(&ip.octets());
            }
        }
    }
}

/// What is left to read. Behind the end, which only a mistake of this file leads to, there are zeros.
#[derive(Clone, Copy, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(n).unwrap_or_default();
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().unwrap_or([0; N])
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn number(&mut self) -> u32 {
        let mut n = 0;
        for shift in (0..32).step_by(7) {
            let byte = self.byte();
            n |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        n
    }

    fn port(&mut self) -> u16 {
        self.number() as u16
    }

    fn text(&mut self) -> &'a str {
        let length = self.number() as usize;
        std::str::from_utf8(self.bytes(length)).unwrap_or_default()
    }

    fn ip(&mut self) -> IpAddr {
        match self.byte() {
            4 => Ipv4Addr::from(self.array::<4>()).into(),
            _ => Ipv6Addr::from(self.array::<16>()).into(),
        }
    }

    fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let length = self.number();
        (0..length).map(|_| each(self)).collect()
    }

    fn texts(&mut self) -> TextList<'a> {
        let list = TextList {
            length: self.number(),
            rest: *self,
        };
        for _ in 0..list.length {
            self.text();
        }
        list
    }
}

impl PackedService {
    /// As it was observed.
    pub fn view(&self, name: ObjectName, texts: &mut Texts) -> ServiceView {
        let mut r = Reader(&self.0);
        let flags = r.byte();
        ServiceView {
            name,
            internal_local: flags & INTERNAL_LOCAL != 0,
            external_local: flags & EXTERNAL_LOCAL != 0,
            affinity: r.number(),
            health_port: Some(r.port()).filter(|p| *p != 0),
            cluster_ips: r.list(Reader::ip),
            external_ips: r.list(Reader::ip),
            balancer_ips: r.list(Reader::ip),
            source_ranges: r.list(|r| (r.ip(), r.byte())),
            ports: r.list(|r| PortView {
                proto: Proto(r.byte()),
                port: r.port(),
                node_port: r.port(),
                name: texts.shared(r.text()),
            }),
        }
    }

    /// Whether it has `internalTrafficPolicy: Local`, and whether it has `externalTrafficPolicy: Local`.
    pub fn is_local(&self) -> (bool, bool) {
        let flags = Reader(&self.0).byte();
        (flags & INTERNAL_LOCAL != 0, flags & EXTERNAL_LOCAL != 0)
    }

    /// Where load balancers ask for local endpoints.
    pub fn health_port(&self) -> Option<u16> {
        let mut r = Reader(&self.0);
        r.byte();
        r.number();
        Some(r.port()).filter(|p| *p != 0)
    }
}

/// Texts in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextList<'a> {
    length: u32,
    rest: Reader<'a>,
}

impl<'a> TextList<'a> {
    const NONE: Self = Self {
        length: 0,
        rest: Reader(&[]),
    };

    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    pub fn contains(mut self, text: &str) -> bool {
        (0..self.length).any(|_| self.rest.text() == text)
    }
}

/// One port of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlicePortRef<'a> {
    pub name: &'a str,
    pub proto: Proto,
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointRef<'a> {
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<&'a str>,
    pub zone_hints: TextList<'a>,
    pub node_hints: TextList<'a>,
}

impl PackedSlice {
    /// Its own name.
    pub fn name(&self) -> &str {
        Reader(&self.0).text()
    }

    pub fn ports(&self) -> impl Iterator<Item = SlicePortRef<'_>> {
        let mut r = Reader(&self.0);
        r.text();
        let length = r.number();
        (0..length).map(move |_| port(&mut r))
    }

    pub fn endpoints(&self) -> impl Iterator<Item = EndpointRef<'_>> {
        let mut r = Reader(&self.0);
        r.text();
        let ports = r.number();
        for _ in 0..ports {
            port(&mut r);
        }
        let length = r.number();
        (0..length).map(move |_| endpoint(&mut r))
    }
}

fn port<'a>(r: &mut Reader<'a>) -> SlicePortRef<'a> {
    SlicePortRef {
        proto: Proto(r.byte()),
        port: r.port(),
        name: r.text(),
    }
}

fn endpoint<'a>(r: &mut Reader<'a>) -> EndpointRef<'a> {
    let flags = r.byte();
    let has = |bit| flags & bit != 0;
    EndpointRef {
        addr: r.ip(),
        ready: has(READY),
        serving: has(SERVING),
        terminating: has(TERMINATING),
        node: has(HAS_NODE).then(|| r.text()),
        zone_hints: if has(HAS_HINTS) { r.texts() } else { TextList::NONE },
        node_hints: if has(HAS_HINTS) { r.texts() } else { TextList::NONE },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::SlicePort;

    fn service() -> ServiceView {
        ServiceView {
            cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            external_ips: vec!["192.0.2.1".parse().unwrap()],
            balancer_ips: vec!["2001:db8::1".parse().unwrap()],
            source_ranges: vec![("192.0.2.0".parse().unwrap(), 24)],
            ports: vec![PortView {
                name: "http".into(),
                proto: Proto::TCP,
                port: 65535,
                node_port: 30000,
            }],
            internal_local: true,
            external_local: true,
            affinity: 10_800,
            health_port: Some(32000),
            ..ServiceView::new(ObjectName::new("ns", "a"))
        }
    }

    fn slice() -> SliceView {
        let endpoint = |last: u8| EndpointView {
            addr: [10, 0, 0, last].into(),
            ready: last == 1,
            serving: true,
            terminating: last != 1,
            node: (last == 1).then(|| "node".into()),
            zone_hints: vec!["east".into(), "west".into()],
            node_hints: Vec::new(),
        };
        SliceView {
            name: "a-x".into(),
            service: ObjectName::new("ns", "a"),
            ports: vec![SlicePort {
                name: "http".into(),
                proto: Proto::UDP,
                port: 53,
            }],
            endpoints: vec![endpoint(1), endpoint(2)],
        }
    }

    #[test]
    fn a_service_comes_out_as_it_went_in() {
        let mut packer = Packer::default();
        for view in [service(), ServiceView::new(ObjectName::new("ns", "b"))] {
            let packed = packer.service(&view, None).unwrap();
            assert_eq!(packed.view(view.name.clone(), &mut Texts::default()), view);
            assert_eq!(packed.health_port(), view.health_port);
            assert_eq!(packed.is_local(), (view.internal_local, view.external_local));
            assert_eq!(packer.service(&view, Some(&packed)), None);
            let other = ServiceView {
                affinity: 5,
                ..view.clone()
            };
            assert!(packer.service(&other, Some(&packed)).is_some());
        }
    }

    #[test]
    fn a_slice_comes_out_as_it_went_in() {
        let mut packer = Packer::default();
        let view = slice();
        let packed = packer.slice(&view, None).unwrap();
        assert_eq!(packer.slice(&view, Some(&packed)), None);
        assert_eq!(packed.name(), "a-x");
        let ports: Vec<_> = packed.ports().map(|p| (p.name, p.proto, p.port)).collect();
        assert_eq!(ports, [("http", Proto::UDP, 53)]);
        let endpoints: Vec<_> = packed.endpoints().collect();
        assert_eq!(endpoints.len(), 2);
        for (e, v) in endpoints.iter().zip(&view.endpoints) {
            assert_eq!((e.addr, e.ready, e.serving), (v.addr, v.ready, v.serving));
            assert_eq!((e.terminating, e.node), (v.terminating, v.node.as_deref()));
            assert!(e.node_hints.is_empty() && e.zone_hints.contains("west") && !e.zone_hints.contains("e"));
        }
    }
}
