//! Running a case on whatever decides about packets, and comparing byte by byte.
use crate::frame::{ETHERNET, Frame, ips};
use crate::{Case, Hook, Outcome, Step};
use anyhow::{Context as _, Result, bail, ensure};
use std::net::SocketAddr;
use std::time::Duration;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Passed(Vec<u8>),
    /// Rejected, with the answer.
    Rejected(Vec<u8>),
    Dropped,
}

/// Decides about packets: the logic on the host, or the loaded programs.
pub trait Node {
    /// Meets a packet.
    ///
    /// # Errors
    /// It could not be asked.
    fn meet(&mut self, hook: Hook, frame: &[u8]) -> Result<Done>;
    /// Makes all that it remembers so much older; false if it cannot be as old as that.
    ///
    /// # Errors
    /// What it remembers could not be changed.
    fn wait(&mut self, time: Duration) -> Result<bool>;
}

/// What later packets of a case refer to.
#[derive(Default)]
struct Memory {
    /// The port that the node chose last.
    given: u16,
    /// The endpoint of the last packet that asked for the same one.
    endpoint: Option<SocketAddr>,
}

/// Runs the packets of a case in order, up to a wait that is not possible.
///
/// # Errors
/// The first packet that did not become what the fixture says.
pub fn check(case: &Case, node: &mut impl Node) -> Result<()> {
    let mut memory = Memory::default();
    for step in &case.steps {
        if !step.wait.is_zero() && !node.wait(step.wait)? {
            println!("{}: not run from here on: {}", case.name, step.text);
            return Ok(());
        }
        let frame = step.frame(memory.given);
        let done = node.meet(step.hook, &frame.bytes())?;
        compare(step, &frame, &done, &mut memory).with_context(|| format!("{}: {}", case.name, step.text))?;
    }
    Ok(())
}

fn compare(step: &Step, frame: &Frame, done: &Done, memory: &mut Memory) -> Result<()> {
    match (&step.outcome, done) {
        (Outcome::Dropped, Done::Dropped) => Ok(()),
        (Outcome::Rejected, Done::Rejected(answer)) => rejected(frame, answer),
        (Outcome::Untouched, Done::Passed(bytes)) => equal(bytes, frame),
        (Outcome::ComesFrom(from), Done::Passed(bytes)) => {
            let expected = Frame {
                from: *from,
                ..frame.clone()
            };
            equal(bytes, &expected)
        }
        (Outcome::SentTo { ends, same }, Done::Passed(bytes)) => sent(frame, ends, *same, bytes, memory),
        (Outcome::Becomes(text), Done::Passed(bytes)) => equal(bytes, &becomes(step, frame, text, memory)?),
        (Outcome::Masqueraded, Done::Passed(bytes)) => masqueraded(frame, bytes, memory),
        (wanted, got) => bail!("wanted {wanted:?}, got {got:02x?}"),
    }
}

fn equal(bytes: &[u8], expected: &Frame) -> Result<()> {
    let wanted = expected.bytes();
    ensure!(bytes == wanted, "got    {bytes:02x?}\nwanted {wanted:02x?}");
    Ok(())
}

fn sent(frame: &Frame, ends: &[SocketAddr], same: bool, bytes: &[u8], memory: &mut Memory) -> Result<()> {
    let sent_to = |to: SocketAddr| Frame { to, ..frame.clone() };
    let Some(to) = ends.iter().find(|e| bytes == sent_to(**e).bytes()) else {
        // Names the difference from one of them.
        return equal(bytes, &sent_to(*ends.first().context("no endpoint is expected")?));
    };
    if same {
        let before = *memory.endpoint.get_or_insert(*to);
        ensure!(before == *to, "went to {to}, before to {before}");
    }
    Ok(())
}

/// The frame between other ends.
fn becomes(step: &Step, frame: &Frame, text: &str, memory: &Memory) -> Result<Frame> {
    let reading = step.reading(memory.given);
    let (outer, inner) = match text.split_once(" about ") {
        Some((outer, inner)) => (outer, Some(inner)),
        None => (text, None),
    };
    let mut expected = frame.clone();
    (expected.from, expected.to) = reading.ends(outer).context("no two ends")?;
    if let (Some(about), Some(inner)) = (&mut expected.about, inner) {
        (about.inner.from, about.inner.to) = reading.ends(inner).context("no two ends")?;
    }
    Ok(expected)
}

fn masqueraded(frame: &Frame, bytes: &[u8], memory: &mut Memory) -> Result<()> {
    let at = frame.transport_at();
    let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let own = crate::Names {
        v4: frame.from.is_ipv4(),
    }
    .ip("node");
    let from = ips(bytes).0;
    ensure!(from == own, "comes from {from}");
    // `docs/datapath.md`: neither the node's own ports nor node ports; SCTP keeps the client's.
    let is_sctp = frame.proto == datapath_abi::Proto::SCTP;
    let is_given = (1024..30_000).contains(&port) || port >= 61_000;
    ensure!(
        if is_sctp {
            port == frame.from.port()
        } else {
            is_given
        },
        "from port {port}"
    );
    memory.given = port;
    let expected = Frame {
        from: SocketAddr::new(own, port),
        ..frame.clone()
    };
    equal(bytes, &expected)
}

/// An answer: turned round, a reset for TCP and the quoted packet for the rest.
fn rejected(frame: &Frame, got: &[u8]) -> Result<()> {
    let sent = frame.bytes();
    ensure!(
        got[..6] == sent[6..12] && got[6..12] == sent[..6] && got[12..14] == sent[12..14],
        "the Ethernet header is not turned"
    );
    let wanted = frame.refusal();
    let got = &got[ETHERNET..];
    ensure!(got == wanted, "got    {got:02x?}\nwanted {wanted:02x?}");
    Ok(())
}
