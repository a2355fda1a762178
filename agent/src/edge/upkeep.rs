//! Looking after the data path: devices that come and go, flows that are over.

use super::facts::NodeFacts;
use super::metrics::ServiceMetrics;
use crate::recorder::Events;
use agent_datapath::{Datapath, DatapathError, XdpChoice, since_boot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Between two walks through the flows: what is over costs nothing but its place until then.
const WALK: Duration = Duration::from_secs(10);
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
    let mut ticks = interval(WALK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pressed = false;
    loop {
        ticks.tick().await;
        let handle = Arc::clone(&datapath);
        // A walk through a full table takes a good part of a second.
        let found = tokio::task::spawn_blocking(move || handle.collect(since_boot())).await;
        match found {
            Ok(Ok(found)) => {
                metrics.collected(&found);
                if found.is_pressed() && !pressed {
                    events.services_warning(&node, "FlowTablePressure", pressure(found.live, found.capacity));
                }
                pressed = found.is_pressed();
            }
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the flow table cannot be gone through"
            ),
            Err(error) => tracing::error!(%error, "the walk through the flow table ended"),
        }
    }
}

fn pressure(live: usize, capacity: u32) -> String {
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
}
