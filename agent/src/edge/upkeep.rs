//! Looking after the data path: devices that come and go, flows that are over.

use super::facts::NodeFacts;
use super::metrics::ServiceMetrics;
use crate::recorder::Events;
use agent_datapath::{Collected, Datapath, DatapathError, XdpChoice, since_boot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two walks through the flows: what is over costs nothing but its place until then.
const WALK: Duration = Duration::from_secs(10);
/// The same where the table fills fast.
const WALK_AGAIN: Duration = Duration::from_secs(1);
/// Until a device that refused its programs is tried again, unless devices change before.
const AGAIN: Duration = Duration::from_secs(5);

/// What is served of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uplink,
    Pod,
}

/// Keeps the programs on the node's uplinks, and on the devices of pods where another plugin makes those, until dropped.
pub async fn devices(
    datapath: Arc<Datapath>,
    mut node: watch::Receiver<Option<NodeFacts>>,
    foreign_pods: bool,
) {
    let mut attached: BTreeMap<String, (u32, Kind)> = BTreeMap::new();
    node.mark_changed();
    loop {
        let wanted = node
            .borrow_and_update()
            .as_ref()
            .map(|facts| wanted(facts, foreign_pods))
            .unwrap_or_default();
        let complete = settle(&datapath, &mut attached, &wanted);
        tokio::select! {
            changed = node.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(AGAIN), if !complete => {}
        }
    }
}

fn wanted(facts: &NodeFacts, foreign_pods: bool) -> BTreeMap<String, (u32, Kind)> {
    let of = |devices: &BTreeMap<String, u32>, kind| {
        let all = devices
            .iter()
            .map(move |(name, index)| (name.clone(), (*index, kind)));
        all.collect::<Vec<_>>()
    };
    let mut all = of(&facts.uplinks, Kind::Uplink);
    if foreign_pods {
        all.extend(of(&facts.pod_devices, Kind::Pod));
    }
    all.into_iter().collect()
}

/// Attaches and detaches what differs; whether everything wanted is attached then.
fn settle(
    datapath: &Datapath,
    attached: &mut BTreeMap<String, (u32, Kind)>,
    wanted: &BTreeMap<String, (u32, Kind)>,
) -> bool {
    attached.retain(|name, known| {
        let stays = wanted.get(name) == Some(known);
        if !stays && let Err(error) = detach(datapath, name, known.1) {
            tracing::debug!(device = name, %error, "programs not taken from a device; they end with it");
        }
        stays
    });
    for (name, (index, kind)) in wanted {
        if attached.contains_key(name) {
            continue;
        }
        match attach(datapath, name, *kind) {
            Ok(()) => drop(attached.insert(name.clone(), (*index, *kind))),
            Err(error) => tracing::warn!(
                device = name,
                error = &error as &dyn std::error::Error,
                "services are not served on this device; trying again"
            ),
        }
    }
    wanted.len() == attached.len()
}

fn attach(datapath: &Datapath, name: &str, kind: Kind) -> Result<(), DatapathError> {
    match kind {
        Kind::Uplink => {
            // It tells itself how it does that, and why.
            datapath.attach_uplink(name, XdpChoice::Auto).map(drop)
        }
        Kind::Pod => datapath.attach_pod_device(name),
    }
}

fn detach(datapath: &Datapath, name: &str, kind: Kind) -> Result<(), DatapathError> {
    match kind {
        Kind::Uplink => datapath.detach_uplink(name),
        Kind::Pod => datapath.detach_pod_device(name),
    }
}

/// Takes flows that are over out of their table, tells how full it is, and warns before it is full, until dropped.
pub async fn flows(datapath: Arc<Datapath>, metrics: ServiceMetrics, events: Events, node: String) {
    let mut upkeep = FlowTable::default();
    let mut pause = Duration::ZERO;
    loop {
        sleep(pause).await;
        let handle = Arc::clone(&datapath);
        // A walk through a full table takes a good part of a second.
        let found = tokio::task::spawn_blocking(move || handle.collect(since_boot())).await;
        pause = WALK;
        match found {
            Ok(Ok(found)) => {
                metrics.collected(&found);
                if let Some(warning) = upkeep.warning(&found) {
                    events.services_warning(&node, "FlowTablePressure", warning);
                }
                pause = upkeep.pause(&found, since_boot());
            }
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the flow table cannot be gone through"
            ),
            Err(error) => tracing::error!(%error, "the walk through the flow table ended"),
        }
    }
}

