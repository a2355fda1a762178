//! Questions and replies on the wire, RFC 1035, with EDNS (RFC 6891).

use agent_names::{Data, Kind, Owner, Zone};
use hickory_proto::op::{
    Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder};

/// What every client takes over UDP without saying so (RFC 1035, 2.3.4).
const PLAIN_LIMIT: usize = 512;
/// What we send over UDP at most: fits the smallest IPv6 path without fragments.
pub(crate) const UDP_LIMIT: u16 = 1232;
/// No record is shorter: a pointer to its name, type, class, time and length.
const LEAST_RECORD: usize = 12;
/// A header alone.
const HEADER: usize = 12;

/// A well-formed question.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) head: Metadata,
    pub(crate) query: Query,
    /// The name in lower case, without its last dot; bytes that no name of a cluster has are a character none has.
    pub(crate) lower: String,
    pub(crate) edns: Option<ClientEdns>,
}

/// What the client says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientEdns {
    pub(crate) payload: u16,
    pub(crate) dnssec: bool,
}

/// What a packet is.
pub(crate) enum Packet {
    Question(Box<Question>),
    /// Wrong, and its sender is told how.
    Refused(Metadata, Option<Query>, Option<ClientEdns>),
    /// Nothing that is to be answered.
    Noise,
}

/// A reply before it is cut to size.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Metadata,
    pub(crate) query: Option<Query>,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    pub(crate) edns: Option<ClientEdns>,
}

impl Packet {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        // Answering an answer would let two servers talk for ever.
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            return Self::Noise;
        }
        match Message::read(&mut BinDecoder::new(bytes)) {
            Ok(message) => question(message),
            Err(_) => Self::Refused(unreadable(bytes), None, None),
        }
    }
}

/// The head of a reply to something of which only the identifier can be trusted.
fn unreadable(bytes: &[u8]) -> Metadata {
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let mut head = Metadata::new(id, MessageType::Response, OpCode::from_u8(bytes[2] >> 3 & 0xf));
    head.response_code = ResponseCode::FormErr;
    head
}

fn question(mut message: Message) -> Packet {
    let mut head = Metadata::response_from_request(&message.metadata);
    head.recursion_available = true;
    let edns = message.edns.as_ref().map(|e| ClientEdns {
        payload: e.max_payload(),
        dnssec: e.flags().dnssec_ok,
    });
    let version = message.edns.as_ref().map_or(0, Edns::version);
    let query = (message.queries.len() == 1).then(|| message.queries.swap_remove(0));
    let wrong = match &query {
        _ if message.metadata.op_code != OpCode::Query => Some(ResponseCode::NotImp),
        _ if version != 0 => Some(ResponseCode::BADVERS),
        None => Some(ResponseCode::FormErr),
        Some(q) if q.query_class != DNSClass::IN => Some(ResponseCode::Refused),
        Some(q) if matches!(q.query_type, RecordType::AXFR | RecordType::IXFR) => Some(ResponseCode::Refused),
        Some(_) => None,
    };
    match (wrong, query) {
        (None, Some(query)) => Packet::Question(Box::new(Question {
            head,
            lower: lower(&query.name),
            query,
            edns,
        })),
        (code, query) => {
            head.response_code = code.unwrap_or(ResponseCode::FormErr);
            Packet::Refused(head, query, edns)
        }
    }
}

/// The name as [`agent_names`] writes them.
pub(crate) fn lower(name: &Name) -> String {
    let mut out = String::with_capacity(name.len());
    for label in name.iter() {
        if !out.is_empty() {
            out.push('.');
        }
        out.extend(label.iter().map(|&byte| match byte {
            b'.' | 0..=b' ' | 0x7f.. => '\u{7f}',
            other => char::from(other.to_ascii_lowercase()),
        }));
    }
    out
}

