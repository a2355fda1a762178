use super::*;
use crate::host::sample::{Host, host, ip};
use crate::packet::tests::{checksums_hold, frame};
use crate::packet::{Parsed, parse, tcp};
use crate::rewrite::apply;
use datapath_abi::{Address, Be16, FrontendFlags, FrontendKey, FrontendValue, Proto};
use std::vec::Vec;

const CLIENT: &str = "203.0.113.2";

/// A node port with an endpoint on another node.
fn remote() -> Host {
    host("192.0.2.1", 30080, Proto::TCP, &[("10.0.9.1", 8080)])
}

fn ends(bytes: &[u8]) -> (Address, u16, Address, u16) {
    let p = parse(bytes).unwrap();
    (p.src, p.sport.get(), p.dst, p.dport.get())
}

/// A hook's verdict carried out on the bytes; panics unless it is a rewrite that leaves right checksums.
fn through_hook(bytes: &mut [u8], verdict: Verdict) -> Reason {
    match verdict {
        Verdict::Rewrite(r, reason) => {
            assert!(apply(bytes, &r), "{r:?} is not applied");
            assert!(checksums_hold(bytes), "{r:?} leaves a wrong checksum");
            reason
        }
        other => panic!("{other:?} for {:?}", parse(bytes)),
    }
}

fn run(h: &Host, bytes: &mut [u8], hook: fn(&Host, &[u8], &Parsed, u32) -> Verdict) -> Reason {
    let verdict = hook(h, bytes, &parse(bytes).unwrap(), bytes.len() as u32);
    through_hook(bytes, verdict)
}

fn verdict(h: &Host, bytes: &[u8], hook: fn(&Host, &[u8], &Parsed, u32) -> Verdict) -> Verdict {
    hook(h, bytes, &parse(bytes).unwrap(), bytes.len() as u32)
}

/// Client → node port → endpoint on another node, both stages; returns the packet as the endpoint sees it.
fn sent_on(h: &Host, client: &str, front: &str, sport: u16) -> Vec<u8> {
    let mut bytes = frame(client, front, Proto::TCP, sport, 30080, b"");
    assert_eq!(run(h, &mut bytes, from_uplink), Reason::PacketForwarded);
    assert_eq!(run(h, &mut bytes, to_uplink), Reason::PacketMasqueraded);
    bytes
}

#[test]
fn a_remote_endpoint_is_asked_in_the_nodes_name_and_its_answer_shown_as_the_fronts() {
    for (client, front, endpoint) in [
        (CLIENT, "192.0.2.1", "10.0.9.1"),
        ("2001:db8:5::1", "2001:db8::1", "fd00::9:1"),
    ] {
        let h = host(front, 30080, Proto::TCP, &[(endpoint, 8080)]);
        let bytes = sent_on(&h, client, front, 5555);
        let (src, nat, dst, port) = ends(&bytes);
        assert_eq!((src, dst, port), (ip(front), ip(endpoint), 8080));
        assert!(crate::open::is_given(nat));

        let mut answer = frame(endpoint, front, Proto::TCP, 8080, nat, b"");
        assert_eq!(run(&h, &mut answer, from_uplink), Reason::PacketAnswered);
        assert_eq!(run(&h, &mut answer, to_uplink), Reason::PacketAnswered);
        assert_eq!(ends(&answer), (ip(front), 30080, ip(client), 5555));
    }
}

#[test]
fn a_local_endpoint_sees_the_client() {
    let h = host("192.0.2.1", 30080, Proto::TCP, &[("10.0.0.1", 8080)]);
    let mut bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    run(&h, &mut bytes, from_uplink);
    assert_eq!(verdict(&h, &bytes, to_pod), Verdict::Pass);
    assert_eq!(ends(&bytes), (ip(CLIENT), 5555, ip("10.0.0.1"), 8080));
    let mut answer = frame("10.0.0.1", CLIENT, Proto::TCP, 8080, 5555, b"");
    assert_eq!(verdict(&h, &answer, from_pod), Verdict::Pass);
    run(&h, &mut answer, to_uplink);
    assert_eq!(ends(&answer), (ip("192.0.2.1"), 30080, ip(CLIENT), 5555));
}

