//! Laying wanted endpoints over the slices that are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::Action;

use super::endpoints::{Family, Groups, port_key};
use super::{CAPACITY, HEADLESS, MANAGED_BY, MANAGER, Observed, SERVICE_NAME, is_headless};
use crate::ownership::{controller_ref, controller_uid};
use crate::selector::Labels;

/// A slice on its way to its new content.
struct Draft {
    held: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

/// Writes that turn the slices of a family into what is wanted.
pub(crate) fn lay_out(observed: &Observed, family: Family, wanted: Groups) -> Vec<Action> {
    let mut held: BTreeMap<String, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in observed.slices.iter().filter(|slice| is_live(slice, family)) {
        let ports = port_key(slice.ports.as_deref().unwrap_or_default());
        held.entry(ports).or_default().push(Arc::clone(slice));
    }
    let mut writes = Vec::new();
    let mut surplus = Vec::new();
    let mut kept = 0;
    for (key, (ports, endpoints)) in wanted {
        let slices = held.remove(&key).unwrap_or_default();
        let group = Group {
            observed,
            family,
            ports: &ports,
        };
        kept += group.lay_out(slices, endpoints, &mut writes, &mut surplus);
    }
    surplus.extend(held.into_values().flatten());
    if kept == 0 {
        let group = Group {
            observed,
            family,
            ports: &[],
        };
        group.placeholder(&mut surplus, &mut writes);
    }
    writes.extend(surplus.iter().map(|slice| Action::delete(slice.as_ref())));
    writes
}

/// Deletions of slices of families that the service no longer has.
pub(crate) fn other_families(observed: &Observed, families: &[Family]) -> Vec<Action> {
    let foreign = |slice: &&Arc<EndpointSlice>| {
        families
            .iter()
            .all(|family| family.address_type() != slice.address_type)
            && slice.metadata.deletion_timestamp.is_none()
    };
    observed
        .slices
        .iter()
        .filter(foreign)
        .map(|slice| Action::delete(slice.as_ref()))
        .collect()
}

fn is_live(slice: &EndpointSlice, family: Family) -> bool {
    slice.address_type == family.address_type() && slice.metadata.deletion_timestamp.is_none()
}

struct Group<'a> {
    observed: &'a Observed,
    family: Family,
    ports: &'a [EndpointPort],
}

impl Group<'_> {
    /// Lays `endpoints` over `slices`; returns how many slices the group has afterwards.
    fn lay_out(
        &self,
        slices: Vec<Arc<EndpointSlice>>,
        endpoints: Vec<Endpoint>,
        writes: &mut Vec<Action>,
        surplus: &mut Vec<Arc<EndpointSlice>>,
    ) -> usize {
        let mut missing: BTreeMap<String, Endpoint> =
            endpoints.into_iter().map(|one| (identity(&one), one)).collect();
        let mut drafts: Vec<Draft> = slices
            .into_iter()
            .map(|slice| keep_wanted(slice, &mut missing))
            .collect();
        let mut missing: Vec<Endpoint> = missing.into_values().collect();
        fill(&mut drafts, &mut missing);
        let mut kept = 0;
        for draft in drafts {
            if draft.endpoints.is_empty() {
                surplus.push(draft.held);
                continue;
            }
            kept += 1;
            writes.extend(self.rewrite(&draft.held, draft.endpoints, draft.changed));
        }
        for chunk in missing.chunks(CAPACITY) {
            kept += 1;
            writes.push(Action::create(&self.slice(chunk.to_vec())));
        }
        kept
    }

    /// A service without endpoints keeps one empty slice, so that readers can tell "none" from "not known yet".
    fn placeholder(&self, surplus: &mut Vec<Arc<EndpointSlice>>, writes: &mut Vec<Action>) {
        if surplus.is_empty() {
            writes.push(Action::create(&self.slice(Vec::new())));
        } else {
            let slice = surplus.remove(0);
            let filled = slice
                .endpoints
                .as_ref()
                .is_some_and(|endpoints| !endpoints.is_empty());
            let has_ports = slice.ports.as_ref().is_some_and(|ports| !ports.is_empty());
            writes.extend(self.rewrite(&slice, Vec::new(), filled || has_ports));
        }
    }

    fn rewrite(&self, held: &EndpointSlice, endpoints: Vec<Endpoint>, changed: bool) -> Option<Action> {
        let labels = self.labels();
        let owner = controller_ref(self.observed.service.as_ref());
        let stale_owner = controller_uid(&held.metadata) != Some(owner.uid.as_str());
        if !changed && !stale_owner && held.metadata.labels.as_ref() == Some(&labels) {
            return None;
        }
        let mut new = held.clone();
        new.metadata.labels = Some(labels);
        new.metadata.owner_references = Some(vec![owner]);
        new.endpoints = Some(endpoints);
        new.ports = Some(self.ports.to_vec());
        Some(Action::update(&new))
    }

    fn slice(&self, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let service = self.observed.service.as_ref();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let metadata = ObjectMeta {
            namespace: service.metadata.namespace.clone(),
            generate_name: Some(format!("{name}-")),
            labels: Some(self.labels()),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        };
        EndpointSlice {
            metadata,
            address_type: self.family.address_type().to_owned(),
            endpoints: Some(endpoints),
            ports: Some(self.ports.to_vec()),
        }
    }

    fn labels(&self) -> Labels {
        let service = self.observed.service.as_ref();
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if is_headless(service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        labels.insert(
            SERVICE_NAME.to_owned(),
            service.metadata.name.clone().unwrap_or_default(),
        );
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        labels
    }
}

/// What makes an endpoint the same one when its conditions change.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default();
    format!("{uid}/{}", endpoint.addresses.join(","))
}

/// Keeps the endpoints of a slice that are still wanted, in their newest state.
fn keep_wanted(slice: Arc<EndpointSlice>, missing: &mut BTreeMap<String, Endpoint>) -> Draft {
    let old = slice.endpoints.as_deref().unwrap_or_default();
    let endpoints: Vec<Endpoint> = old
        .iter()
        .filter_map(|endpoint| missing.remove(&identity(endpoint)))
        .collect();
    let changed = endpoints != old;
    Draft {
        held: slice,
        endpoints,
        changed,
    }
}

/// Fills what is missing into slices that are written anyway; if that leaves less than a slice full, into the fullest
/// other one that has room for all of it. The rest becomes new slices.
fn fill(drafts: &mut [Draft], missing: &mut Vec<Endpoint>) {
    for draft in drafts
        .iter_mut()
        .filter(|draft| draft.changed && !draft.endpoints.is_empty())
    {
        let room = CAPACITY.saturating_sub(draft.endpoints.len()).min(missing.len());
        draft.endpoints.extend(missing.drain(..room));
    }
    let rest = missing.len() % CAPACITY;
    let has_room = |draft: &&mut Draft| draft.endpoints.len() + rest <= CAPACITY;
    let fullest = drafts
        .iter_mut()
        .filter(has_room)
        .max_by_key(|draft| draft.endpoints.len());
    if let Some(draft) = fullest.filter(|_| rest > 0) {
        draft.endpoints.extend(missing.drain(..rest));
        draft.changed = true;
    }
}
