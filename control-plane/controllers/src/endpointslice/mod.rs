//! EndpointSlices: where the pods behind a Service are
//! (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>).
//!
//! Wanted endpoints are grouped by address family and ports; each group is laid over the slices that are there with as
//! few writes as possible.

mod endpoints;
mod layout;
pub mod mirror;
pub mod topology;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_plan::Plan;

pub use endpoints::Family;

/// Label that names the service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] for slices of this controller, upstream's.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Label of services and slices of services without an address.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints that one slice holds at most.
const CAPACITY: usize = 100;

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The service.
    pub service: Arc<Service>,
    /// Pods of its namespace that its selector takes.
    pub pods: Vec<Arc<Pod>>,
    /// Slices labelled with the service's name and this controller as manager.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Zone of each node that exists; empty if it has none.
    pub zones: BTreeMap<String, String>,
    /// Milli-CPUs of each zone, where the service wants its endpoints spread by them and every node tells.
    pub cpus: BTreeMap<String, i64>,
}

/// Which slices to write for a service. Slices of a deleted service go with it, by their owner reference.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let service = observed.service.as_ref();
    let mut plan = Plan::nothing();
    if !is_ours(service) {
        return plan;
    }
    let families = endpoints::families(service);
    let mut writes = Vec::new();
    for family in &families {
        let mut wanted = endpoints::wanted(observed, *family);
        if topology::is_wanted(service) && !asks_for_near(service) {
            topology::spread(&mut wanted, &observed.cpus);
        }
        writes.extend(layout::lay_out(observed, *family, wanted));
    }
    writes.extend(layout::other_families(observed, &families));
    plan.together(writes);
    plan
}

/// Whether the controller writes slices for a service: those with a selector that are not just an alias.
#[must_use]
pub fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let alias = spec.type_.as_deref() == Some("ExternalName");
    let selects = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.is_empty());
    selects && !alias && service.metadata.deletion_timestamp.is_none()
}

/// `trafficDistribution` counts before the annotation.
fn asks_for_near(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.traffic_distribution.is_some())
}

/// Whether a service has no address of its own.
#[must_use]
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}
