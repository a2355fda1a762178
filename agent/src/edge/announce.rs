//! The node's part in answering for LoadBalancer addresses: who is there, what is ours, who has to be looked after.

use super::elect::{self, Addresses, Candidates, Duty};
use super::metrics::ServiceMetrics;
use agent_network::announce::Owned;
use k8s_openapi::api::core::v1::Node;
use machinery_client::Cache;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Between two looks at a node. They overlap: the next begins before the one before it is given up.
const LOOK: Duration = Duration::from_millis(100);
/// For an answer: a node's kernel gives it, at once, however busy the node is.
const PATIENCE: Duration = Duration::from_millis(250);
/// Looks in vain, one after the other, until a node counts as lost: 550 ms at most after it fell silent, so that the rest of a
/// second is left to tell the network and to be told.
const IN_VAIN: u32 = 3;

/// What the election needs.
pub struct Election {
    /// This node's name.
    pub own: String,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// The addresses to be answered for.
    pub addresses: watch::Receiver<Addresses>,
    /// The port that is looked at: the agents' health port. Without one only the API tells who is lost.
    pub port: Option<u16>,
    /// Is told how many addresses are ours.
    pub metrics: ServiceMetrics,
}

/// Publishes which addresses this node answers for, until dropped.
pub async fn run(mut election: Election, owned: watch::Sender<Owned>) {
    election.nodes.synced().await;
    let mut changes = election.nodes.changes();
    let (told, mut lost) = watch::channel(BTreeSet::new());
    let mut looking = Looking::default();
    let mut claims = Claims::default();
    loop {
        changes.mark_unchanged();
        let candidates = elect::candidates(&election.nodes.list());
        let duty = {
            let (addresses, lost) = (election.addresses.borrow_and_update(), lost.borrow_and_update());
            let duty = elect::duty(&election.own, &addresses, &candidates, &lost);
            claims.settle(&duty, &lost);
            duty
        };
        if let Some(port) = election.port {
            looking.settle(&duty.watched, &candidates, port, &told);
        }
        election.metrics.announces(duty.owned.len());
        owned.send_if_modified(|known| {
            let changed = *known != claims.owned;
            if !known.keys().eq(claims.owned.keys()) {
                tracing::info!(addresses = ?claims.owned.keys(), "this node answers for these LoadBalancer addresses");
            }
            known.clone_from(&claims.owned);
            changed
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            changed = election.addresses.changed() => if changed.is_err() { return std::future::pending().await },
            changed = lost.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// What is answered for, and how often each address was claimed: whoever claims it anew tells everybody anew.
#[derive(Default)]
struct Claims {
    owned: Owned,
    /// Nodes that were silent when last looked at.
    silent: BTreeSet<String>,
}

impl Claims {
    /// An address is claimed when it becomes ours, and again when a node that would follow us is heard again: it may have stepped in
    /// meanwhile, because we were silent to it.
    fn settle(&mut self, duty: &Duty, lost: &BTreeSet<String>) {
        let heard_again: BTreeSet<&String> = self.silent.difference(lost).collect();
        let again = |ip: &IpAddr| {
            let mut followers = duty.followers.get(ip).into_iter().flatten();
            followers.any(|name| heard_again.contains(name))
        };
        let now = duty.owned.iter().map(|ip| {
            let before = self.owned.get(ip).copied().unwrap_or(0);
            (*ip, before + u64::from(again(ip)))
        });
        self.owned = now.collect();
        self.silent.clone_from(lost);
    }
}

type Lost = watch::Sender<BTreeSet<String>>;

/// The nodes that are being looked after.
#[derive(Default)]
struct Looking(BTreeMap<(String, IpAddr), JoinSet<()>>);

impl Looking {
    fn settle(&mut self, watched: &BTreeSet<String>, candidates: &Candidates, port: u16, lost: &Lost) {
        let wanted: BTreeSet<(String, IpAddr)> = watched
            .iter()
            .filter_map(|name| Some((name.clone(), (*candidates.get(name)?)?)))
            .collect();
        self.0.retain(|key, _| {
            let stays = wanted.contains(key);
            if !stays {
                note(lost, &key.0, false);
            }
            stays
        });
        for key in wanted {
            let (name, address) = key.clone();
            let lost = lost.clone();
            self.0.entry(key).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn(look_after(name, SocketAddr::new(address, port), lost));
                task
            });
        }
    }
}

fn note(lost: &Lost, name: &str, is_lost: bool) {
    lost.send_if_modified(|set| {
        if is_lost {
            set.insert(name.to_owned())
        } else {
            set.remove(name)
        }
    });
}

/// Notes whether a node answers, as long as it runs. Nothing but silence tells of a node without power.
async fn look_after(name: String, address: SocketAddr, lost: Lost) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // At most three at a time: the fourth begins after the first is given up.
    let mut looks = JoinSet::new();
    let mut in_vain = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => drop(looks.spawn(answers(address))),
            Some(look) = looks.join_next() => {
                let answered = look.unwrap_or(false);
                in_vain = if answered { 0 } else { in_vain + 1 };
                if answered {
                    note(&lost, &name, false);
                } else if in_vain == IN_VAIN {
                    tracing::warn!(node = name, %address, "does not answer; its LoadBalancer addresses are taken over");
                    note(&lost, &name, true);
                }
            }
        }
    }
}

