//! What the socket hooks decide.
use crate::Tables;
use crate::choose::{Choice, Client, Earlier, Found, Front, Refusal, find, scale, slot_key, unknown};
use datapath_abi::{
    Address, Backend, Be16, Counted, FrontendKey, FrontendValue, Proto, Reason, Scope, SocketRecord,
};

/// What becomes of a `connect` or of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not for a service: nothing is changed.
    Pass,
    /// Goes to this endpoint; the record is to be kept with the socket. `renewed` tells that the choice is new, and then it is to
    /// be counted.
    To {
        record: SocketRecord,
        counted: Counted,
        renewed: bool,
    },
    /// Refused at once.
    Refuse(Reason),
}

/// Decides on a `connect` of a socket; `netns` tells the cookie of its network namespace, and is asked only where it counts.
#[inline(always)]
pub fn connect<T: Tables>(tables: &T, front: &Front, netns: impl FnOnce() -> u64) -> Verdict {
    let key = FrontendKey::new(front.addr, front.port, front.proto);
    let Some(frontend) = tables.frontend(&key) else {
        return match unknown(tables, front.addr) {
            // Nothing is sent by this yet: programs connect a datagram socket to learn their own address. What they do send to
            // such a port is refused as packets.
            Found::Nowhere(Refusal::NoPort) if front.proto == Proto::UDP => Verdict::Pass,
            Found::Nowhere(refusal) => refused(refusal),
            Found::NotAService | Found::Endpoint(_) => Verdict::Pass,
        };
    };
    // Most services ask for nothing but chance; for them this is all.
    if frontend.is_plain()
        && let Some(choice) = drawn(tables, &frontend)
    {
        return Verdict::To {
            record: record(front, &choice),
            counted: choice.counted(),
            renewed: true,
        };
    }
    decide(tables, front, netns(), None)
}

/// An endpoint by chance; `None` where there is none, or where the slots are being exchanged.
#[inline(always)]
fn drawn<T: Tables>(tables: &T, frontend: &FrontendValue) -> Option<Choice> {
    let (first, usable) = frontend.usable(Scope::Inside);
    if usable == 0 {
        return None;
    }
    let slot = first.wrapping_add(scale(tables.random(), usable));
    let backend = tables.backend(&slot_key(frontend, slot))?;
    Some(Choice {
        frontend: *frontend,
        slot,
        backend,
    })
}

/// Decides on one datagram of an unconnected socket; `last` is what the socket's last one was decided to.
#[inline(always)]
pub fn send<T: Tables>(tables: &T, front: &Front, netns: u64, last: Option<SocketRecord>) -> Verdict {
    let last = match last {
        Some(r) if r.service == front.addr && r.service_port == front.port => Some(r),
        _ => None,
    };
    decide(tables, front, netns, last)
}

/// Who connects: always somebody inside. The address of the node's own processes is known; that of a pod's is not before its packets are, so
/// they are asked where it matters.
#[inline(always)]
fn client<T: Tables>(tables: &T, front: &Front, netns: u64) -> Client {
    // Kernels that do not tell the node's cookie (0) have clients of pods only.
    let (of_node, own) = match tables.settings() {
        Some(s) if s.host_netns_cookie == netns && netns != 0 => {
            (true, s.masquerade[usize::from(!front.addr.is_v4())])
        }
        _ => (false, Address::default()),
    };
    Client {
        scope: Scope::Inside,
        known_as: Address::of_netns(netns),
        source: own,
        port: Be16::new(0),
        of_node,
    }
}

/// The service under whose name a peer is shown: that of the record, if the peer is its endpoint.
#[inline(always)]
pub fn shown(record: &SocketRecord, peer: Address, port: Be16) -> Option<(Address, Be16)> {
    (record.backend == peer && record.backend_port == port && record.service_port.raw() != 0)
        .then_some((record.service, record.service_port))
}

#[inline(always)]
fn decide<T: Tables>(tables: &T, front: &Front, netns: u64, last: Option<SocketRecord>) -> Verdict {
    let earlier = match last {
        Some(r) => Earlier {
            slot: r.slot,
            addr: r.backend,
            port: r.backend_port,
        },
        None => Earlier::default(),
    };
    let found = find(tables, front, &client(tables, front, netns), &earlier);
    judged(front, found, last)
}

#[inline(always)]
fn judged(front: &Front, found: Found, last: Option<SocketRecord>) -> Verdict {
    match found {
        Found::NotAService => Verdict::Pass,
        Found::Endpoint(c) => Verdict::To {
            renewed: !last.is_some_and(|r| is(&r, &c.backend)),
            record: record(front, &c),
            counted: c.counted(),
        },
        Found::Nowhere(refusal) => refused(refusal),
    }
}

/// What the socket is promised.
#[inline(always)]
fn record(front: &Front, c: &Choice) -> SocketRecord {
    SocketRecord {
        service: front.addr,
        backend: c.backend.addr,
        service_port: front.port,
        backend_port: c.backend.port,
        set: c.frontend.set,
        generation: c.frontend.generation,
        slot: c.slot,
    }
}

#[inline(always)]
fn is(record: &SocketRecord, backend: &Backend) -> bool {
    record.backend == backend.addr && record.backend_port == backend.port
}

