//! `Event` of the core group and of `events.k8s.io`: the same facts under other names.

use serde_json::{Map, Value};

use super::rename;

/// Core name, new name.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub(super) fn to_new(event: &mut Map<String, Value>) {
    NAMES.iter().for_each(|(core, new)| rename(event, core, new));
}

pub(super) fn to_core(event: &mut Map<String, Value>) {
    NAMES.iter().for_each(|(core, new)| rename(event, new, core));
}