/// Whether a connection comes about in time. It is reset rather than closed: ten closed ones a second would stay for a minute each.
async fn answers(address: SocketAddr) -> bool {
    let stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        _ => return false,
    };
    // Without it the connection is closed in the usual way, which is no harm but for the place it takes.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::Instant;

    fn loopback() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }

    fn watched(address: SocketAddr, told: &Lost) -> Looking {
        let candidates = Candidates::from([("a".to_owned(), Some(address.ip()))]);
        let mut looking = Looking::default();
        looking.settle(
            &BTreeSet::from(["a".to_owned()]),
            &candidates,
            address.port(),
            told,
        );
        looking
    }

    /// A listener whose queue is full says nothing to whoever connects, like a node without power.
    async fn silent() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(loopback()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            held.push(stream.unwrap());
        }
        (listener, held)
    }

    #[tokio::test]
    async fn a_silent_node_is_lost_well_within_a_second_and_found_when_it_answers_again() {
        let (listener, held) = silent().await;
        let address = listener.local_addr().unwrap();
        let (told, mut lost) = watch::channel(BTreeSet::new());
        let begun = Instant::now();
        let _looking = watched(address, &told);
        lost.wait_for(|set| set.contains("a")).await.unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(800), "{took:?}");
        // Room in the queue: the next look is answered.
        drop(held);
        let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let found = timeout(Duration::from_secs(2), lost.wait_for(BTreeSet::is_empty)).await;
        found.unwrap().unwrap();
        accepting.abort();
    }

    #[tokio::test]
    async fn a_node_whose_agent_is_gone_is_lost_at_once_and_nobody_is_looked_after_in_vain() {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, mut lost) = watch::channel(BTreeSet::new());
        let mut looking = watched(address, &told);
        listener.accept().await.unwrap();
        assert!(lost.borrow_and_update().is_empty());
        drop(listener);
        let begun = Instant::now();
        lost.wait_for(|set| set.contains("a")).await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_millis(600),
            "{:?}",
            begun.elapsed()
        );
        looking.settle(&BTreeSet::new(), &Candidates::new(), address.port(), &told);
        assert!(looking.0.is_empty() && lost.borrow_and_update().is_empty());
    }

    #[test]
    fn an_address_is_told_anew_when_a_node_that_stepped_in_is_heard_again() {
        let ip = IpAddr::from([198, 51, 100, 1]);
        let duty = Duty {
            owned: BTreeSet::from([ip]),
            watched: BTreeSet::from(["b".to_owned()]),
            followers: BTreeMap::from([(ip, BTreeSet::from(["b".to_owned()]))]),
        };
        let mut claims = Claims::default();
        let (nobody, b) = (BTreeSet::new(), BTreeSet::from(["b".to_owned()]));
        for (lost, times) in [(&nobody, 0), (&b, 0), (&b, 0), (&nobody, 1), (&nobody, 1)] {
            claims.settle(&duty, lost);
            assert_eq!(claims.owned[&ip], times);
        }
        claims.settle(&Duty::default(), &nobody);
        assert!(claims.owned.is_empty());
    }
}