/// An address that no service has is not refused here: kube-proxy lets such a client wait, and so does the packet path,
/// which counts it. Everything else is refused now rather than by a packet later.
#[inline(always)]
fn refused(refusal: Refusal) -> Verdict {
    match refusal {
        Refusal::NoService => Verdict::Pass,
        Refusal::NoEndpoint => Verdict::Refuse(Reason::SocketNoEndpoint),
        Refusal::NoLocalEndpoint => Verdict::Refuse(Reason::SocketNoLocalEndpoint),
        Refusal::SourceNotAllowed => Verdict::Refuse(Reason::SocketSourceNotAllowed),
        Refusal::NoPort => Verdict::Refuse(Reason::SocketNoPort),
        Refusal::SlotMissing => Verdict::Refuse(Reason::SlotMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sample::{host, ip};
    use datapath_abi::{FrontendFlags, FrontendKey, FrontendValue};

    const PORT: Be16 = Be16::new(53);
    const POD: u64 = 77;

    fn dns() -> Front {
        Front {
            addr: ip("10.96.0.10"),
            port: PORT,
            proto: Proto::UDP,
        }
    }

    fn promised(v: Verdict) -> SocketRecord {
        match v {
            Verdict::To { record, .. } => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn datagrams_to_one_service_keep_to_one_endpoint() {
        let h = host(
            "10.96.0.10",
            53,
            Proto::UDP,
            &[("10.0.0.1", 5353), ("10.0.0.2", 5353), ("10.0.0.3", 5353)],
        );
        let first = promised(send(&h, &dns(), POD, None));
        for _ in 0..50 {
            let v = send(&h, &dns(), POD, Some(first));
            assert!(
                matches!(v, Verdict::To { record, renewed: false, .. } if record == first),
                "{v:?}"
            );
        }
    }

    #[test]
    fn a_datagram_to_another_service_does_not_inherit_the_endpoint() {
        let h = host("10.96.0.10", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        let other = SocketRecord {
            service: ip("10.96.0.99"),
            service_port: PORT,
            backend: ip("10.0.0.1"),
            backend_port: Be16::new(5353),
            ..SocketRecord::default()
        };
        match send(&h, &dns(), POD, Some(other)) {
            Verdict::To { renewed, .. } => assert!(renewed),
            v => panic!("{v:?}"),
        }
    }

    #[test]
    fn a_peer_is_shown_as_the_service_only_if_it_is_the_endpoint() {
        let h = host("10.96.0.10", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        let r = promised(connect(&h, &dns(), || POD));
        assert_eq!(
            shown(&r, ip("10.0.0.1"), Be16::new(5353)),
            Some((ip("10.96.0.10"), PORT))
        );
        assert_eq!(shown(&r, ip("10.0.0.1"), Be16::new(5354)), None);
        assert_eq!(
            shown(&SocketRecord::default(), Address::default(), Be16::new(0)),
            None
        );
    }

    #[test]
    fn a_service_without_endpoints_refuses_at_once() {
        let h = host("10.96.0.10", 53, Proto::UDP, &[]);
        assert_eq!(
            connect(&h, &dns(), || POD),
            Verdict::Refuse(Reason::SocketNoEndpoint)
        );
    }

    #[test]
    fn the_loopback_address_of_the_node_is_none_of_a_pods() {
        let mut h = host("127.0.0.1", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        h.maps
            .frontends
            .values_mut()
            .for_each(|v| v.flags = FrontendFlags::NODE_ONLY);
        let front = Front {
            addr: ip("127.0.0.1"),
            ..dns()
        };
        assert_eq!(connect(&h, &front, || POD), Verdict::Pass);
        assert!(matches!(connect(&h, &front, || 1), Verdict::To { .. }));
        h.settings.host_netns_cookie = 0;
        assert_eq!(
            connect(&h, &front, || 0),
            Verdict::Pass,
            "whose it is, is not known"
        );
    }

    #[test]
    fn a_datagram_socket_may_be_connected_to_a_port_that_a_service_has_not() {
        let mut h = host("10.96.0.10", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        let whole = FrontendKey::whole_address(ip("10.96.0.10"));
        h.maps.frontends.insert(whole, FrontendValue::default());
        let at = |proto| Front {
            port: Be16::new(99),
            proto,
            ..dns()
        };
        assert_eq!(connect(&h, &at(Proto::UDP), || POD), Verdict::Pass);
        let refused = Verdict::Refuse(Reason::SocketNoPort);
        assert_eq!(connect(&h, &at(Proto::TCP), || POD), refused);
        assert_eq!(send(&h, &at(Proto::UDP), POD, None), refused);
    }

    #[test]
    fn source_ranges_are_left_to_the_packets_of_a_pod_and_decided_for_the_node() {
        let mut h = host("10.96.0.10", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        h.maps
            .frontends
            .values_mut()
            .for_each(|v| v.flags = FrontendFlags::RANGES);
        assert_eq!(connect(&h, &dns(), || POD), Verdict::Pass);
        assert_eq!(
            connect(&h, &dns(), || 1),
            Verdict::Refuse(Reason::SocketSourceNotAllowed)
        );
    }
}
