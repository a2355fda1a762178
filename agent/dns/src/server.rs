//! One question, one answer.

use crate::forward::{ForwardConfig, Forwarder, Kept};
use crate::wire::{self, Packet, Question, Reply, Style};
use agent_names::{Code, Zone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// How long, in seconds, others may keep what the zone says: asking again costs next to nothing, being told of a change
/// late does not.
const TTL: u32 = 5;
/// How many aliases are followed within the zone.
const MOST_ALIASES: usize = 8;

/// How a question came; what is too long for UDP is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What can be said at once.
pub enum Now {
    /// The reply stands in the buffer.
    Replied,
    /// Another server has to be asked.
    Ask(Box<Pending>),
    /// There is nothing to say.
    Nothing,
}

/// A question that goes elsewhere.
pub struct Pending {
    question: Question,
    /// Aliases already followed: they come first in the answer.
    before: Vec<Record>,
    /// What is asked there.
    target: Name,
    lower: String,
}

/// Answers questions. Shared by all sockets.
pub struct Server {
    zone: RwLock<Zone>,
    synced: AtomicBool,
    forwarder: Forwarder,
    /// Seconds since 1970 when it was made: zones of later agents have higher serial numbers.
    born: u32,
    turn: AtomicUsize,
}

impl Server {
    /// A server for `zone`. `born` is the time of its making in seconds since 1970.
    #[must_use]
    pub fn new(zone: Zone, forward: ForwardConfig, born: u32) -> Arc<Self> {
        Arc::new(Self {
            zone: RwLock::new(zone),
            synced: AtomicBool::new(false),
            forwarder: Forwarder::new(forward),
            born,
            turn: AtomicUsize::new(0),
        })
    }

    /// Changes the zone.
    pub fn update<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that the zone is whole: until then it cannot say that a name does not exist.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    fn zone(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a packet into `out`, as far as that needs nobody else.
    pub fn now(&self, packet: &[u8], transport: Transport, out: &mut Vec<u8>) -> Now {
        let udp = transport == Transport::Udp;
        match Packet::read(packet) {
            Packet::Noise => Now::Nothing,
            Packet::Refused(head, query, edns) => {
                Reply::bare(head, query, edns).write(udp, out);
                Now::Replied
            }
            Packet::Question(question) => match self.decide(*question) {
                Ok(reply) => {
                    reply.write(udp, out);
                    Now::Replied
                }
                Err(pending) => Now::Ask(pending),
            },
        }
    }

    fn decide(&self, question: Question) -> Result<Reply, Box<Pending>> {
        let zone = self.zone();
        if !self.synced.load(Ordering::Acquire) && zone.holds(&question.lower) {
            return Ok(failed(question));
        }
        let mut way = Way {
            target: question.query.name.clone(),
            lower: question.lower.clone(),
            records: Vec::new(),
        };
        for _ in 0..MOST_ALIASES {
            match self.step(&zone, &question, &mut way) {
                Step::Done(reply) => return Ok(reply),
                Step::On => {}
                Step::Elsewhere => {
                    drop(zone);
                    return self.remembered(Pending {
                        question,
                        before: way.records,
                        target: way.target,
                        lower: way.lower,
                    });
                }
            }
        }
        Ok(failed(question))
    }

    fn step(&self, zone: &Zone, question: &Question, way: &mut Way) -> Step {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(answer) = zone.answer(&way.lower, wire::kind(question.query.query_type), turn) else {
            return Step::Elsewhere;
        };
        let serial = self.born.wrapping_add(zone.changes());
        let style = Style {
            ttl: TTL,
            serial,
            zone,
        };
        let to_wire = |r| style.record(&way.target, r);
        way.records.extend(answer.records.iter().filter_map(to_wire));
        if let Some(next) = answer.follow {
            let Some(target) = wire::absolute(&next) else {
                return Step::Done(failed(question.clone()));
            };
            (way.target, way.lower) = (target, next);
            return Step::On;
        }
        let mut reply = Reply::bare(question.head, Some(question.query.clone()), question.edns);
        reply.head.authoritative = true;
        if answer.code == Code::Missing {
            reply.head.response_code = ResponseCode::NXDomain;
        }
        reply.additionals = answer.additional.iter().filter_map(to_wire).collect();
        reply.answers = std::mem::take(&mut way.records);
        if answer.records.is_empty() {
            reply.authorities.extend(style.soa());
        }
        Step::Done(reply)
    }

    /// An answer from memory, if there is one.
    fn remembered(&self, pending: Pending) -> Result<Reply, Box<Pending>> {
        match self.forwarder.remembered(&pending.lower, &pending.question) {
            Some(kept) => Ok(pending.reply(Some(kept))),
            None => Err(Box::new(pending)),
        }
    }

    /// Asks the server that is in charge and writes the answer, or that there was none.
    pub async fn ask(&self, pending: Box<Pending>, transport: Transport, out: &mut Vec<u8>) {
        let kept = self
            .forwarder
            .ask(&pending.target, &pending.lower, &pending.question)
            .await;
        pending.reply(kept).write(transport == Transport::Udp, out);
    }

    /// Whether another question may be sent elsewhere now.
    pub(crate) fn permit(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        self.forwarder.permit()
    }
}

impl Pending {
    /// The reply when no server may be asked.
    pub(crate) fn refuse(self, transport: Transport, out: &mut Vec<u8>) {
        self.reply(None).write(transport == Transport::Udp, out);
    }

    fn reply(self, kept: Option<Kept>) -> Reply {
        let Question {
            head, query, edns, ..
        } = self.question;
        let mut reply = Reply::bare(head, Some(query), edns);
        reply.answers = self.before;
        match kept {
            Some(kept) => {
                reply.head.response_code = kept.code;
                reply.answers.extend(kept.answers);
                reply.authorities = kept.authorities;
            }
            None => reply.head.response_code = ResponseCode::ServFail,
        }
        reply
    }
}

/// How far the aliases have led.
struct Way {
    target: Name,
    lower: String,
    records: Vec<Record>,
}

enum Step {
    Done(Reply),
    On,
    Elsewhere,
}

fn failed(question: Question) -> Reply {
    let mut reply = Reply::bare(question.head, Some(question.query), question.edns);
    reply.head.response_code = ResponseCode::ServFail;
    reply
}
