//! Answering for addresses that this node has not, but serves: LoadBalancer addresses on the nodes' network.
//!
//! Per device: a packet socket for ARP, an ICMPv6 socket for neighbour discovery. The kernel, which does not know the
//! addresses, answers neither. Whoever becomes the owner of an address tells everybody on the link.
use crate::interfaces::Interface;
use crate::neighbour::{self as wire, ETHERTYPE_ARP, Mac};
use crate::packet;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// When everybody is told of a new owner: a frame may be lost, and a switch may be learning.
const TELL_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];
/// Until sockets of a device are tried again that could not be opened.
const AGAIN: Duration = Duration::from_secs(5);
/// More than the largest message that is answered.
const MESSAGE: usize = 1500;
/// Neighbour discovery is for neighbours: whatever passed a router is ignored.
const HOPS: u32 = 255;

/// The addresses that this node answers for, and how often each was claimed: with a higher number everybody is told anew, as
/// after another node may have answered for it.
pub type Owned = BTreeMap<IpAddr, u64>;

/// Answers for the owned addresses on every Ethernet uplink, until dropped.
pub async fn run(mut devices: watch::Receiver<Vec<Interface>>, owned: watch::Receiver<Owned>) {
    let mut links: BTreeMap<(u32, Mac), JoinSet<()>> = BTreeMap::new();
    loop {
        let wanted: BTreeMap<(u32, Mac), String> = devices
            .borrow_and_update()
            .iter()
            .filter(|d| d.up && !d.has_master && d.is_uplink())
            .filter_map(|d| Some(((d.index, d.mac?), d.name.clone())))
            .collect();
        links.retain(|key, _| wanted.contains_key(key));
        for ((index, mac), name) in wanted {
            links.entry((index, mac)).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn(on_device(Link { index, mac, name }, owned.clone()));
                task
            });
        }
        if devices.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// One device.
struct Link {
    index: u32,
    mac: Mac,
    name: String,
}

/// Waits until there is something to answer for, and answers; a failure is tried again as long as the device is there.
async fn on_device(link: Link, mut owned: watch::Receiver<Owned>) {
    loop {
        if owned.wait_for(|owned| !owned.is_empty()).await.is_err() {
            return std::future::pending().await;
        }
        owned.mark_changed();
        if let Err(error) = answer(&link, &mut owned).await {
            tracing::warn!(device = link.name, %error, "LoadBalancer addresses are not announced on this device; trying again");
            sleep(AGAIN).await;
        }
    }
}

/// Answers until nothing is owned any more.
async fn answer(link: &Link, owned: &mut watch::Receiver<Owned>) -> io::Result<()> {
    let arp = packet::frames(link.index, ETHERTYPE_ARP)?;
    let ndp = packet::watched(icmpv6(link)?)?;
    let mut known = Owned::new();
    let mut groups: BTreeSet<Ipv6Addr> = BTreeSet::new();
    let mut telling = Telling::default();
    loop {
        tokio::select! {
            changed = owned.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let now = owned.borrow_and_update().clone();
                if now.is_empty() {
                    return Ok(());
                }
                join(&ndp, link, &mut groups, &now)?;
                telling.start(now.iter().filter(|(ip, times)| known.get(*ip) != Some(*times)).map(|(ip, _)| ip));
                known = now;
            }
            () = telling.due() => {
                for ip in telling.round().filter(|ip| known.contains_key(ip)) {
                    tell(link, &arp, &ndp, ip)?;
                }
            }
            ready = arp.readable() => {
                ready?.clear_ready();
                while let Some(frame) = receive(arp.get_ref())? {
                    answer_arp(link, &arp, &known, &frame.0)?;
                }
            }
            ready = ndp.readable() => {
                ready?.clear_ready();
                while let Some((message, from)) = receive(ndp.get_ref())? {
                    answer_ndp(link, &ndp, &known, &message, from)?;
                }
            }
        }
    }
}

/// Addresses whose new place is being told, in rounds.
#[derive(Default)]
struct Telling {
    addresses: Vec<IpAddr>,
    rounds: usize,
    next: Option<Instant>,
}