#[test]
fn clients_of_one_endpoint_have_different_ports_of_the_node() {
    let h = remote();
    let ports: std::collections::HashSet<u16> = (0..200)
        .map(|i| ends(&sent_on(&h, CLIENT, "192.0.2.1", 1000 + i)).1)
        .collect();
    assert_eq!(ports.len(), 200);
}

#[test]
fn a_new_connection_is_dropped_when_no_port_towards_the_endpoint_is_left() {
    let h = remote();
    sent_on(&h, CLIENT, "192.0.2.1", 1);
    let taken = h
        .flows
        .borrow()
        .keys()
        .find(|k| k.dst == ip("192.0.2.1") && k.src == ip("10.0.9.1"))
        .copied();
    let template = taken.unwrap();
    for port in 1..=u16::MAX {
        let key = datapath_abi::FlowKey {
            dport: Be16::new(port),
            ..template
        };
        h.flows.borrow_mut().entry(key).or_default();
    }
    let bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 2, 30080, b"");
    assert_eq!(
        verdict(&h, &bytes, from_uplink),
        Verdict::Drop(Reason::NatPortsUsedUp)
    );
}

#[test]
fn ports_of_connections_that_are_closed_are_given_again() {
    let h = remote();
    sent_on(&h, CLIENT, "192.0.2.1", 1);
    let taken = h
        .flows
        .borrow()
        .keys()
        .find(|k| k.dst == ip("192.0.2.1") && k.src == ip("10.0.9.1"))
        .copied();
    for port in 1..=u16::MAX {
        let key = datapath_abi::FlowKey {
            dport: Be16::new(port),
            ..taken.unwrap()
        };
        h.flows.borrow_mut().entry(key).or_default().state = datapath_abi::FlowState::CLOSING;
    }
    let bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 2, 30080, b"");
    assert_eq!(
        verdict(&h, &bytes, from_uplink),
        Verdict::Drop(Reason::NatPortsUsedUp)
    );
    h.clock.set(3_000_000_000);
    assert!(matches!(verdict(&h, &bytes, from_uplink), Verdict::Rewrite(..)));
}

#[test]
fn a_pod_that_draws_itself_is_answered() {
    for (pod, vip) in [("10.0.0.7", "10.96.0.1"), ("fd00::7", "fd00:10:96::1")] {
        let h = host(vip, 80, Proto::TCP, &[(pod, 8080)]);
        let mut bytes = frame(pod, vip, Proto::TCP, 5555, 80, b"");
        run(&h, &mut bytes, from_pod);
        assert_eq!(run(&h, &mut bytes, to_pod), Reason::PacketMasqueraded);
        let (src, nat, dst, port) = ends(&bytes);
        assert_eq!((dst, port), (ip(pod), 8080));
        assert!(src != ip(pod), "it would not look at it as from elsewhere");

        let own = if pod.contains(':') {
            "2001:db8::1"
        } else {
            "192.0.2.1"
        };
        assert_eq!(src, ip(own));
        let mut answer = frame(pod, own, Proto::TCP, 8080, nat, b"");
        run(&h, &mut answer, from_pod);
        run(&h, &mut answer, to_pod);
        assert_eq!(ends(&answer), (ip(vip), 80, ip(pod), 5555));
    }
}

/// An ICMP error from `router` to the source of `about`, quoting its first bytes.
fn error(router: &str, about: &[u8], quoted: usize) -> Vec<u8> {
    let p = parse(about).unwrap();
    let v4 = p.src.is_v4();
    let to = std::format!("{}", p.src.to_ip());
    // A datagram whose transport header becomes that of the error.
    let quote = &about[14..(14 + quoted).min(about.len())];
    let mut bytes = frame(router, &to, Proto::UDP, 0, 0, quote);
    let l4 = parse(&bytes[..]).unwrap().l4 as usize;
    let (kind, proto) = if v4 { (3, 1) } else { (2, 58) };
    bytes[l4..l4 + 8].copy_from_slice(&[kind, 4, 0, 0, 0, 0, 5, 0]);
    bytes[if v4 { 23 } else { 20 }] = proto;
    if v4 {
        bytes[24..26].fill(0);
        let mut header = [0; 20];
        header.copy_from_slice(&bytes[14..34]);
        let check = crate::checksum::finish(crate::checksum::add(0, &header));
        bytes[24..26].copy_from_slice(&check);
    }
    crate::packet::tests::sum_up(&mut bytes, 2);
    assert!(checksums_hold(&bytes));
    bytes
}

