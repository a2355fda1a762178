//! A server on the loopback address, asked over the wire.
#![allow(clippy::unwrap_used)]

use agent_dns::names::{Routes, ServiceView, SliceView, Zone, ZoneConfig};
use agent_dns::sockets::{self, Sockets};
use agent_dns::{ForwardConfig, Now, Server, Transport, serve};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn service(zone: &mut Zone, name: &str, spec: &str) {
    let text = format!(r#"{{"metadata": {{"namespace": "default", "name": "{name}"}}, "spec": {spec}}}"#);
    zone.service(ServiceView::of(&parse(&text)).unwrap());
}

fn slice(zone: &mut Zone, service: &str, addresses: impl Iterator<Item = Ipv4Addr>) {
    let endpoints: Vec<String> = addresses
        .map(|a| format!(r#"{{"addresses": ["{a}"]}}"#))
        .collect();
    let text = format!(
        r#"{{"metadata": {{"namespace": "default", "name": "{service}-a", "labels": {{"kubernetes.io/service-name": "{service}"}}}},
        "addressType": "IPv4", "endpoints": [{}], "ports": [{{"name": "http", "port": 8080, "protocol": "TCP"}}]}}"#,
        endpoints.join(",")
    );
    zone.slice(SliceView::of(&parse(&text)).unwrap());
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

fn zone() -> Zone {
    let mut zone = Zone::new(ZoneConfig {
        origin: "cluster.local".into(),
        servers: vec![Ipv4Addr::new(10, 3, 0, 10).into()],
    });
    let web = r#"{"clusterIP": "10.3.0.1", "clusterIPs": ["10.3.0.1", "fd00::1"], "ports": [{"name": "http", "port": 80}]}"#;
    service(&mut zone, "web", web);
    service(&mut zone, "many", r#"{"clusterIP": "None"}"#);
    slice(&mut zone, "many", (0..200).map(|n| Ipv4Addr::new(10, 4, 0, n)));
    for (name, target) in [
        ("outside", "www.example.com"),
        ("inside", "web.default.svc.cluster.local"),
        ("nowhere", "gone.default.svc.cluster.local"),
        ("round", "round.default.svc.cluster.local"),
    ] {
        let spec = format!(r#"{{"type": "ExternalName", "externalName": "{target}"}}"#);
        service(&mut zone, name, &spec);
    }
    zone
}

fn server(upstream: &[SocketAddr]) -> Arc<Server> {
    let routes = Routes::new(upstream.to_vec(), [], &[]);
    let config = ForwardConfig {
        routes,
        ..ForwardConfig::default()
    };
    let server = Server::new(zone(), config, 1_000_000);
    server.set_synced();
    server
}

fn message(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

/// What the server says without asking anybody.
fn at_once(server: &Server, message: &Message, transport: Transport) -> Message {
    let mut out = Vec::new();
    match server.now(&message.to_vec().unwrap(), transport, &mut out) {
        Now::Replied => Message::from_vec(&out).unwrap(),
        Now::Ask(_) => panic!("it wants to ask elsewhere"),
        Now::Nothing => panic!("it says nothing"),
    }
}

fn asked(server: &Server, name: &str, kind: RecordType) -> Message {
    at_once(server, &message(name, kind), Transport::Udp)
}

fn code(server: &Server, message: &Message) -> ResponseCode {
    at_once(server, message, Transport::Udp).metadata.response_code
}

const SERVICE: &str = "web.default.svc.cluster.local";
const MANY: &str = "many.default.svc.cluster.local";

#[test]
fn an_address_is_answered_with_authority_under_the_name_as_it_was_written() {
    let question = message("Web.DEFAULT.svc.Cluster.Local", RecordType::A);
    let reply = at_once(&server(&[]), &question, Transport::Udp);
    assert_eq!(reply.metadata.id, question.metadata.id);
    let head = reply.metadata;
    assert!(head.authoritative && head.recursion_available && head.recursion_desired);
    let [record] = &*reply.answers else {
        panic!("{reply:?}")
    };
    assert!(record.name.eq_case(&question.queries[0].name), "{record}");
    assert_eq!(record.data, RData::A(A::new(10, 3, 0, 1)));
    assert!(reply.queries[0].name.eq_case(&question.queries[0].name));
}

#[test]
fn nothing_of_that_kind_and_no_such_name_both_carry_the_soa_record() {
    let server = server(&[]);
    for (name, code) in [
        (SERVICE, ResponseCode::NoError),
        ("no.default.svc.cluster.local", ResponseCode::NXDomain),
    ] {
        let reply = asked(&server, name, RecordType::MX);
        assert_eq!(reply.metadata.response_code, code);
        assert_eq!(reply.answers, []);
        let [soa] = &*reply.authorities else {
            panic!("{reply:?}")
        };
        assert_eq!(soa.name.to_ascii(), "cluster.local.");
        let fine = matches!(&soa.data, RData::SOA(soa) if soa.minimum == 5 && soa.serial > 1_000_000);
        assert!(fine, "{soa}");
    }
}

#[test]
fn other_classes_and_transfers_are_refused_and_other_operations_not_known() {
    let server = server(&[]);
    let mut chaos = message("version.bind", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&server, &chaos), ResponseCode::Refused);
    let transfer = message("cluster.local", RecordType::AXFR);
    assert_eq!(code(&server, &transfer), ResponseCode::Refused);
    let mut status = message(SERVICE, RecordType::A);
    status.metadata.op_code = OpCode::Status;
    assert_eq!(code(&server, &status), ResponseCode::NotImp);
    let mut two = message(SERVICE, RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(code(&server, &two), ResponseCode::FormErr);
}

#[test]
fn a_later_version_of_edns_is_not_understood() {
    let mut question = message(SERVICE, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    question.set_edns(edns);
    // The code has two names: BADSIG is what it means in signatures.
    let code = u16::from(code(&server(&[]), &question));
    assert_eq!(code, u16::from(ResponseCode::BADVERS));
}

#[test]
fn what_is_too_long_is_cut_over_udp_and_whole_over_tcp() {
    let server = server(&[]);
    let mut question = message(MANY, RecordType::A);
    let lengths = |question: &Message, transport| {
        let mut out = Vec::new();
        let now = server.now(&question.to_vec().unwrap(), transport, &mut out);
        assert!(matches!(now, Now::Replied));
        let reply = Message::from_vec(&out).unwrap();
        (out.len(), reply.answers.len(), reply.metadata.truncation)
    };
    let (bytes, answers, cut) = lengths(&question, Transport::Udp);
    assert!(bytes <= 512 && answers > 20 && cut, "{bytes} {answers}");
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    question.set_edns(edns);
    let (bytes, answers, cut) = lengths(&question, Transport::Udp);
    assert!(bytes <= 1232 && answers > 60 && cut, "{bytes} {answers}");
    let (_, answers, cut) = lengths(&question, Transport::Tcp);
    assert_eq!((answers, cut), (200, false));
}

#[test]
fn additions_go_before_answers_do() {
    let server = server(&[]);
    let mut zone = zone();
    slice(&mut zone, "many", (0..7).map(|n| Ipv4Addr::new(10, 4, 0, n)));
    server.update(|z| *z = zone);
    let question = message("_http._tcp.many.default.svc.cluster.local", RecordType::SRV);
    let reply = at_once(&server, &question, Transport::Udp);
    let counts = (reply.answers.len(), reply.additionals.len());
    assert_eq!((counts, reply.metadata.truncation), ((7, 0), false));
    assert_eq!(at_once(&server, &question, Transport::Tcp).additionals.len(), 7);
}

#[test]
fn aliases_within_the_cluster_are_followed_and_circles_are_noticed() {
    let server = server(&[]);
    let reply = asked(&server, "inside.default.svc.cluster.local", RecordType::A);
    let kinds: Vec<_> = reply.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    assert_eq!(reply.answers[1].name.to_ascii(), format!("{SERVICE}."));
    let gone = asked(&server, "nowhere.default.svc.cluster.local", RecordType::A);
    assert_eq!(
        (gone.metadata.response_code, gone.answers.len()),
        (ResponseCode::NXDomain, 1)
    );
    let round = message("round.default.svc.cluster.local", RecordType::A);
    assert_eq!(code(&server, &round), ResponseCode::ServFail);
}

#[test]
fn a_zone_that_is_not_whole_yet_never_says_that_a_name_is_missing() {
    let server = Server::new(zone(), ForwardConfig::default(), 1);
    let question = message("no.default.svc.cluster.local", RecordType::A);
    assert_eq!(code(&server, &question), ResponseCode::ServFail);
    server.set_synced();
    assert_eq!(code(&server, &question), ResponseCode::NXDomain);
}

#[test]
fn the_longest_name_there_is_is_missing_like_any_other() {
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}.svc.cluster.local", "a".repeat(43));
    let question = message(&name, RecordType::A);
    assert_eq!(code(&server(&[]), &question), ResponseCode::NXDomain);
}

#[test]
fn a_label_with_a_dot_in_it_is_no_two_labels() {
    let mut question = message("x.svc.cluster.local", RecordType::A);
    let tail = Name::from_ascii("svc.cluster.local.").unwrap();
    question.queries[0].name = tail.prepend_label(&b"web.default"[..]).unwrap();
    assert_eq!(code(&server(&[]), &question), ResponseCode::NXDomain);
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_answered_with_its_identifier_or_not_at_all(
        packet in proptest::collection::vec(any::<u8>(), 0..600)
    ) {
        let server = server(&[]);
        let mut out = Vec::new();
        if matches!(server.now(&packet, Transport::Udp, &mut out), Now::Replied) {
            prop_assert_eq!(&out[..2], &packet[..2]);
            prop_assert!(out[2] & 0x80 != 0 && out.len() <= 1232);
        }
    }

    #[test]
    fn questions_with_changed_bytes_never_panic(
        changes in proptest::collection::vec((0..70usize, any::<u8>()), 0..6)
    ) {
        let server = server(&[]);
        let question = message("_http._tcp.many.default.svc.cluster.local", RecordType::SRV);
        let mut packet = question.to_vec().unwrap();
        for (at, value) in changes {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        let _ = server.now(&packet, Transport::Udp, &mut Vec::new());
    }
}

/// A server in the background, on sockets that somebody else keeps.
struct Running {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

fn run(server: Arc<Server>, sockets: Sockets) -> Running {
    let (stop, stopped) = oneshot::channel();
    let done = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        serve(server, sockets, stopped).await.unwrap();
    });
    Running { stop, done }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.done).await.unwrap().unwrap();
    }
}

/// Sockets on a free port of the loopback address: the same for both protocols.
fn free() -> (UdpSocket, TcpListener, SocketAddr) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(at) {
            udp.set_nonblocking(true).unwrap();
            tcp.set_nonblocking(true).unwrap();
            return (udp, tcp, at);
        }
    }
    panic!("no port is free for both protocols");
}

fn held(udp: &UdpSocket, tcp: &TcpListener) -> Sockets {
    Sockets {
        udp: vec![udp.try_clone().unwrap()],
        tcp: vec![tcp.try_clone().unwrap()],
    }
}

async fn client(at: SocketAddr) -> tokio::net::UdpSocket {
    let client = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    client.connect(at).await.unwrap();
    client
}

async fn over_udp(client: &tokio::net::UdpSocket, question: &Message) -> Message {
    client.send(&question.to_vec().unwrap()).await.unwrap();
    receive(client).await
}

async fn receive(client: &tokio::net::UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, client.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn write(stream: &mut tokio::net::TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &bytes].concat()).await.unwrap();
}