pub(crate) fn kind(of: RecordType) -> Kind {
    match of {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::CNAME => Kind::Cname,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// What the zone's own records carry besides their data.
pub(crate) struct Style<'a> {
    pub(crate) ttl: u32,
    pub(crate) serial: u32,
    pub(crate) zone: &'a Zone,
}

impl Style<'_> {
    /// A record for the wire. `None` for a name that cannot be one (over 255 bytes).
    pub(crate) fn record(&self, asked: &Name, record: &agent_names::Record) -> Option<Record> {
        let owner = match &record.owner {
            Owner::Asked => asked.clone(),
            Owner::Name(name) => absolute(name)?,
        };
        let data = match &record.data {
            Data::A(ip) => RData::A(A(*ip)),
            Data::Aaaa(ip) => RData::AAAA(AAAA(*ip)),
            Data::Cname(target) => RData::CNAME(CNAME(absolute(target)?)),
            Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, absolute(target)?)),
            Data::Ptr(target) => RData::PTR(PTR(absolute(target)?)),
            Data::Txt(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
            Data::Soa => return self.soa(),
            Data::Ns(target) => RData::NS(NS(absolute(target)?)),
        };
        Some(Record::from_rdata(owner, self.ttl, data))
    }

    /// The zone's SOA record. Its last number is how long "there is none" may be kept.
    pub(crate) fn soa(&self) -> Option<Record> {
        let origin = absolute(self.zone.origin())?;
        let server = absolute(&self.zone.server_name())?;
        let contact = absolute(&format!("hostmaster.{}", self.zone.origin()))?;
        let soa = SOA::new(server, contact, self.serial, 7200, 1800, 86400, self.ttl);
        Some(Record::from_rdata(origin, self.ttl, RData::SOA(soa)))
    }
}

/// An absolute name from its text without the last dot.
pub(crate) fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

impl Reply {
    /// A reply without records.
    pub(crate) fn bare(head: Metadata, query: Option<Query>, edns: Option<ClientEdns>) -> Self {
        Self {
            head,
            query,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            edns,
        }
    }

    /// Writes the reply to `out`, cut to what the client takes: first what was only offered goes, then answers go from
    /// the end and the client is told to come again over TCP.
    pub(crate) fn write(mut self, udp: bool, out: &mut Vec<u8>) {
        let limit = match self.edns {
            _ if !udp => usize::from(u16::MAX),
            Some(edns) => usize::from(edns.payload.min(UDP_LIMIT)).max(PLAIN_LIMIT),
            None => PLAIN_LIMIT,
        };
        if self.answers.len() <= limit / LEAST_RECORD {
            if self.encode(out, limit) {
                return;
            }
            self.additionals.clear();
            if self.encode(out, limit) {
                return;
            }
        }
        self.cut(limit, out);
    }

    /// Writes as many answers as fit, and that there are more.
    fn cut(&mut self, limit: usize, out: &mut Vec<u8>) {
        self.head.truncation = true;
        self.additionals.clear();
        self.authorities.clear();
        let all = std::mem::take(&mut self.answers);
        let (mut fit, mut over) = (0, all.len().min(limit / LEAST_RECORD) + 1);
        while over - fit > 1 {
            let half = fit.midpoint(over);
            self.answers = all[..half].to_vec();
            if self.encode(out, limit) {
                fit = half;
            } else {
                over = half;
            }
        }
        self.answers = all[..fit].to_vec();
        self.encode(out, limit);
    }

    /// Whether the whole of it has got into `limit` bytes.
    fn encode(&self, out: &mut Vec<u8>, limit: usize) -> bool {
        out.clear();
        let edns = self.edns.map(|client| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_LIMIT).set_dnssec_ok(client.dnssec);
            edns
        });
        let header = emit_message_parts(
            &self.head,
            &mut self.query.iter(),
            &mut self.answers.iter(),
            &mut self.authorities.iter(),
            &mut self.additionals.iter(),
            edns.as_ref(),
            None,
            &mut BinEncoder::new(out),
        );
        let whole = header.is_ok_and(|h| h.metadata.truncation == self.head.truncation);
        whole && out.len() <= limit
    }
}
