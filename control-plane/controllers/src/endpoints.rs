//! Endpoints: the older list of where the pods behind a Service are, for those who still read it
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#endpoints>). The data path reads slices only.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, Plan};

use crate::endpointslice::{HEADLESS, is_headless, is_ours};

/// Label of objects that are made from slices or to be made into them by nobody.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses that one object holds at most.
const CAPACITY: usize = 1000;

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The service, if there is one of the name.
    pub service: Option<Arc<Service>>,
    /// Its slices, as the slices' controller wrote them.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The object of its name.
    pub endpoints: Option<Arc<Endpoints>>,
}

/// What to write for a service.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::nothing();
    let Some(service) = observed.service.as_deref() else {
        plan.together(
            observed
                .endpoints
                .iter()
                .filter(|held| is_left_over(held))
                .map(|held| Action::delete(held.as_ref())),
        );
        return plan;
    };
    if !is_ours(service) {
        return plan;
    }
    let (subsets, over) = subsets(observed, service);
    let (labels, annotations) = (labels(service), annotations(observed, over));
    match observed.endpoints.as_deref() {
        Some(held) if held.metadata.deletion_timestamp.is_some() => {}
        Some(held) => {
            let mut new = held.clone();
            new.subsets = subsets;
            new.metadata.labels = labels;
            new.metadata.annotations = annotations;
            if new != *held {
                plan.then(Action::update(&new));
            }
        }
        None => {
            let metadata = ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: service.metadata.namespace.clone(),
                labels,
                annotations,
                ..ObjectMeta::default()
            };
            plan.then(Action::create(&Endpoints { metadata, subsets }));
        }
    }
    plan
}

/// Whether an object was made here for a service that is gone: no owner takes it along.
fn is_left_over(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let ours = labels
        .and_then(|labels| labels.get(MANAGED_BY))
        .is_some_and(|manager| manager == MANAGER);
    ours && endpoints.metadata.deletion_timestamp.is_none()
}

fn labels(service: &Service) -> Option<BTreeMap<String, String>> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    Some(labels)
}

fn annotations(observed: &Observed, over: bool) -> Option<BTreeMap<String, String>> {
    let held = observed
        .endpoints
        .as_ref()
        .and_then(|held| held.metadata.annotations.clone());
    let mut annotations = held.unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    annotations.remove(SKIP_MIRROR);
    if over {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

/// Addresses of the service's first family by the ports they serve, and whether some had to be left out.
fn subsets(observed: &Observed, service: &Service) -> (Option<Vec<EndpointSubset>>, bool) {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone());
    let family = families
        .and_then(|all| all.into_iter().next())
        .unwrap_or_else(|| "IPv4".to_owned());
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let (mut room, mut over) = (CAPACITY, false);
    let mut slices: Vec<_> = observed
        .slices
        .iter()
        .filter(|slice| slice.address_type == family)
        .collect();
    slices.sort_by_key(|slice| slice.metadata.name.clone());
    for slice in slices {
        let ports = ports(slice);
        let key = format!("{ports:?}");
        for endpoint in slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| is_listed(endpoint))
        {
            if room == 0 {
                over = true;
                continue;
            }
            room -= 1;
            let subset = groups.entry(key.clone()).or_insert_with(|| EndpointSubset {
                ports: Some(ports.clone()).filter(|ports| !ports.is_empty()),
                ..EndpointSubset::default()
            });
            let ready = endpoint
                .conditions
                .as_ref()
                .is_none_or(|c| c.ready != Some(false));
            let list = if ready {
                &mut subset.addresses
            } else {
                &mut subset.not_ready_addresses
            };
            list.get_or_insert_default().extend(address(endpoint));
        }
    }
    let mut subsets: Vec<_> = groups.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            list.iter_mut()
                .for_each(|list| list.sort_by(|one, other| one.ip.cmp(&other.ip)));
        }
    }
    (Some(subsets).filter(|subsets| !subsets.is_empty()), over)
}

/// A pod that is going is in slices only, unless the service wants to see all.
fn is_listed(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    conditions.terminating != Some(true) || conditions.ready == Some(true)
}