async fn read(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    buffer
}

async fn over_tcp(stream: &mut tokio::net::TcpStream, question: &Message) -> Message {
    write(stream, question).await;
    Message::from_vec(&read(stream).await).unwrap()
}

#[tokio::test]
async fn it_serves_udp_and_several_questions_on_one_connection() {
    let (udp, tcp, at) = free();
    let running = run(server(&[]), held(&udp, &tcp));
    let client = client(at).await;
    let reply = over_udp(&client, &message(SERVICE, RecordType::A)).await;
    assert_eq!(reply.answers[0].data, RData::A(A::new(10, 3, 0, 1)));
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    for _ in 0..3 {
        let reply = over_tcp(&mut stream, &message(MANY, RecordType::A)).await;
        assert_eq!(reply.answers.len(), 200);
    }
    running.stop().await;
}

#[tokio::test]
async fn questions_that_come_between_two_servers_are_answered_by_the_second() {
    let (udp, tcp, at) = free();
    let first = run(server(&[]), held(&udp, &tcp));
    let client = client(at).await;
    over_udp(&client, &message(SERVICE, RecordType::A)).await;
    first.stop().await;
    let mut waiting = std::collections::BTreeSet::new();
    for id in 0..100 {
        let mut question = message(SERVICE, RecordType::A);
        question.metadata.id = id;
        client.send(&question.to_vec().unwrap()).await.unwrap();
        waiting.insert(id);
    }
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let second = run(server(&[]), held(&udp, &tcp));
    while !waiting.is_empty() {
        let reply = receive(&client).await;
        assert!(waiting.remove(&reply.metadata.id), "answered twice");
    }
    over_tcp(&mut stream, &message(SERVICE, RecordType::A)).await;
    second.stop().await;
}

