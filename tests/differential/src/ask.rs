//! Carries out probes on a node: the first packet, the endpoint's answer, what the client says next.
use crate::place::{At, FENCE_BEYOND, FENCE_ENDS, Place, is_node};
use crate::probe::{Client, Fault, Once, Outcome, Probe, Proto, Shown};
use crate::wire::{Packet, frame};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;
use tests_packets::flag::{ACK, RST, SYN};

/// Nothing takes longer on a machine that works.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a node.
pub struct Asker {
    place: Place,
    /// Numbers that no packet has carried before.
    word: u32,
    /// How often each kind of client has asked.
    tries: BTreeMap<Client, u32>,
}

/// One try that has reached an endpoint.
struct Reached {
    at: At,
    first: Packet,
}

impl Asker {
    pub fn new(place: Place) -> Self {
        Self {
            place,
            word: 0x1000_0000,
            tries: BTreeMap::new(),
        }
    }

    /// Makes so many connections.
    pub fn ask(&mut self, probe: &Probe, tries: u16) -> Result<Outcome> {
        let mut outcome = Outcome::new();
        for _ in 0..tries {
            let once = if probe.client.is_socket() {
                self.by_socket(probe)
            } else {
                self.by_packets(probe)
            };
            outcome.insert(once.with_context(|| format!("{probe:?}"))?);
        }
        Ok(outcome)
    }

    fn next_word(&mut self) -> u32 {
        self.word = self.word.wrapping_add(0x10);
        self.word
    }

    /// An address and port that have not met yet: what is remembered of earlier flows is not asked for. The port is one of those that the
    /// kernel gives to sockets: others of the node's are for masquerading.
    fn client(&mut self, probe: &Probe) -> SocketAddr {
        let tries = self.tries.entry(probe.client).or_default();
        let n = *tries;
        *tries += 1;
        let ip = probe
            .client
            .address(probe.to.is_ipv4(), probe.address.unwrap_or(n));
        SocketAddr::new(ip, 32_768 + (n % 28_000) as u16)
    }

    /// A client without a socket.
    fn by_packets(&mut self, probe: &Probe) -> Result<Once> {
        let (from, word) = (self.client(probe), self.next_word());
        let home = At::of(probe.client);
        let opening = packet(probe.proto, (from, probe.to), (SYN, word, 0));
        self.place.wire(home).send(&frame(&opening))?;
        let seen = self.watch(home, |at, p| {
            is_same(p, &opening) || (at == home && is_refusal(p, &opening))
        })?;
        let Some((at, first)) = seen else {
            return Ok(Once::Dropped);
        };
        if !is_same(&first, &opening) {
            return Ok(Once::Refused);
        }
        if first.to == probe.to {
            return Ok(Once::Untouched);
        }
        let shown = shown(&first, probe.client, from.ip());
        let reached = Reached { at, first };
        let fault = self.exchange(probe, home, &opening, &reached)?;
        if probe.proto == Proto::Tcp {
            let reset = packet(probe.proto, (from, probe.to), (RST | ACK, word + 1, word + 8));
            self.place.wire(home).send(&frame(&reset))?;
        }
        Ok(once(reached.first.to, shown, fault))
    }

    /// The endpoint's answer to a client without a socket, and what that says next.
    fn exchange(
        &mut self,
        probe: &Probe,
        home: At,
        opening: &Packet,
        reached: &Reached,
    ) -> Result<Option<Fault>> {
        let (word, from) = (opening.seq.max(opening.word), opening.from);
        let answer = answer(&reached.first, word + 7);
        self.place.wire(reached.at).send(&frame(&answer))?;
        let wanted = packet(
            probe.proto,
            (probe.to, from),
            (SYN | ACK, word + 7, opening.seq.wrapping_add(1)),
        );
        if self
            .watch(reached.at, |at, p| {
                at == home && is_same(p, &wanted) && ends(p) == ends(&wanted)
            })?
            .is_none()
        {
            return Ok(Some(Fault::Answer));
        }
        let next = packet(probe.proto, (from, probe.to), (ACK, word + 1, word + 8));
        self.place.wire(home).send(&frame(&next))?;
        let arrived = self.watch(home, |at, p| {
            at == reached.at && is_same(p, &next) && ends(p) == ends(&reached.first)
        })?;
        Ok(arrived.is_none().then_some(Fault::Next))
    }

