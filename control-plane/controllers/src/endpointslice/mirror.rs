//! Slices made from Endpoints that somebody else wrote: of services without a selector
//! (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#endpointslice-mirroring>). The data path
//! reads slices only, so that without this such a service would lead nowhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, Plan};

use super::endpoints::port_key;
use super::{MANAGED_BY, SERVICE_NAME};
use crate::ownership::{controller_ref, controller_uid};

/// The value of the label [`MANAGED_BY`] for slices of this controller, upstream's.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that nobody shall mirror.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotations that are no content: a lock of long ago, kubectl's memory, and a time stamp.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const NOT_COPIED: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
];
/// Endpoints that one slice holds at most, as upstream's controller has it; what is more is left out.
const CAPACITY: usize = 1000;

/// What the planner looks at; all of one name.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The service.
    pub service: Option<Arc<Service>>,
    /// The object to mirror.
    pub endpoints: Option<Arc<Endpoints>>,
    /// Slices labelled with the service's name and this controller as manager.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Which slices to write, and which to delete because there is nothing to mirror.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::nothing();
    let live = observed.slices.iter();
    let mut held: Vec<&Arc<EndpointSlice>> = live
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    let mut writes = Vec::new();
    for (endpoints, group) in mirrored(observed)
        .into_iter()
        .flat_map(|e| groups(e).into_iter().map(move |g| (e, g)))
    {
        let same = held.iter().position(|slice| group.is_of(slice));
        match same.map(|at| held.remove(at)) {
            Some(slice) => writes.extend(group.rewrite(endpoints, slice)),
            None => writes.push(Action::create(&group.slice(endpoints))),
        }
    }
    writes.extend(held.into_iter().map(|slice| Action::delete(slice.as_ref())));
    plan.together(writes);
    plan
}

/// The object, if it is to be mirrored: its service is there and has no selector, and it does not say otherwise.
fn mirrored(observed: &Observed) -> Option<&Endpoints> {
    let spec = observed.service.as_ref()?.spec.as_ref()?;
    let selects = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.is_empty());
    let endpoints = observed.endpoints.as_deref()?;
    let meta = &endpoints.metadata;
    let skip = meta.labels.as_ref().and_then(|labels| labels.get(SKIP));
    let skip = skip.is_some_and(|value| value == "true");
    let lock = meta
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(LEADER));
    (!selects && !skip && !lock && meta.deletion_timestamp.is_none()).then_some(endpoints)
}

/// What makes one slice.
struct Group {
    address_type: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// Addresses by family and ports; subsets with the same ports share a slice.
fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        for (address, ready) in addresses(subset) {
            let Some(address_type) = address_type(&address.ip) else {
                continue;
            };
            let group = groups
                .entry((address_type, port_key(&ports)))
                .or_insert_with(|| Group {
                    address_type,
                    ports: ports.clone(),
                    endpoints: Vec::new(),
                });
            if group.endpoints.len() < CAPACITY {
                group.endpoints.push(endpoint(address, ready));
            }
        }
    }
    groups.into_values().collect()
}

fn addresses(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let not_ready = subset.not_ready_addresses.iter().flatten();
    ready.chain(not_ready.map(|address| (address, false)))
}