#[tokio::test]
async fn no_question_is_lost_over_restarts_under_load() {
    const RESTARTS: u32 = 25;
    let (udp, tcp, at) = free();
    let (count, mut counted) = tokio::sync::watch::channel(0_u32);
    let asking = tokio::spawn(async move {
        let client = client(at).await;
        // Until nobody counts any more.
        while count.receiver_count() > 0 {
            let reply = over_udp(&client, &message(SERVICE, RecordType::A)).await;
            assert_eq!(reply.answers.len(), 1);
            count.send_modify(|n| *n += 1);
        }
    });
    for _ in 0..RESTARTS {
        let running = run(server(&[]), held(&udp, &tcp));
        let enough = *counted.borrow() + 5;
        timeout(PATIENCE, counted.wait_for(|n| *n >= enough))
            .await
            .unwrap()
            .unwrap();
        running.stop().await;
    }
    drop(counted);
    // The last question may have been sent after the last stop.
    let last = run(server(&[]), held(&udp, &tcp));
    timeout(PATIENCE, asking).await.unwrap().unwrap();
    last.stop().await;
}

/// Another server: counts what it is asked, and answers `www.example.com`, `big.example.com` (too long for UDP) and
/// that all else is missing.
async fn other_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let (udp, tcp, at) = free();
    let count = Arc::new(AtomicUsize::new(0));
    let udp = tokio::net::UdpSocket::from_std(udp).unwrap();
    tokio::spawn(others_datagrams(udp, Arc::clone(&count)));
    let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let question = read(&mut stream).await;
            write(&mut stream, &others_answer(&question, false)).await;
        }
    });
    (at, count)
}

