//! `service.kubernetes.io/topology-mode: Auto`: endpoints are given to zones in proportion to their CPUs
//! (<https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing/>), by upstream's rules: no hints at all
//! where a zone would get more than a fifth more traffic than its share.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use super::endpoints::Groups;

/// The annotation, and its older name.
const MODES: [&str; 2] = [
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
];

const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes with these labels take no traffic of services that are spread by zone.
const CONTROL_PLANE: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// Whether a service asks for it.
#[must_use]
pub fn is_wanted(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let mode = annotations.and_then(|all| MODES.iter().find_map(|name| all.get(*name)));
    mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto"))
}

/// The zone of a node.
#[must_use]
pub fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE)
}

/// The milli-CPUs of a node that takes a share of the traffic; none of one that does not.
#[must_use]
pub fn share(node: &Node) -> Option<i64> {
    let labels = node.metadata.labels.as_ref();
    let takes = labels.is_none_or(|labels| CONTROL_PLANE.iter().all(|role| !labels.contains_key(*role)));
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let ready = conditions.any(|one| one.type_ == "Ready" && one.status == "True");
    let cpu = status.allocatable.as_ref()?.get("cpu")?;
    let cpu = Quantity::parse(&cpu.0).ok()?.milli_value();
    (takes && ready).then_some(cpu)
}

/// The milli-CPUs of each zone; empty if some node that counts is in none.
#[must_use]
pub fn cpus(nodes: &[Arc<Node>]) -> BTreeMap<String, i64> {
    let mut cpus = BTreeMap::new();
    for node in nodes {
        let Some(cpu) = share(node) else { continue };
        let Some(zone) = zone_of(node) else {
            return BTreeMap::new();
        };
        *cpus.entry(zone.clone()).or_insert(0) += cpu;
    }
    cpus
}

/// Gives every ready endpoint the zone that it serves; `cpus` are those of each zone.
pub(crate) fn spread(groups: &mut Groups, cpus: &BTreeMap<String, i64>) {
    let all = groups
        .values_mut()
        .flat_map(|(_, endpoints)| endpoints.iter_mut());
    let mut ready: Vec<&mut Endpoint> = all.filter(|endpoint| is_ready(endpoint)).collect();
    let Some(zones) = served(&ready, cpus) else { return };
    for (endpoint, zone) in ready.iter_mut().zip(zones) {
        endpoint.hints = Some(EndpointHints {
            for_zones: Some(vec![ForZone { name: zone }]),
            for_nodes: None,
        });
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_none_or(|conditions| conditions.ready != Some(false))
}

/// The zone that each endpoint serves: its own but for those that are moved to a zone with too few.
fn served(endpoints: &[&mut Endpoint], cpus: &BTreeMap<String, i64>) -> Option<Vec<String>> {
    let least = least(endpoints.len(), cpus)?;
    let own = endpoints.iter().map(|endpoint| endpoint.zone.clone());
    let mut zones = own.collect::<Option<Vec<String>>>()?;
    if zones.iter().any(|zone| !least.contains_key(zone)) {
        return None;
    }
    let spare = |zones: &[String], zone: &str| {
        let has = zones.iter().filter(|of| *of == zone).count();
        has.cast_signed() - least.get(zone).copied().unwrap_or(0).cast_signed()
    };
    for zone in least.keys() {
        while spare(&zones, zone) < 0 {
            let giver = least.keys().max_by_key(|of| spare(&zones, of))?;
            if spare(&zones, giver) <= 0 {
                return None;
            }
            let moved = zones.iter().position(|of| of == giver)?;
            if let Some(place) = zones.get_mut(moved) {
                place.clone_from(zone);
            }
        }
    }
    Some(zones)
}

/// How many of `count` endpoints each zone needs at least, so that none is asked for a fifth more than its share. None when
/// there are not two zones, or fewer endpoints than that takes.
fn least(count: usize, cpus: &BTreeMap<String, i64>) -> Option<BTreeMap<String, usize>> {
    let total: i64 = cpus.values().sum();
    if cpus.len() < 2 || cpus.len() > count || cpus.values().any(|cpu| *cpu <= 0) {
        return None;
    }
    let count = i64::try_from(count).ok()?;
    // count × cpu ÷ total ÷ 1.2, rounded up.
    let of = |cpu: &i64| (count * cpu * 10 + total * 12 - 1) / (total * 12);
    let least: BTreeMap<String, usize> = cpus
        .iter()
        .map(|(zone, cpu)| Some((zone.clone(), usize::try_from(of(cpu)).ok()?)))
        .collect::<Option<_>>()?;
    let sum = i64::try_from(least.values().sum::<usize>()).ok()?;
    (sum <= count).then_some(least)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn zones(of: &[&str], cpus: &[(&str, i64)]) -> Option<Vec<String>> {
        let mut all: Vec<Endpoint> = of
            .iter()
            .map(|zone| serde_json::from_value(json!({"addresses": ["192.0.2.1"], "zone": zone})).unwrap())
            .collect();
        let cpus = cpus
            .iter()
            .map(|(zone, cpu)| ((*zone).to_owned(), *cpu))
            .collect();
        served(&all.iter_mut().collect::<Vec<_>>(), &cpus)
    }

    #[test]
    fn endpoints_serve_their_own_zone_where_they_are_spread_as_the_processors_are() {
        let cpus = [("a", 2000), ("b", 2000), ("c", 2000)];
        assert_eq!(zones(&["a", "b", "c"], &cpus).unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn a_zone_with_too_few_is_given_some_of_another() {
        let cpus = [("a", 1000), ("b", 1000)];
        assert_eq!(zones(&["a", "a", "a", "a"], &cpus).unwrap(), ["b", "b", "a", "a"]);
    }

    #[test]
    fn there_are_no_hints_with_too_few_endpoints_one_zone_or_an_unknown_one() {
        let two = [("a", 1000), ("b", 1000)];
        assert_eq!(zones(&["a"], &two), None);
        assert_eq!(zones(&["a", "a"], &[("a", 1000)]), None);
        assert_eq!(zones(&["a", "x"], &two), None);
        assert_eq!(
            zones(&["a", "b"], &[("a", 9000), ("b", 1000)]),
            None,
            "three would be needed"
        );
    }
}