/// What is remembered between two walks.
#[derive(Default)]
struct FlowTable {
    pressed: bool,
    /// When the last walk ended, in time since boot, and how many entries it left.
    last: Option<(Duration, usize)>,
}

impl FlowTable {
    /// What to tell when pressure begins; not again until it was over.
    fn warning(&mut self, found: &Collected) -> Option<String> {
        let begins = found.is_pressed() && !self.pressed;
        self.pressed = found.is_pressed();
        begins.then(|| pressure(found))
    }

    /// Until the next walk: no longer than half of what it takes to fill the table to where pressure begins, as fast as it filled
    /// since the last one. Between walks only the kernel makes room, and it does not know which flows are worth keeping.
    fn pause(&mut self, found: &Collected, now: Duration) -> Duration {
        let last = self.last.replace((now, found.live));
        let Some((then, left)) = last else {
            return WALK_AGAIN;
        };
        let new = (found.live + found.deleted).saturating_sub(left);
        let room = found.room();
        if new == 0 {
            return if found.is_pressed() { WALK_AGAIN } else { WALK };
        }
        let passed = now.saturating_sub(then).as_secs_f64();
        let until_pressed = passed * room as f64 / new as f64;
        Duration::from_secs_f64(until_pressed / 2.0).clamp(WALK_AGAIN, WALK)
    }
}

fn pressure(found: &Collected) -> String {
    let Collected { live, capacity, .. } = found;
    format!(
        "The table of connections that are translated per packet holds {live} of {capacity} entries; closed and unanswered \
         ones are ended early to make room. A node with more memory has a larger table."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_pods_are_ours_to_serve_only_where_another_plugin_makes_them() {
        let facts = NodeFacts {
            uplinks: BTreeMap::from([("eth0".to_owned(), 2)]),
            pod_devices: BTreeMap::from([("cali1".to_owned(), 7)]),
            ..NodeFacts::default()
        };
        assert_eq!(
            wanted(&facts, false),
            BTreeMap::from([("eth0".to_owned(), (2, Kind::Uplink))])
        );
        assert_eq!(wanted(&facts, true)["cali1"], (7, Kind::Pod));
    }

    fn found(live: usize, deleted: usize, pressed_out: usize) -> Collected {
        Collected {
            deleted,
            pressed_out,
            live,
            capacity: 1000,
        }
    }

    #[test]
    fn pressure_is_told_of_once_before_the_table_is_full_and_again_when_it_comes_back() {
        let mut table = FlowTable::default();
        assert_eq!(table.warning(&found(750, 0, 0)), None);
        let told = table.warning(&found(751, 0, 0)).unwrap();
        assert!(told.contains("751 of 1000"), "{told}");
        assert_eq!(table.warning(&found(900, 0, 0)), None);
        assert_eq!(table.warning(&found(100, 0, 0)), None);
        // Room had to be made: that is pressure too.
        assert!(table.warning(&found(750, 10, 10)).is_some());
    }

    #[test]
    fn a_table_that_fills_fast_is_gone_through_more_often() {
        let at = Duration::from_secs;
        let mut table = FlowTable::default();
        assert_eq!(
            table.pause(&found(0, 0, 0), at(1)),
            WALK_AGAIN,
            "nothing is known yet"
        );
        assert_eq!(table.pause(&found(10, 0, 0), at(2)), WALK);
        // A hundred a second, room for 500 until pressure begins: full in five seconds.
        assert_eq!(
            table.pause(&found(250, 760, 0), at(12)),
            Duration::from_millis(2500)
        );
        assert_eq!(table.pause(&found(750, 500, 100), at(15)), WALK_AGAIN);
        assert_eq!(
            table.pause(&found(750, 0, 0), at(16)),
            WALK,
            "nothing new: all of them are open"
        );
    }
}
