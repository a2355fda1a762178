//! The node's part in answering for LoadBalancer addresses: who is there, what is ours, who has to be looked after.

use super::elect::{self, Addresses, Candidates};
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

/// Between two looks at a node: three in vain, and another takes its place within a second.
const LOOK: Duration = Duration::from_millis(200);
/// Looks in vain until a node counts as lost.
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
    loop {
        changes.mark_unchanged();
        let candidates = elect::candidates(&election.nodes.list());
        let duty = {
            let (addresses, lost) = (election.addresses.borrow_and_update(), lost.borrow_and_update());
            elect::duty(&election.own, &addresses, &candidates, &lost)
        };
        if let Some(port) = election.port {
            looking.settle(&duty.watched, &candidates, port, &told);
        }
        election.metrics.announces(duty.owned.len());
        owned.send_if_modified(|known| {
            let changed = *known != duty.owned;
            if changed {
                tracing::info!(addresses = ?duty.owned, "this node answers for these LoadBalancer addresses");
            }
            *known = duty.owned;
            changed
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            changed = election.addresses.changed() => if changed.is_err() { return std::future::pending().await },
            changed = lost.changed() => if changed.is_err() { return std::future::pending().await },
        }
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
    let mut in_vain = 0;
    loop {
        ticks.tick().await;
        match timeout(LOOK, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                in_vain = 0;
                note(&lost, &name, false);
            }
            _ => {
                in_vain += 1;
                if in_vain == IN_VAIN {
                    tracing::warn!(node = name, %address, "does not answer; its LoadBalancer addresses are taken over");
                    note(&lost, &name, true);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    #[tokio::test]
    async fn a_node_is_lost_within_a_second_of_its_silence_and_found_when_it_answers_again() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, mut lost) = watch::channel(BTreeSet::new());
        let (mut looking, candidates) = (
            Looking::default(),
            Candidates::from([("a".to_owned(), Some(address.ip()))]),
        );
        let watched = BTreeSet::from(["a".to_owned()]);
        looking.settle(&watched, &candidates, address.port(), &told);
        // It is there.
        listener.accept().await.unwrap();
        assert!(lost.borrow_and_update().is_empty());
        drop(listener);
        let begun = Instant::now();
        lost.wait_for(|set| set.contains("a")).await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_millis(1500),
            "{:?}",
            begun.elapsed()
        );
        let _again = TcpListener::bind(address).await.unwrap();
        lost.wait_for(BTreeSet::is_empty).await.unwrap();
        looking.settle(&BTreeSet::new(), &candidates, address.port(), &told);
        assert!(looking.0.is_empty());
    }
}