async fn others_datagrams(socket: tokio::net::UdpSocket, count: Arc<AtomicUsize>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        let reply = others_answer(&buffer[..length], true);
        // Somebody who guesses the identifier wrong must not be believed.
        let mut forged = reply.clone();
        forged.metadata.id ^= 1;
        forged.answers.clear();
        for message in [forged, reply] {
            socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
        }
    }
}

fn others_answer(question: &[u8], udp: bool) -> Message {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.add_query(query.clone());
    let address = |n| Record::from_rdata(query.name.clone(), 300, RData::A(A::new(192, 0, 2, n)));
    match query.name.to_lowercase().to_ascii().as_str() {
        "www.example.com." => reply.answers.push(address(1)),
        "big.example.com." if udp => reply.metadata.truncation = true,
        "big.example.com." => reply.answers.extend((0..100).map(address)),
        _ => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let root = Name::root();
            let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 20);
            reply
                .authorities
                .push(Record::from_rdata(root, 900, RData::SOA(soa)));
        }
    }
    reply
}

#[tokio::test]
async fn other_names_are_asked_elsewhere_once_and_then_remembered() {
    let (other, count) = other_server().await;
    let (udp, tcp, at) = free();
    let running = run(server(&[other]), held(&udp, &tcp));
    let client = client(at).await;
    for _ in 0..3 {
        let reply = over_udp(&client, &message("www.example.com", RecordType::A)).await;
        assert_eq!(reply.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        assert!(!reply.metadata.authoritative && reply.answers[0].ttl <= 300);
        let missing = over_udp(&client, &message("no.example.com", RecordType::A)).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(missing.authorities.len(), 1);
    }
    assert_eq!(count.load(Ordering::SeqCst), 2);
    running.stop().await;
}

#[tokio::test]
async fn an_alias_to_another_name_comes_with_its_addresses() {
    let (other, _) = other_server().await;
    let (udp, tcp, at) = free();
    let running = run(server(&[other]), held(&udp, &tcp));
    let client = client(at).await;
    for _ in 0..2 {
        let question = message("outside.default.svc.cluster.local", RecordType::A);
        let reply = over_udp(&client, &question).await;
        let kinds: Vec<_> = reply.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    }
    running.stop().await;
}

#[tokio::test]
async fn what_another_server_cuts_is_fetched_over_tcp() {
    let (other, _) = other_server().await;
    let (udp, tcp, at) = free();
    let running = run(server(&[other]), held(&udp, &tcp));
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let reply = over_tcp(&mut stream, &message("big.example.com", RecordType::A)).await;
    assert_eq!(reply.answers.len(), 100);
    running.stop().await;
}

#[tokio::test]
async fn a_dead_server_is_passed_over_and_without_any_the_client_hears_of_it_at_once() {
    let (other, _) = other_server().await;
    let dead = free().2;
    let (udp, tcp, at) = free();
    let question = message("www.example.com", RecordType::A);
    let running = run(server(&[dead, other]), held(&udp, &tcp));
    let client = client(at).await;
    assert_eq!(over_udp(&client, &question).await.answers.len(), 1);
    running.stop().await;
    let running = run(server(&[]), held(&udp, &tcp));
    let reply = over_udp(&client, &question).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    running.stop().await;
}

#[test]
fn sockets_that_are_given_are_taken_and_missing_ones_opened() {
    let (udp, tcp, at) = free();
    let given = vec![udp.try_clone().unwrap().into(), tcp.try_clone().unwrap().into()];
    let taken = sockets::take(&[at], given).unwrap();
    assert_eq!((taken.udp.len(), taken.tcp.len()), (1, 1));
    assert_eq!(taken.tcp[0].local_addr().unwrap(), at);
    drop((taken, udp, tcp));
    let opened = sockets::take(&[at], Vec::new()).unwrap();
    assert_eq!((opened.udp[0].local_addr().unwrap(), opened.tcp.len()), (at, 1));
    let refused = sockets::take(&[at], Vec::new()).unwrap_err();
    assert!(refused.to_string().contains("another DNS server"));
}