fn address_type(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

impl Group {
    /// Whether a slice has this group's family and ports: the family of a slice cannot change.
    fn is_of(&self, slice: &EndpointSlice) -> bool {
        let ports = port_key(slice.ports.as_deref().unwrap_or_default());
        slice.address_type == self.address_type && ports == port_key(&self.ports)
    }

    fn slice(&self, of: &Endpoints) -> EndpointSlice {
        let name = of.metadata.name.as_deref().unwrap_or_default();
        EndpointSlice {
            metadata: ObjectMeta {
                namespace: of.metadata.namespace.clone(),
                generate_name: Some(format!("{name}-")),
                labels: Some(labels(of)),
                annotations: annotations(of),
                owner_references: Some(vec![controller_ref(of)]),
                ..ObjectMeta::default()
            },
            address_type: self.address_type.to_owned(),
            endpoints: Some(self.endpoints.clone()),
            ports: Some(self.ports.clone()),
        }
    }

    fn rewrite(&self, of: &Endpoints, held: &EndpointSlice) -> Option<Action> {
        let wanted = self.slice(of);
        let owner = of.metadata.uid.as_deref().unwrap_or_default();
        let same = held.endpoints == wanted.endpoints
            && held.metadata.labels == wanted.metadata.labels
            && held.metadata.annotations == wanted.metadata.annotations
            && controller_uid(&held.metadata) == Some(owner);
        let mut new = held.clone();
        new.endpoints = wanted.endpoints;
        new.metadata.labels = wanted.metadata.labels;
        new.metadata.annotations = wanted.metadata.annotations;
        new.metadata.owner_references = wanted.metadata.owner_references;
        (!same).then(|| Action::update(&new))
    }
}

fn labels(of: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = of.metadata.labels.clone().unwrap_or_default();
    let name = of.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn annotations(of: &Endpoints) -> Option<BTreeMap<String, String>> {
    let mut annotations = of.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

#[cfg(test)]
mod tests {
    use machinery_plan::{Operation, lint};
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        let object = json!({"metadata": {"name": "db", "namespace": "a", "uid": "e", "labels": {"l": "1"}},
            "subsets": subsets});
        serde_json::from_value(object).unwrap()
    }

    fn observed(subsets: Value) -> Observed {
        let service =
            json!({"metadata": {"name": "db", "namespace": "a"}, "spec": {"ports": [{"port": 80}]}});
        Observed {
            service: Some(Arc::new(serde_json::from_value(service).unwrap())),
            endpoints: Some(Arc::new(endpoints(subsets))),
            slices: Vec::new(),
        }
    }

    fn one(ip: &str) -> Value {
        json!([{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}])
    }

    /// The slices that a plan creates, as the API would give them back.
    fn made(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let slices = plan.creations().into_iter().enumerate().map(|(n, body)| {
            let mut body = body.clone();
            body["metadata"]["name"] = json!(format!("s{n}"));
            body["metadata"]["uid"] = json!(format!("u{n}"));
            body["metadata"]["resourceVersion"] = json!("1");
            Arc::new(serde_json::from_value(body).unwrap())
        });
        slices.collect()
    }

    #[test]
    fn addresses_become_slices_by_family_and_ports_and_are_written_once() {
        let mut observed = observed(json!([
            {"addresses": [{"ip": "192.0.2.1", "hostname": "h"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
             "ports": [{"name": "x", "port": 1}]},
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": [{"name": "y", "port": 2}]}]));
        let first = plan(&observed);
        lint::assert_clean(&first);
        let slices = made(&first);
        let told: Vec<_> = slices
            .iter()
            .map(|s| (s.address_type.as_str(), s.endpoints.as_ref().unwrap().len()))
            .collect();
        assert_eq!(told, [("IPv4", 2), ("IPv4", 1), ("IPv6", 1)]);
        let labels = slices[0].metadata.labels.as_ref().unwrap();
        assert_eq!((labels["l"].as_str(), labels[SERVICE_NAME].as_str()), ("1", "db"));
        let listed = slices[0].endpoints.as_ref().unwrap();
        assert_eq!(listed[0].hostname.as_deref(), Some("h"));
        assert_eq!(listed[1].conditions.as_ref().unwrap().ready, Some(false));
        observed.slices = slices;
        assert!(plan(&observed).is_empty());
    }

    #[test]
    fn a_changed_address_is_written_into_the_slice_that_is_there() {
        let mut state = observed(one("192.0.2.1"));
        state.slices = made(&plan(&state));
        state.endpoints = Some(Arc::new(endpoints(one("192.0.2.9"))));
        let changed = plan(&state);
        let operations: Vec<_> = changed.actions().map(|action| &action.operation).collect();
        assert!(matches!(operations.as_slice(), [Operation::Update { .. }]));
    }

    #[test]
    fn slices_go_with_their_object_and_with_a_service_that_gets_a_selector() {
        let mut state = observed(one("192.0.2.1"));
        state.slices = made(&plan(&state));
        let gone = Observed {
            endpoints: None,
            ..state.clone()
        };
        assert_eq!(plan(&gone).deletions().len(), 1);
        let selector =
            json!({"metadata": {"name": "db", "namespace": "a"}, "spec": {"selector": {"a": "b"}}});
        state.service = Some(Arc::new(serde_json::from_value(selector).unwrap()));
        assert_eq!(plan(&state).deletions().len(), 1);
    }

    #[test]
    fn an_object_may_say_that_it_is_not_to_be_mirrored() {
        for meta in [
            json!({"labels": {SKIP: "true"}}),
            json!({"annotations": {LEADER: "x"}}),
        ] {
            let mut object = json!({"metadata": meta, "subsets": one("192.0.2.1")});
            object["metadata"]["name"] = json!("db");
            let mut state = observed(json!([]));
            state.endpoints = Some(Arc::new(serde_json::from_value(object).unwrap()));
            assert!(plan(&state).is_empty());
        }
    }
}
