//! Keeping the kernel translating what it has begun to translate.
//!
//! The kernel translates the packets of connections that are under way as long as somebody in the network namespace has a chain of
//! type `nat`, whatever is in it, and tracks connections as long as a rule looks at them. A proxy that takes its tables away
//! may have been the last one. So a table of our own stands beside its, which decides nothing, until these connections have
//! ended.
use crate::conntrack::answer;
use crate::netlink::{ACK, CREATE, REQUEST, attribute, message, nest};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
use std::io;

/// Kinds of messages (`linux/netfilter/nfnetlink.h`, `nf_tables.h`).
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = 10 << 8;
const DELETE_TABLE: u16 = 10 << 8 | 2;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const NEW_RULE: u16 = 10 << 8 | 6;
/// `struct nfgenmsg` of a batch: it names the subsystem.
const BATCH: [u8; 4] = [0, 0, 0, 10];
/// `NFPROTO_INET`: both families (Linux 5.2).
const INET: [u8; 4] = [1, 0, 0, 0];
/// `NLM_F_APPEND`.
const APPEND: u16 = 0x800;

const TABLE: &[u8] = b"skep-handover\0";
const CHAIN: &[u8] = b"keep\0";
/// Where destinations are translated (`NF_IP_PRI_NAT_DST`).
const PRIORITY: i32 = -100;

/// Makes the table, or makes it anew.
///
/// # Errors
/// When the kernel has no nf_tables.
pub(crate) fn keep() -> io::Result<()> {
    let table = attribute(1, TABLE);
    let place = [
        attribute(1, &0_u32.to_be_bytes()),
        attribute(2, &PRIORITY.to_be_bytes()),
    ];
    let chain = [
        attribute(1, TABLE),
        attribute(3, CHAIN),
        nest(4, &place),
        attribute(5, &1_u32.to_be_bytes()),
        attribute(7, b"nat\0"),
    ];
    // Reading the state is enough to have connections tracked.
    let state = [
        attribute(1, &1_u32.to_be_bytes()),
        attribute(2, &0_u32.to_be_bytes()),
    ];
    let expression = nest(1, &[attribute(1, b"ct\0"), nest(2, &state)]);
    let rule = [attribute(1, TABLE), attribute(2, CHAIN), nest(4, &[expression])];
    commit(&[
        (NEW_TABLE, CREATE, table.clone()),
        (DELETE_TABLE, 0, table.clone()),
        (NEW_TABLE, CREATE, table),
        (NEW_CHAIN, CREATE, chain.concat()),
        (NEW_RULE, CREATE | APPEND, rule.concat()),
    ])
}

/// Takes the table away; none is no error.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn release() -> io::Result<()> {
    match commit(&[(DELETE_TABLE, 0, attribute(1, TABLE))]) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// All of it or nothing: the last one is answered, or the first one that is refused.
fn commit(messages: &[(u16, u16, Vec<u8>)]) -> io::Result<()> {
    let mut bytes = message(BEGIN, REQUEST, &BATCH);
    for (i, (kind, flags, body)) in messages.iter().enumerate() {
        let ack = if i + 1 == messages.len() { ACK } else { 0 };
        let body = [&INET[..], body].concat();
        bytes.extend(message(*kind, REQUEST | ack | flags, &body));
    }
    bytes.extend(message(END, REQUEST, &BATCH));
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(NETFILTER))?;
    sendto(&socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    answer(&socket)
}