/// The packet that an error quotes.
fn quote_of(bytes: &[u8]) -> (Address, u16, Address, u16) {
    let p = parse(bytes).unwrap();
    let q = crate::packet::quoted(bytes, &p).unwrap();
    (q.src, q.sport.get(), q.dst, q.dport.get())
}

#[test]
fn an_error_about_a_masqueraded_request_reaches_the_client_as_one_about_its_own() {
    for (client, front, endpoint, router) in [
        (CLIENT, "192.0.2.1", "10.0.9.1", "10.0.8.8"),
        ("2001:db8:5::1", "2001:db8::1", "fd00::9:1", "fd00::8:8"),
    ] {
        let h = host(front, 30080, Proto::TCP, &[(endpoint, 8080)]);
        let request = sent_on(&h, client, front, 5555);
        for quoted in [if client.contains(':') { 48 } else { 28 }, 200] {
            let mut bytes = error(router, &request, quoted);
            assert_eq!(run(&h, &mut bytes, from_uplink), Reason::ErrorTranslated);
            assert_eq!(run(&h, &mut bytes, to_uplink), Reason::ErrorTranslated);
            assert_eq!(quote_of(&bytes), (ip(client), 5555, ip(front), 30080));
            assert_eq!(ends(&bytes).2, ip(client));
        }
    }
}

#[test]
fn an_error_about_an_answer_reaches_the_endpoint_as_one_about_its_own() {
    for (pod, vip, endpoint) in [
        ("10.0.0.7", "10.96.0.1", "10.0.9.1"),
        ("fd00::7", "fd00:10:96::1", "fd00::9:1"),
    ] {
        let h = host(vip, 80, Proto::TCP, &[(endpoint, 8080)]);
        let mut request = frame(pod, vip, Proto::TCP, 5555, 80, b"");
        run(&h, &mut request, from_pod);
        let mut answer = frame(endpoint, pod, Proto::TCP, 8080, 5555, b"a long answer");
        run(&h, &mut answer, to_pod);
        // The pod finds the answer too long, and says so to the service.
        let mut bytes = error(pod, &answer, 200);
        run(&h, &mut bytes, from_pod);
        assert_eq!(quote_of(&bytes), (ip(endpoint), 8080, ip(pod), 5555));
        assert_eq!(ends(&bytes).2, ip(endpoint));
    }
}

#[test]
fn an_error_about_nothing_that_was_translated_is_left_alone() {
    let h = remote();
    let stray = frame("192.0.2.1", "10.0.9.1", Proto::TCP, 4000, 8080, b"");
    let bytes = error("10.0.8.8", &stray, 28);
    assert_eq!(verdict(&h, &bytes, from_uplink), Verdict::Pass);
    assert_eq!(verdict(&h, &bytes, to_uplink), Verdict::Pass);
}

/// A datagram's fragments: the first with the header, then one without.
fn fragments(dst: &str, payload: &[u8]) -> [Vec<u8>; 2] {
    let whole = frame("10.0.0.7", dst, Proto::UDP, 5555, 53, payload);
    let header = |more: bool, offset: u16| {
        let mut h = whole[..34].to_vec();
        h[18..20].copy_from_slice(&[7, 7]);
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        h[20..22].copy_from_slice(&field.to_be_bytes());
        h[24..26].fill(0);
        let check = crate::checksum::finish(crate::checksum::add(0, h[14..34].first_chunk::<20>().unwrap()));
        h[24..26].copy_from_slice(&check);
        h
    };
    let first = [header(true, 0), whole[34..50].to_vec()].concat();
    let second = [header(false, 16), whole[50..].to_vec()].concat();
    [first, second]
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    let h = host(
        "10.96.0.1",
        53,
        Proto::UDP,
        &[("10.0.9.1", 5353), ("10.0.9.2", 5353)],
    );
    let [mut first, mut second] = fragments("10.96.0.1", b"a question of some length");
    assert_eq!(
        verdict(&h, &second, from_pod),
        Verdict::Drop(Reason::PacketFragment),
        "it came before the first"
    );
    for bytes in [&mut first, &mut second] {
        let v = verdict(&h, bytes, from_pod);
        let Verdict::Rewrite(r, _) = v else {
            panic!("{v:?}")
        };
        assert!(apply(&mut bytes[..], &r));
    }
    let (a, b) = (parse(&first[..]).unwrap(), parse(&second[..]).unwrap());
    assert_eq!(a.dst, b.dst);
    assert_eq!(a.dport.get(), 5353);
    // Put together again, the datagram is whole.
    let mut whole = first.clone();
    whole.extend_from_slice(&second[34..]);
    let length = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&length.to_be_bytes());
    whole[20..22].fill(0);
    whole[24..26].fill(0);
    let check = crate::checksum::finish(crate::checksum::add(
        0,
        whole[14..34].first_chunk::<20>().unwrap(),
    ));
    whole[24..26].copy_from_slice(&check);
    assert!(checksums_hold(&whole));
}

