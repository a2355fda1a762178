//! What is special to a kind beyond its rules in `api::kinds`: work that needs state of the cluster.

pub(crate) mod binding;
pub(crate) mod eviction;
pub(crate) mod reviews;
pub(crate) mod scale;
pub(crate) mod services;
pub(crate) mod token;

use api::catalog::Resource;
use serde_json::Value;

pub(crate) use services::Claim;

use crate::call::Call;
use crate::error::Result;
use crate::object::storage;

/// What a new object needs before it is validated and stored.
pub(crate) fn before_create(call: &Call, object: &mut Value) -> Result<Claim> {
    match storage(&call.stored) {
        "services" => call.server.inner.services.create(object),
        _ => Ok(Claim::none()),
    }
}

/// What a changed object needs before it is validated and stored.
pub(crate) fn before_update(call: &Call, old: &Value, new: &mut Value) -> Result<Claim> {
    match (storage(&call.stored), &call.info.subresource) {
        ("services", None) => call.server.inner.services.update(old, new),
        _ => Ok(Claim::none()),
    }
}

/// Kinds whose PUT makes the object when it is not there, as upstream.
pub(crate) fn creates_on_update(res: &Resource) -> bool {
    matches!(
        storage(res),
        "events"
            | "endpoints"
            | "coordination.k8s.io/leases"
            | "limitranges"
            | "resourcequotas"
            | "rbac.authorization.k8s.io/roles"
            | "rbac.authorization.k8s.io/rolebindings"
            | "rbac.authorization.k8s.io/clusterroles"
            | "rbac.authorization.k8s.io/clusterrolebindings"
    )
}

/// Kinds whose PUT must name the version it replaces.
pub(crate) fn needs_version(res: &Resource) -> bool {
    matches!(
        storage(res),
        "discovery.k8s.io/endpointslices"
            | "coordination.k8s.io/leases"
            | "storage.k8s.io/csistoragecapacities"
            | "apiextensions.k8s.io/customresourcedefinitions"
    )
}
