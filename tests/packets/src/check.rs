//! Running a case on whatever decides about packets, and comparing byte by byte.
use crate::{Case, Frame, Hook, Outcome, Step, checksums_hold, flag};
use anyhow::{Context as _, Result, bail, ensure};
use datapath_abi::Proto;
use datapath_logic::packet::parse;
use std::net::SocketAddr;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Passed(Vec<u8>),
    /// Rejected, with the answer where one is made.
    Rejected(Option<Vec<u8>>),
    Dropped,
}

/// What later packets of a case refer to.
#[derive(Default)]
struct Memory {
    /// The port that the node chose last.
    given: u16,
    /// The endpoint of the last packet that asked for the same one.
    endpoint: Option<SocketAddr>,
}

/// Runs the packets of a case in order.
///
/// # Errors
/// The first packet that did not become what the fixture says.
pub fn check(case: &Case, mut run: impl FnMut(Hook, &[u8]) -> Result<Done>) -> Result<()> {
    let mut memory = Memory::default();
    for step in &case.steps {
        let frame = step.frame(memory.given);
        let done = run(step.hook, &frame.bytes())?;
        compare(step, &frame, &done, &mut memory).with_context(|| format!("{}: {}", case.name, step.text))?;
    }
    Ok(())
}

fn compare(step: &Step, frame: &Frame, done: &Done, memory: &mut Memory) -> Result<()> {
    match (&step.outcome, done) {
        (Outcome::Dropped, Done::Dropped) => Ok(()),
        (Outcome::Rejected, Done::Rejected(answer)) => {
            answer.as_ref().map_or(Ok(()), |bytes| rejected(frame, bytes))
        }
        (Outcome::Untouched, Done::Passed(bytes)) => equal(bytes, frame),
        (Outcome::ComesFrom(from), Done::Passed(bytes)) => {
            let expected = Frame {
                from: *from,
                ..frame.clone()
            };
            equal(bytes, &expected)
        }
        (Outcome::SentTo { ends, same }, Done::Passed(bytes)) => {
            let to = ends_of(bytes)?.1;
            ensure!(ends.contains(&to), "went to {to}");
            let expected = Frame { to, ..frame.clone() };
            if *same {
                ensure!(
                    memory.endpoint.is_none_or(|e| e == to),
                    "went to {to}, before to {:?}",
                    memory.endpoint
                );
                memory.endpoint = Some(to);
            }
            equal(bytes, &expected)
        }
        (Outcome::Masqueraded, Done::Passed(bytes)) => {
            let from = ends_of(bytes)?.0;
            let node = crate::Names { v4: from.is_ipv4() }.ip("node");
            ensure!(from.ip() == node, "comes from {from}");
            ensure!(
                datapath_logic::open::is_given(from.port()),
                "from port {}",
                from.port()
            );
            memory.given = from.port();
            let expected = Frame {
                from,
                ..frame.clone()
            };
            equal(bytes, &expected)
        }
        (wanted, got) => bail!("wanted {wanted:?}, got {got:02x?}"),
    }
}

fn equal(bytes: &[u8], expected: &Frame) -> Result<()> {
    let wanted = expected.bytes();
    ensure!(bytes == wanted, "got    {bytes:02x?}\nwanted {wanted:02x?}");
    Ok(())
}

fn ends_of(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let p = parse(bytes).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok((
        SocketAddr::new(p.src.to_ip(), p.sport.get()),
        SocketAddr::new(p.dst.to_ip(), p.dport.get()),
    ))
}

/// An answer: turned round, with right checksums, a reset for TCP and the quoted datagram for UDP.
fn rejected(frame: &Frame, got: &[u8]) -> Result<()> {
    let sent = frame.bytes();
    ensure!(
        got[..6] == sent[6..12] && got[6..12] == sent[..6],
        "the Ethernet header is not turned"
    );
    ensure!(checksums_hold(got), "wrong checksum in {got:02x?}");
    let p = parse(got).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(p.dst.to_ip() == frame.from.ip() && p.src.to_ip() == frame.to.ip());
    if frame.proto == Proto::TCP {
        ensure!(p.tcp_flags == flag::RST || p.tcp_flags == flag::RST | flag::ACK);
        ensure!(p.dport.get() == frame.from.port() && p.sport.get() == frame.to.port());
    } else {
        let quote = &got[p.l4 as usize + 8..];
        ensure!(*quote == sent[14..14 + quote.len()], "the quote differs");
    }
    Ok(())
}