#[test]
fn policy_local_counts_for_clients_from_outside_only() {
    let mut h = host("192.0.2.1", 30080, Proto::TCP, &[("10.0.9.1", 8080)]);
    let key = FrontendKey::new(ip("192.0.2.1"), Be16::new(30080), Proto::TCP);
    let v: &mut FrontendValue = h.maps.frontends.get_mut(&key).unwrap();
    v.flags = FrontendFlags::EXTERNAL
        .with(FrontendFlags::LOCAL_OUTSIDE)
        .with(FrontendFlags::ELSEWHERE);
    let from = |src: &str| {
        verdict(
            &h,
            &frame(src, "192.0.2.1", Proto::TCP, 9, 30080, b""),
            from_uplink,
        )
    };
    assert_eq!(from(CLIENT), Verdict::Drop(Reason::PacketNoLocalEndpoint));
    assert!(
        matches!(from("10.0.9.7"), Verdict::Rewrite(..)),
        "a pod of another node"
    );
}

#[test]
fn uplinks_are_left_alone_where_nothing_is_served_there() {
    let mut h = remote();
    h.settings.flags = datapath_abi::SettingsFlags::default();
    let bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    assert_eq!(verdict(&h, &bytes, from_uplink), Verdict::Pass);
    assert_eq!(through(&h, &parse(&bytes[..]).unwrap(), 60), Through::ToStack);
    assert!(h.flows.borrow().is_empty());
}

#[test]
fn a_connection_outlives_its_service() {
    let mut h = remote();
    sent_on(&h, CLIENT, "192.0.2.1", 5555);
    h.maps.frontends.clear();
    let mut bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    assert_eq!(
        verdict(&h, &bytes, from_uplink),
        Verdict::Pass,
        "a new one is the node's business"
    );
    bytes[47] = tcp::ACK;
    crate::packet::tests::sum_up(&mut bytes, 16);
    run(&h, &mut bytes, from_uplink);
    assert_eq!(ends(&bytes).2, ip("10.0.9.1"));
}

#[test]
fn what_only_passes_the_node_is_changed_in_one_stage_both_ways() {
    let h = remote();
    let mut bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    let both = |bytes: &mut [u8]| {
        let Through::Send {
            destination, source, ..
        } = through(&h, &parse(bytes).unwrap(), bytes.len() as u32)
        else {
            panic!("left to the stack: {:?}", parse(bytes));
        };
        assert!(apply(bytes, &destination) && apply(bytes, &source));
        assert!(checksums_hold(bytes));
    };
    both(&mut bytes);
    let (src, nat, dst, port) = ends(&bytes);
    assert_eq!((src, dst, port), (ip("192.0.2.1"), ip("10.0.9.1"), 8080));
    let mut answer = frame("10.0.9.1", "192.0.2.1", Proto::TCP, 8080, nat, b"");
    both(&mut answer);
    assert_eq!(ends(&answer), (ip("192.0.2.1"), 30080, ip(CLIENT), 5555));
}

#[test]
fn what_is_unusual_or_for_a_local_endpoint_is_left_to_the_stack() {
    let h = host("192.0.2.1", 30080, Proto::TCP, &[("10.0.0.1", 8080)]);
    let bytes = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    assert_eq!(through(&h, &parse(&bytes[..]).unwrap(), 60), Through::ToStack);
    let h = host("192.0.2.1", 53, Proto::UDP, &[("10.0.9.1", 5353)]);
    let [first, _] = fragments("192.0.2.1", b"a question of some length");
    assert_eq!(through(&h, &parse(&first[..]).unwrap(), 60), Through::ToStack);
}

