//! Names of others: asked of the servers in charge, and remembered for a while.

use crate::wire::{Question, UDP_LIMIT, lower};
use agent_names::{Cache, Routes};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long one server gets for one try.
const TRY: Duration = Duration::from_millis(1500);
/// How long all tries together may take: the client gives up after five seconds (resolv.conf(5)).
const ALL: Duration = Duration::from_millis(4500);
/// How often the list of servers is gone through.
const ROUNDS: usize = 2;

/// What is known of other servers, and bounds.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// Whom to ask.
    pub routes: Routes,
    /// How many answers are remembered at most.
    pub remembered: usize,
    /// The longest a positive answer is remembered.
    pub longest: Duration,
    /// The longest a negative answer is remembered.
    pub longest_negative: Duration,
    /// How many questions may be under way at a time; more are refused at once.
    pub at_once: usize,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            routes: Routes::default(),
            remembered: 10_000,
            longest: Duration::from_secs(60),
            longest_negative: Duration::from_secs(30),
            at_once: 1000,
        }
    }
}

/// An answer of another server.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: Box<str>,
    kind: u16,
    dnssec: bool,
    unchecked: bool,
}

pub(crate) struct Forwarder {
    config: ForwardConfig,
    cache: Mutex<Cache<Key, Arc<Kept>>>,
    under_way: Arc<Semaphore>,
    start: Instant,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the server cannot be reached")]
    Reach(#[from] io::Error),
    #[error("the server did not answer in time")]
    Silent(#[from] tokio::time::error::Elapsed),
    #[error("the question cannot be written")]
    Write(#[from] hickory_proto::ProtoError),
    #[error("the server sent something else")]
    Garbled,
    #[error("the server said {0}")]
    Said(ResponseCode),
}

impl Forwarder {
    pub(crate) fn new(config: ForwardConfig) -> Self {
        Self {
            cache: Mutex::new(Cache::new(config.remembered)),
            under_way: Arc::new(Semaphore::new(config.at_once)),
            start: Instant::now(),
            config,
        }
    }

    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.under_way).try_acquire_owned().ok()
    }

    /// An answer from memory, its times reduced by its age.
    pub(crate) fn remembered(&self, name: &str, question: &Question) -> Option<Kept> {
        let key = key(name, question);
        let now = self.start.elapsed();
        let (kept, age) = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let (kept, age) = cache.get(&key, now)?;
            (Arc::clone(kept), age)
        };
        let mut kept = Kept::clone(&kept);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in kept.answers.iter_mut().chain(&mut kept.authorities) {
            record.decrement_ttl(age);
        }
        Some(kept)
    }

    /// Asks the servers in charge of the name, one after the other.
    pub(crate) async fn ask(&self, target: &Name, name: &str, question: &Question) -> Option<Kept> {
        let servers = self.config.routes.servers(name);
        let mut query = Query::query(target.clone(), question.query.query_type);
        query.set_query_class(question.query.query_class);
        let ask = async {
            let mut failure = None;
            for server in std::iter::repeat_n(servers, ROUNDS).flatten() {
                match exchange(*server, &query, question).await {
                    Ok(message) => return Ok(message),
                    Err(error) => failure = Some((server, error)),
                }
            }
            Err(failure)
        };
        let message = match timeout(ALL, ask).await {
            Ok(Ok(message)) => message,
            Ok(Err(failure)) => {
                if let Some((server, error)) = failure {
                    tracing::debug!(name, %server, error = &error as &dyn std::error::Error, "no answer");
                }
                return None;
            }
            Err(_) => return None,
        };
        let kept = Kept {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
        };
        self.remember(name, question, &kept);
        Some(kept)
    }

    fn remember(&self, name: &str, question: &Question, kept: &Kept) {
        let Some(life) = self.life(kept) else {
            return;
        };
        let now = self.start.elapsed();
        let (key, kept) = (key(name, question), Arc::new(kept.clone()));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put(key, kept, now, life);
    }

    /// How long an answer may be remembered: RFC 2181 section 8, for negative ones RFC 2308 section 5.
    fn life(&self, kept: &Kept) -> Option<Duration> {
        let seconds = |s| Duration::from_secs(u64::from(s));
        if kept.code == ResponseCode::NoError && !kept.answers.is_empty() {
            let least = kept.answers.iter().map(|r| r.ttl).min()?;
            return Some(seconds(least).min(self.config.longest));
        }
        let negative = kept.authorities.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(soa.minimum.min(r.ttl)),
            _ => None,
        });
        Some(seconds(negative?).min(self.config.longest_negative))
    }
}

fn key(name: &str, question: &Question) -> Key {
    Key {
        name: name.into(),
        kind: question.query.query_type.into(),
        dnssec: question.edns.is_some_and(|e| e.dnssec),
        unchecked: question.head.checking_disabled,
    }
}

/// Asks one server: over UDP, and over TCP what does not fit. A fresh port and identifier for each question make forged
/// answers unlikely (RFC 5452).
async fn exchange(server: SocketAddr, query: &Query, question: &Question) -> Result<Message, AskError> {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.head.checking_disabled;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_LIMIT);
    edns.set_dnssec_ok(question.edns.is_some_and(|e| e.dnssec));
    message.set_edns(edns);
    let bytes = message.to_vec()?;
    let mut reply = timeout(TRY, over_udp(server, &bytes, &message)).await??;
    if reply.metadata.truncation {
        reply = timeout(TRY, over_tcp(server, &bytes)).await??;
        if !fits(&reply, &message) {
            return Err(AskError::Garbled);
        }
    }
    match reply.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(reply),
        code => Err(AskError::Said(code)),
    }
}

async fn over_udp(server: SocketAddr, bytes: &[u8], asked: &Message) -> Result<Message, AskError> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(reply) if fits(&reply, asked) => return Ok(reply),
            // Somebody else's guess, or a late answer: ours may still come.
            _ => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> Result<Message, AskError> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| AskError::Garbled)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    Message::from_vec(&buffer).map_err(|_| AskError::Garbled)
}

fn fits(reply: &Message, asked: &Message) -> bool {
    let same = |a: &Query, b: &Query| {
        a.query_type == b.query_type && a.query_class == b.query_class && lower(&a.name) == lower(&b.name)
    };
    reply.metadata.message_type == MessageType::Response
        && reply.metadata.id == asked.metadata.id
        && matches!((&*reply.queries, &*asked.queries), ([a], [b]) if same(a, b))
}