    /// A client with a socket.
    fn by_socket(&mut self, probe: &Probe) -> Result<Once> {
        let word = self.next_word();
        let (own, socket) = self.socket(probe)?;
        if let Err(e) = speak(&socket, probe, word) {
            // A rule that refuses drops the packet as well: what it tells is the socket's next error.
            return nobody(socket.take_error()?.unwrap_or(e).kind());
        }
        let seen = self.watch(At::of(probe.client), |_, p| is_from(p, probe, own, word))?;
        let Some((at, first)) = seen else {
            return match socket.take_error()? {
                Some(e) => nobody(e.kind()),
                None => Ok(Once::Dropped),
            };
        };
        if first.to == probe.to {
            return Ok(Once::Untouched);
        }
        let shown = shown(&first, probe.client, own.ip());
        let reached = Reached { at, first };
        let fault = self.exchange_by(&socket, probe, word, &reached)?;
        Ok(once(reached.first.to, shown, fault))
    }

    /// A socket of the client's, with a port that neither it nor anybody else on the node has.
    fn socket(&mut self, probe: &Probe) -> Result<(SocketAddr, Socket)> {
        loop {
            let own = self.client(probe);
            match self.place.among(probe.client, || Ok(bound(probe, own.port())))? {
                Ok(socket) => return Ok((own, socket)),
                Err(e) if e.kind() == ErrorKind::AddrInUse => {}
                Err(e) => return Err(e).context("a client's socket"),
            }
        }
    }

    /// The endpoint's answer to a socket, and what that says next.
    fn exchange_by(
        &mut self,
        socket: &Socket,
        probe: &Probe,
        word: u32,
        reached: &Reached,
    ) -> Result<Option<Fault>> {
        self.place
            .wire(reached.at)
            .send(&frame(&answer(&reached.first, word + 7)))?;
        let mut hears = is_ready(socket, probe.proto)?;
        if !hears {
            self.watch(reached.at, |_, _| false)?;
            hears = is_ready(socket, probe.proto)?;
        }
        if !hears || !heard(socket, probe, word + 7)? {
            return Ok(Some(Fault::Answer));
        }
        if socket.send(&(word + 1).to_be_bytes()).is_err() {
            return Ok(Some(Fault::Next));
        }
        let arrived = self.watch(At::of(probe.client), |at, p| {
            let says_it = p.proto == Proto::Tcp || p.word == word + 1;
            at == reached.at && ends(p) == ends(&reached.first) && p.flags & SYN == 0 && says_it
        })?;
        Ok(arrived.is_none().then_some(Fault::Next))
    }

    /// The first packet that is wanted, if it comes before one that was sent behind it.
    fn watch(&mut self, fenced: At, wanted: impl Fn(At, &Packet) -> bool) -> Result<Option<(At, Packet)>> {
        if let Some(found) = self.read(&wanted, None)?.0 {
            return Ok(Some(found));
        }
        // The second one passes after everything that the first one has pushed along.
        for _ in 0..2 {
            let fence = self.fence(fenced)?;
            loop {
                let (found, over) = self.read(&wanted, Some(fence))?;
                if found.is_some() {
                    return Ok(found);
                }
                if over {
                    break;
                }
                self.wait()?;
            }
        }
        Ok(None)
    }

    /// Reads everything that is there, up to what is wanted; and whether the fence was among it.
    fn read(
        &self,
        wanted: &impl Fn(At, &Packet) -> bool,
        fence: Option<u32>,
    ) -> Result<(Option<(At, Packet)>, bool)> {
        let mut over = false;
        for (at, wire) in self.place.wires() {
            while let Some(packet) = wire.next()? {
                if wanted(at, &packet) {
                    return Ok((Some((at, packet)), over));
                }
                over |= fence.is_some_and(|word| packet.proto == Proto::Udp && packet.word == word);
            }
        }
        Ok((None, over))
    }

    /// Sends a packet that nobody serves the way that a client's packets take.
    fn fence(&mut self, from: At) -> Result<u32> {
        let word = self.next_word();
        let to = match from {
            At::Client | At::Ends => FENCE_BEYOND,
            At::Beyond => FENCE_ENDS,
        };
        let ends = (addr("198.18.2.2", 9), addr(to, 9));
        let fence = packet(Proto::Udp, ends, (0, word, 0));
        self.place.wire(from).send(&frame(&fence))?;
        Ok(word)
    }

    /// Until something comes.
    fn wait(&self) -> Result<()> {
        let sockets: Vec<_> = self.place.wires().flat_map(|(_, w)| w.sockets()).collect();
        let mut fds: Vec<_> = sockets
            .iter()
            .map(|s| PollFd::from_borrowed_fd(s.as_fd(), PollFlags::IN))
            .collect();
        let patience = Timespec::try_from(PATIENCE)?;
        if poll(&mut fds, Some(&patience))? == 0 {
            bail!("a packet that nobody serves does not pass the node");
        }
        Ok(())
    }
}

fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address of the test"), port)
}

/// A segment, or a datagram that carries the first number.
fn packet(proto: Proto, (from, to): (SocketAddr, SocketAddr), (flags, seq, ack): (u8, u32, u32)) -> Packet {
    let tcp = proto == Proto::Tcp;
    Packet {
        proto,
        from,
        to,
        flags: if tcp { flags } else { 0 },
        seq: if tcp { seq } else { 0 },
        ack: if tcp { ack } else { 0 },
        word: if tcp { 0 } else { seq },
        is_refused: false,
    }
}

/// What an endpoint says to the first packet.
fn answer(first: &Packet, word: u32) -> Packet {
    packet(
        first.proto,
        (first.to, first.from),
        (SYN | ACK, word, first.seq.wrapping_add(1)),
    )
}

fn ends(p: &Packet) -> (SocketAddr, SocketAddr) {
    (p.from, p.to)
}

/// The same packet, wherever it comes from and goes to now.
fn is_same(p: &Packet, other: &Packet) -> bool {
    !p.is_refused && (p.proto, p.flags, p.seq, p.word) == (other.proto, other.flags, other.seq, other.word)
}

/// Its sender is told that there is nobody.
fn is_refusal(p: &Packet, of: &Packet) -> bool {
    let quoted = p.is_refused && (p.proto, ends(p)) == (of.proto, ends(of));
    let reset = p.proto == Proto::Tcp && p.flags & RST != 0 && ends(p) == (of.to, of.from);
    quoted || reset
}

/// The first packet of a socket; its port may have been changed on the way.
fn is_from(p: &Packet, probe: &Probe, own: SocketAddr, word: u32) -> bool {
    if p.is_refused || p.proto != probe.proto {
        return false;
    }
    match probe.proto {
        Proto::Udp => p.word == word,
        Proto::Tcp => p.flags & (SYN | ACK) == SYN && (p.from == own || is_node(p.from.ip())),
    }
}

fn shown(first: &Packet, client: Client, own: IpAddr) -> Shown {
    let seen = first.from.ip();
    match client {
        _ if is_node(seen) => Shown::Node,
        _ if seen == own => Shown::Client,
        _ => Shown::Other(seen),
    }
}

fn once(end: SocketAddr, shown: Shown, fault: Option<Fault>) -> Once {
    match fault {
        None => Once::Endpoint(end, shown),
        Some(fault) => Once::Broken(end, shown, fault),
    }
}

fn bound(probe: &Probe, port: u16) -> std::io::Result<Socket> {
    let kind = match probe.proto {
        Proto::Tcp => Type::STREAM,
        Proto::Udp => Type::DGRAM,
    };
    let any: IpAddr = if probe.to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = Socket::new(Domain::for_address(probe.to), kind, None)?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // It ends with a reset: nothing of it is left behind.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket)
}

/// Connects; a datagram is sent too.
fn speak(socket: &Socket, probe: &Probe, word: u32) -> std::io::Result<()> {
    match socket.connect(&SockAddr::from(probe.to)) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        other => other?,
    }
    if probe.proto == Proto::Udp {
        socket.send(&word.to_be_bytes())?;
    }
    Ok(())
}

/// What a socket's error says.
fn nobody(kind: ErrorKind) -> Result<Once> {
    match kind {
        ErrorKind::ConnectionRefused => Ok(Once::Refused),
        // The kernel's word for a packet of one's own that a rule drops.
        ErrorKind::PermissionDenied => Ok(Once::Dropped),
        other => bail!("a socket's call ends with {other}"),
    }
}

/// Whether the socket is connected, or a datagram has arrived.
fn is_ready(socket: &Socket, proto: Proto) -> Result<bool> {
    let wanted = match proto {
        Proto::Tcp => PollFlags::OUT,
        Proto::Udp => PollFlags::IN,
    };
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), wanted)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? == 1)
}

/// Whether what the socket hears is the answer, as that of the address it asked.
fn heard(mut socket: &Socket, probe: &Probe, word: u32) -> Result<bool> {
    if socket.take_error()?.is_some() || socket.peer_addr()?.as_socket() != Some(probe.to) {
        return Ok(false);
    }
    if probe.proto == Proto::Tcp {
        return Ok(true);
    }
    let mut buf = [0; 8];
    let n = socket.read(&mut buf)?;
    Ok(buf[..n] == word.to_be_bytes())
}