fn address(endpoint: &Endpoint) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: endpoint.addresses.first()?.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    })
}

fn ports(slice: &EndpointSlice) -> Vec<EndpointPort> {
    let all = slice.ports.iter().flatten();
    let ports = all.filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port?,
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

#[cfg(test)]
mod tests {
    use machinery_plan::{Operation, lint};
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, family: &str, endpoints: Value) -> Arc<EndpointSlice> {
        let slice = json!({"metadata": {"name": name}, "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}]});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn endpoint(ip: &str, ready: bool, terminating: bool) -> Value {
        json!({"addresses": [ip], "conditions": {"ready": ready, "terminating": terminating}, "nodeName": "n"})
    }

    fn observed(slices: Vec<Arc<EndpointSlice>>) -> Observed {
        let service = json!({"metadata": {"name": "web", "namespace": "a", "labels": {"l": "1"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4", "IPv6"]}});
        Observed {
            service: Some(Arc::new(serde_json::from_value(service).unwrap())),
            slices,
            endpoints: None,
        }
    }

    fn created(observed: &Observed) -> Value {
        let plan = plan(observed);
        lint::assert_clean(&plan);
        plan.creations()[0].clone()
    }

    #[test]
    fn addresses_of_the_first_family_stand_by_readiness_and_those_that_go_do_not() {
        let endpoints = json!([
            endpoint("10.1.0.2", true, false),
            endpoint("10.1.0.1", true, false),
            endpoint("10.1.0.3", false, false),
            endpoint("10.1.0.4", false, true)
        ]);
        let other = json!([endpoint("fd00::1", true, false)]);
        let body = created(&observed(vec![
            slice("s1", "IPv4", endpoints),
            slice("s2", "IPv6", other),
        ]));
        let subset = &body["subsets"][0];
        assert_eq!(body["subsets"].as_array().unwrap().len(), 1);
        let ips = |list: &str| {
            let all = subset[list]
                .as_array()
                .unwrap()
                .iter()
                .map(|a| a["ip"].as_str().unwrap().to_owned());
            all.collect::<Vec<_>>()
        };
        assert_eq!(ips("addresses"), ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(ips("notReadyAddresses"), ["10.1.0.3"]);
        assert_eq!(subset["ports"][0], json!({"port": 80, "protocol": "TCP"}));
        assert_eq!(body["metadata"]["labels"]["l"], "1");
    }

    #[test]
    fn a_service_without_pods_has_an_empty_object_and_it_is_written_once() {
        let mut observed = observed(vec![]);
        let body = created(&observed);
        assert_eq!(body["subsets"], Value::Null);
        observed.endpoints = Some(Arc::new(serde_json::from_value(body).unwrap()));
        assert!(plan(&observed).is_empty());
        observed.slices = vec![slice("s", "IPv4", json!([endpoint("10.1.0.1", true, false)]))];
        let changed = plan(&observed);
        assert!(matches!(
            changed.actions().next().unwrap().operation,
            Operation::Update { .. }
        ));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let many: Vec<Value> = (0..1001)
            .map(|n| endpoint(&format!("10.1.{}.{}", n / 250, n % 250), true, false))
            .collect();
        let body = created(&observed(vec![slice("s", "IPv4", json!(many))]));
        assert_eq!(body["subsets"][0]["addresses"].as_array().unwrap().len(), 1000);
        assert_eq!(body["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    }

    #[test]
    fn what_is_left_of_a_service_that_is_gone_goes_and_what_others_made_stays() {
        let mut observed = observed(vec![]);
        let mut body = created(&observed);
        body["metadata"]["uid"] = json!("e");
        observed.service = None;
        observed.endpoints = Some(Arc::new(serde_json::from_value(body.clone()).unwrap()));
        assert_eq!(plan(&observed).deletions().len(), 1);
        body["metadata"]["labels"] = json!({});
        observed.endpoints = Some(Arc::new(serde_json::from_value(body).unwrap()));
        assert!(plan(&observed).is_empty());
    }
}