/// Carries out what becomes of a packet that the node itself sends: both ends may change.
fn own(h: &Host, bytes: &mut [u8]) -> Reason {
    let (verdict, turned) = from_node(h, bytes, &parse(bytes).unwrap(), bytes.len() as u32);
    let reason = through_hook(bytes, verdict);
    if let Some(source) = turned {
        assert!(apply(bytes, &source) && checksums_hold(bytes), "{source:?}");
    }
    reason
}

#[test]
fn the_nodes_own_sockets_see_the_service_whichever_way_the_answer_comes_in() {
    for (node, vip, local, remote) in [
        ("192.0.2.1", "10.96.0.10", "10.0.0.1", "10.0.9.1"),
        ("2001:db8::1", "fd00:10:96::10", "fd00::1", "fd00::9:1"),
    ] {
        for (endpoint, comes_in) in [
            (local, from_pod as fn(&Host, &[u8], &Parsed, u32) -> Verdict),
            (remote, from_uplink),
        ] {
            let mut h = host(vip, 80, Proto::TCP, &[(endpoint, 8080)]);
            h.settings.flags = SettingsFlags(0);
            let mut request = frame(node, vip, Proto::TCP, 700, 80, b"");
            assert_eq!(own(&h, &mut request), Reason::PacketForwarded);
            assert_eq!(
                ends(&request),
                (ip(node), 700, ip(endpoint), 8080),
                "its own address is kept"
            );
            h.settings.flags = SettingsFlags::OWN;
            let mut answer = frame(endpoint, node, Proto::TCP, 8080, 700, b"");
            assert_eq!(run(&h, &mut answer, comes_in), Reason::PacketAnswered);
            assert_eq!(ends(&answer), (ip(vip), 80, ip(node), 700));
            let other = frame(endpoint, node, Proto::TCP, 8080, 701, b"");
            assert_eq!(verdict(&h, &other, comes_in), Verdict::Pass, "no service's");
        }
    }
}

#[test]
fn an_endpoint_of_the_node_and_the_nodes_own_client_see_the_service_in_one_anothers_place() {
    let h = host("10.96.0.1", 443, Proto::TCP, &[("192.0.2.1", 6443)]);
    let mut request = frame("192.0.2.1", "10.96.0.1", Proto::TCP, 5555, 443, b"");
    assert_eq!(own(&h, &mut request), Reason::PacketForwarded);
    let (src, nat, dst, port) = ends(&request);
    assert_eq!((src, dst, port), (ip("10.96.0.1"), ip("192.0.2.1"), 6443));
    let mut answer = frame("192.0.2.1", "10.96.0.1", Proto::TCP, 6443, nat, b"");
    assert_eq!(own(&h, &mut answer), Reason::PacketAnswered);
    assert_eq!(ends(&answer), (ip("10.96.0.1"), 443, ip("192.0.2.1"), 5555));
}

#[test]
fn the_nodes_own_packets_are_looked_at_where_they_may_be_for_a_service() {
    let mut h = host("10.96.0.10", 80, Proto::TCP, &[]);
    let ask = |h: &Host, from: &str, to: &str, port: u16| {
        let bytes = frame(from, to, Proto::TCP, 700, port, b"");
        from_node(h, &bytes[..], &parse(&bytes[..]).unwrap(), bytes.len() as u32).0
    };
    assert_eq!(
        ask(&h, "192.0.2.1", "10.96.0.10", 80),
        Verdict::Reject(Reason::PacketNoEndpoint)
    );
    assert_eq!(
        ask(&h, "192.0.2.1", "10.96.0.10", 81),
        Verdict::Reject(Reason::PacketNoPort)
    );
    assert_eq!(
        ask(&h, "192.0.2.1", "10.96.0.99", 80),
        Verdict::Drop(Reason::PacketNoService)
    );
    assert_eq!(ask(&h, "10.0.0.7", "10.96.0.10", 80), Verdict::Pass, "a pod's");
    h.add("203.0.113.10", 80, Proto::TCP, &[]);
    assert_eq!(
        ask(&h, "192.0.2.1", "203.0.113.10", 80),
        Verdict::Reject(Reason::PacketNoEndpoint)
    );
    h.settings.flags = SettingsFlags(0);
    assert_eq!(
        ask(&h, "192.0.2.1", "203.0.113.10", 80),
        Verdict::Pass,
        "no external fronts are known"
    );
}
fn middle(src: &str, dst: &str, sport: u16, dport: u16) -> Vec<u8> {
    let mut bytes = frame(src, dst, Proto::TCP, sport, dport, b"");
    bytes[47] = tcp::ACK;
    crate::packet::tests::sum_up(&mut bytes, 16);
    bytes
}

