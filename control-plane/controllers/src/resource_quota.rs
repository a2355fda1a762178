//! ResourceQuota: what a namespace uses
//! (<https://kubernetes.io/docs/concepts/policy/resource-quotas/>).
//!
//! The API server charges what is made; this counts again what is there, when something went or the limits changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::{Resource, catalog};
use api::kinds::quota::{self, Usage, counted_as};
use api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_plan::{Action, Plan, ResourceType};
use serde::Serialize;
use serde_json::Value;

/// Everything is counted again after this time at the latest, should a charge have been lost.
const RECOUNT: Duration = Duration::from_secs(300);

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The quota.
    pub quota: Arc<ResourceQuota>,
    /// Pods of its namespace.
    pub pods: Vec<Arc<Pod>>,
    /// Services of its namespace.
    pub services: Vec<Arc<Service>>,
    /// Claims of its namespace.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// How many objects of each kind there are in its namespace.
    pub counts: Vec<(ResourceType, usize)>,
}

/// What to do next for a quota.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let quota = observed.quota.as_ref();
    let mut plan = Plan::nothing();
    if quota.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.requeue(RECOUNT);
    let hard = quota
        .spec
        .as_ref()
        .and_then(|spec| spec.hard.clone())
        .unwrap_or_default();
    let used = used(observed);
    let used: BTreeMap<String, Wire> = hard
        .keys()
        .map(|name| {
            let none = Quantity::from_value(0, Format::Decimal);
            let amount = used.get(name).copied().unwrap_or(none);
            (name.clone(), Wire(amount.to_string()))
        })
        .collect();
    let some = |map: BTreeMap<String, Wire>| Some(map).filter(|map| !map.is_empty());
    let status = ResourceQuotaStatus {
        hard: some(hard),
        used: some(used),
    };
    if quota.status.clone().unwrap_or_default() != status {
        plan.then(Action::status(quota, &status));
    }
    plan
}

fn used(observed: &Observed) -> Usage {
    let spec = serde_json::to_value(&observed.quota.spec).unwrap_or_default();
    let mut used = all("pods", &observed.pods, &spec);
    if is_scoped(&spec) {
        return used;
    }
    used = quota::sum(used, all("services", &observed.services, &spec));
    used = quota::sum(used, all("persistentvolumeclaims", &observed.claims, &spec));
    let looked_into = ["pods", "services", "persistentvolumeclaims"];
    for (resource, count) in &observed.counts {
        if resource.group.is_empty() && looked_into.contains(&resource.plural.as_ref()) {
            continue;
        }
        let count = Quantity::from_value(i64::try_from(*count).unwrap_or(i64::MAX), Format::Decimal);
        let names = counted_as(&resource.group, &resource.plural).into_iter();
        used = quota::sum(used, names.map(|name| (name, count)).collect());
    }
    used
}

fn is_scoped(spec: &Value) -> bool {
    let any = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    any(&spec["scopes"]) || any(&spec["scopeSelector"]["matchExpressions"])
}

/// What all these objects of a core resource use of a quota with this spec.
fn all<K: Serialize>(plural: &str, objects: &[Arc<K>], spec: &Value) -> Usage {
    let Some(resource) = catalog().lookup("", "v1", plural) else {
        return Usage::new();
    };
    let resource: &Resource = &resource;
    let values = objects
        .iter()
        .filter_map(|object| serde_json::to_value(object.as_ref()).ok());
    let counted = values.filter(|object| quota::counts(spec, resource, object));
    counted
        .map(|object| quota::usage(resource, &object))
        .fold(Usage::new(), quota::sum)
}

#[cfg(test)]
mod tests {
    use machinery_plan::{Operation, lint};
    use serde_json::json;

    use super::*;

    fn observed(hard: Value, scopes: Value) -> Observed {
        let quota = json!({
            "metadata": {"name": "q", "namespace": "a", "uid": "q", "resourceVersion": "1"},
            "spec": {"hard": hard, "scopes": scopes},
        });
        let pod = |cpu: &str, phase: &str| {
            let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            let pod = json!({
                "metadata": {"name": "p"}, "spec": {"containers": [container]}, "status": {"phase": phase},
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let secrets = ResourceType::of::<k8s_openapi::api::core::v1::Secret>();
        Observed {
            quota: Arc::new(serde_json::from_value(quota).unwrap()),
            pods: vec![
                pod("100m", "Running"),
                pod("200m", "Pending"),
                pod("1", "Succeeded"),
            ],
            services: vec![],
            claims: vec![],
            counts: vec![(secrets, 3), (ResourceType::of::<Pod>(), 3)],
        }
    }

    fn written(observed: &Observed) -> Option<Value> {
        let plan = plan(observed);
        lint::assert_clean(&plan);
        plan.actions().find_map(|action| match &action.operation {
            Operation::Update { body, .. } => Some(body["status"].clone()),
            _ => None,
        })
    }

    #[test]
    fn only_what_is_limited_is_told_and_ended_pods_use_nothing() {
        let mut observed = observed(
            json!({"pods": "5", "cpu": "1", "secrets": "2", "services": "1"}),
            json!(null),
        );
        let status = written(&observed).unwrap();
        assert_eq!(
            status["used"],
            json!({"cpu": "300m", "pods": "2", "secrets": "3", "services": "0"})
        );
        assert_eq!(status["hard"]["pods"], "5");
        let mut told = observed.quota.as_ref().clone();
        told.status = serde_json::from_value(status).unwrap();
        observed.quota = Arc::new(told);
        assert_eq!(written(&observed), None, "the status is written once");
    }

    #[test]
    fn a_scoped_quota_counts_the_pods_of_its_scope() {
        let status = written(&observed(
            json!({"pods": "5", "secrets": "5"}),
            json!(["NotBestEffort"]),
        ))
        .unwrap();
        assert_eq!(status["used"], json!({"pods": "2", "secrets": "0"}));
        let status = written(&observed(json!({"pods": "5"}), json!(["BestEffort"]))).unwrap();
        assert_eq!(status["used"], json!({"pods": "0"}));
    }
}