impl Telling {
    fn start<'a>(&mut self, new: impl Iterator<Item = &'a IpAddr>) {
        let new: Vec<IpAddr> = new.copied().collect();
        if new.is_empty() {
            return;
        }
        self.addresses.retain(|ip| !new.contains(ip));
        self.addresses.extend(new);
        self.rounds = 0;
        self.plan();
    }

    fn plan(&mut self) {
        self.next = TELL_AFTER.get(self.rounds).map(|after| Instant::now() + *after);
        if self.next.is_none() {
            self.addresses.clear();
        }
    }

    /// Until the next round; for ever when there is none.
    async fn due(&self) {
        match self.next {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn round(&mut self) -> impl Iterator<Item = IpAddr> + use<> {
        let all = self.addresses.clone();
        self.rounds += 1;
        self.plan();
        all.into_iter()
    }
}

fn icmpv6(link: &Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    socket.set_multicast_if_v6(link.index)?;
    socket.set_multicast_hops_v6(HOPS)?;
    socket.set_unicast_hops_v6(HOPS)?;
    socket.set_multicast_loop_v6(false)?;
    Ok(socket)
}

/// Joins the groups that questions for the owned addresses are sent to, and leaves the others.
fn join(
    ndp: &AsyncFd<Socket>,
    link: &Link,
    joined: &mut BTreeSet<Ipv6Addr>,
    owned: &Owned,
) -> io::Result<()> {
    let wanted: BTreeSet<Ipv6Addr> = owned
        .keys()
        .filter_map(wire::v6)
        .map(wire::solicited_node_group)
        .collect();
    for group in joined.difference(&wanted) {
        ndp.get_ref().leave_multicast_v6(group, link.index)?;
    }
    for group in wanted.difference(joined) {
        ndp.get_ref().join_multicast_v6(group, link.index)?;
    }
    *joined = wanted;
    Ok(())
}

fn tell(link: &Link, arp: &AsyncFd<Socket>, ndp: &AsyncFd<Socket>, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(ip) => {
            for frame in wire::gratuitous_arp(ip, link.mac) {
                sent(arp.get_ref().send(&frame))?;
            }
            Ok(())
        }
        IpAddr::V6(ip) => {
            let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            advertise(link, ndp, ip, everybody, false)
        }
    }
}

fn advertise(link: &Link, ndp: &AsyncFd<Socket>, ip: Ipv6Addr, to: Ipv6Addr, asked: bool) -> io::Result<()> {
    let message = wire::advertisement(ip, link.mac, asked);
    let to = SockAddr::from(SocketAddrV6::new(to, 0, 0, link.index));
    sent(ndp.get_ref().send_to(&message, &to))
}

fn answer_arp(link: &Link, arp: &AsyncFd<Socket>, owned: &Owned, frame: &[u8]) -> io::Result<()> {
    match wire::arp_request(frame) {
        // Our own announcement comes by here too.
        Some(request) if request.mac != link.mac && owned.contains_key(&IpAddr::V4(request.target)) => {
            sent(arp.get_ref().send(&wire::arp_reply(&request, link.mac)))
        }
        _ => Ok(()),
    }
}

fn answer_ndp(
    link: &Link,
    ndp: &AsyncFd<Socket>,
    owned: &Owned,
    message: &[u8],
    from: Option<Ipv6Addr>,
) -> io::Result<()> {
    let Some(target) = wire::solicited(message).filter(|ip| owned.contains_key(&IpAddr::V6(*ip))) else {
        return Ok(());
    };
    match from {
        Some(asker) if !asker.is_unspecified() => advertise(link, ndp, target, asker, true),
        // Somebody looks whether the address is free (RFC 4862, 5.4.3): everybody is to hear that it is not.
        _ => tell_taken(link, ndp, target),
    }
}

fn tell_taken(link: &Link, ndp: &AsyncFd<Socket>, target: Ipv6Addr) -> io::Result<()> {
    advertise(
        link,
        ndp,
        target,
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        false,
    )
}

/// A full queue or a link that is down loses an answer, as a wire could; whoever asked asks again.
fn sent(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) if lost(&error) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn lost(error: &io::Error) -> bool {
    let known = [
        Errno::AGAIN,
        Errno::NOBUFS,
        Errno::NETDOWN,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::ADDRNOTAVAIL,
    ];
    known
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// The next message and its sender, if one is there.
fn receive(socket: &Socket) -> io::Result<Option<(Vec<u8>, Option<Ipv6Addr>)>> {
    let mut space = [0; MESSAGE];
    match rustix::net::recvfrom(socket, &mut space, RecvFlags::empty()) {
        Ok((length, _, from)) => {
            let from = from.and_then(|any| SocketAddrV6::try_from(any).ok());
            Ok(Some((
                space[..length].to_vec(),
                from.map(|address| *address.ip()),
            )))
        }
        Err(error) => match io::Error::from(error) {
            none if none.kind() == io::ErrorKind::WouldBlock || lost(&none) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_owner_is_told_of_three_times_within_two_seconds() {
        let ip = IpAddr::from([192, 0, 2, 50]);
        let (mut telling, begun) = (Telling::default(), Instant::now());
        telling.start([&ip].into_iter());
        for _ in TELL_AFTER {
            telling.due().await;
            assert_eq!(telling.round().collect::<Vec<_>>(), [ip]);
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
        let more = tokio::time::timeout(Duration::from_secs(60), telling.due()).await;
        assert!(more.is_err(), "there is no fourth round");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_new_is_nothing_to_tell() {
        let mut telling = Telling::default();
        telling.start([].into_iter());
        let due = tokio::time::timeout(Duration::from_secs(60), telling.due()).await;
        assert!(due.is_err());
    }
}