#[test]
fn the_middle_of_a_connection_that_began_under_another_proxy_is_left_to_it() {
    let mut h = remote();
    h.add("10.96.0.1", 80, Proto::TCP, &[("10.0.9.1", 8080)]);
    let known = sent_on(&h, CLIENT, "192.0.2.1", 5555);
    h.settings.flags = h.settings.flags.set(SettingsFlags::FOREIGN, true);
    let theirs = middle(CLIENT, "192.0.2.1", 6666, 30080);
    assert_eq!(verdict(&h, &theirs, from_uplink), Verdict::Pass);
    assert_eq!(through(&h, &parse(&theirs[..]).unwrap(), 60), Through::ToStack);
    let theirs = middle("10.0.0.7", "10.96.0.1", 6666, 80);
    assert_eq!(verdict(&h, &theirs, from_pod), Verdict::Pass);
    let of_gone_service = middle("10.0.0.7", "10.96.0.2", 6666, 80);
    assert_eq!(verdict(&h, &of_gone_service, from_pod), Verdict::Pass);

    let ours = middle(CLIENT, "192.0.2.1", 5555, 30080);
    assert!(matches!(verdict(&h, &ours, from_uplink), Verdict::Rewrite(..)));
    assert!(known.len() > 40);
    let new = frame(CLIENT, "192.0.2.1", Proto::TCP, 6666, 30080, b"");
    assert!(matches!(verdict(&h, &new, from_uplink), Verdict::Rewrite(..)));
}

#[test]
fn answers_to_a_port_that_another_proxy_took_are_left_to_it_and_the_port_is_not_given() {
    let h = remote();
    let key = |port: u16| datapath_abi::FlowKey {
        src: ip("10.0.9.1"),
        dst: ip("192.0.2.1"),
        sport: Be16::new(8080),
        dport: Be16::new(port),
        proto: Proto::TCP,
        ..datapath_abi::FlowKey::default()
    };
    let theirs = datapath_abi::Flow {
        role: datapath_abi::FlowRole::FOREIGN,
        state: datapath_abi::FlowState::ESTABLISHED,
        addr: ip(CLIENT),
        ..datapath_abi::Flow::default()
    };
    let all = (1..=u16::MAX).map(|port| (key(port), theirs));
    h.flows.borrow_mut().extend(all);
    let answer = middle("10.0.9.1", "192.0.2.1", 8080, 2000);
    assert_eq!(verdict(&h, &answer, from_uplink), Verdict::Pass);
    assert_eq!(through(&h, &parse(&answer[..]).unwrap(), 60), Through::ToStack);
    let new = frame(CLIENT, "192.0.2.1", Proto::TCP, 5555, 30080, b"");
    assert_eq!(
        verdict(&h, &new, from_uplink),
        Verdict::Drop(Reason::NatPortsUsedUp)
    );
}

#[test]
fn a_node_that_is_left_goes_on_with_what_it_knows_and_with_nothing_else() {
    let mut h = remote();
    h.add("10.96.0.1", 80, Proto::TCP, &[]);
    sent_on(&h, CLIENT, "192.0.2.1", 5555);
    h.settings.flags = h.settings.flags.set(SettingsFlags::LEAVING, true);
    let new = |src: &str, dst: &str, port| frame(src, dst, Proto::TCP, 6666, port, b"");
    assert_eq!(
        verdict(&h, &new(CLIENT, "192.0.2.1", 30080), from_uplink),
        Verdict::Pass
    );
    for vip in ["10.96.0.1", "10.96.0.2"] {
        assert_eq!(verdict(&h, &new("10.0.0.7", vip, 80), from_pod), Verdict::Pass);
    }
    let ours = middle(CLIENT, "192.0.2.1", 5555, 30080);
    assert!(matches!(verdict(&h, &ours, from_uplink), Verdict::Rewrite(..)));
}
