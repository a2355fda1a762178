//! What the socket hooks decide.
use crate::Tables;
use crate::choose::{Earlier, Found, Refusal, find};
use datapath_abi::{Address, Backend, Be16, Proto, Reason, Scope, SocketRecord};

/// What becomes of a `connect` or of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not for a service: nothing is changed.
    Pass,
    /// Goes to this endpoint; the record is to be kept with the socket. `renewed` tells that the choice is new.
    To { record: SocketRecord, renewed: bool },
    /// Refused at once.
    Refuse(Reason),
}

/// Decides on a `connect` to `addr:port`.
#[inline(always)]
pub fn connect<T: Tables>(tables: &T, addr: Address, port: Be16, proto: Proto) -> Verdict {
    decide(tables, addr, port, proto, None)
}

/// Decides on one datagram of an unconnected socket; `last` is what the socket's last one was decided to.
#[inline(always)]
pub fn send<T: Tables>(
    tables: &T,
    addr: Address,
    port: Be16,
    proto: Proto,
    last: Option<SocketRecord>,
) -> Verdict {
    let last = match last {
        Some(r) if r.service == addr && r.service_port == port => Some(r),
        _ => None,
    };
    decide(tables, addr, port, proto, last)
}

/// The service under whose name a peer is shown: that of the record, if the peer is its endpoint.
#[inline(always)]
pub fn shown(record: &SocketRecord, peer: Address, port: Be16) -> Option<(Address, Be16)> {
    (record.backend == peer && record.backend_port == port && record.service_port.raw() != 0)
        .then_some((record.service, record.service_port))
}

#[inline(always)]
fn decide<T: Tables>(
    tables: &T,
    addr: Address,
    port: Be16,
    proto: Proto,
    last: Option<SocketRecord>,
) -> Verdict {
    let earlier = last.map(|r| Earlier {
        slot: r.slot,
        addr: r.backend,
        port: r.backend_port,
    });
    match find(tables, addr, port, proto, Scope::Inside, earlier) {
        Found::NotAService => Verdict::Pass,
        Found::Endpoint(c) => Verdict::To {
            renewed: !last.is_some_and(|r| is(&r, &c.backend)),
            record: SocketRecord {
                service: addr,
                backend: c.backend.addr,
                service_port: port,
                backend_port: c.backend.port,
                set: c.frontend.set,
                generation: c.frontend.generation,
                slot: c.slot,
            },
        },
        Found::Nowhere(refusal) => refused(refusal),
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
        Refusal::NoPort => Verdict::Refuse(Reason::SocketNoPort),
        Refusal::SlotMissing => Verdict::Refuse(Reason::SlotMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::host;
    use crate::packet::tests::ip;

    const PORT: Be16 = Be16::new(53);

    fn record(v: Verdict) -> SocketRecord {
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
        let first = record(send(&h, ip("10.96.0.10"), PORT, Proto::UDP, None));
        for _ in 0..50 {
            let v = send(&h, ip("10.96.0.10"), PORT, Proto::UDP, Some(first));
            assert_eq!(
                v,
                Verdict::To {
                    record: first,
                    renewed: false
                }
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
        match send(&h, ip("10.96.0.10"), PORT, Proto::UDP, Some(other)) {
            Verdict::To { renewed, .. } => assert!(renewed),
            v => panic!("{v:?}"),
        }
    }

    #[test]
    fn a_peer_is_shown_as_the_service_only_if_it_is_the_endpoint() {
        let h = host("10.96.0.10", 53, Proto::UDP, &[("10.0.0.1", 5353)]);
        let r = record(connect(&h, ip("10.96.0.10"), PORT, Proto::UDP));
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
            connect(&h, ip("10.96.0.10"), PORT, Proto::UDP),
            Verdict::Refuse(Reason::SocketNoEndpoint)
        );
    }
}
