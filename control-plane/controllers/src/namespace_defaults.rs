//! What every namespace has from the start: the service account `default` and the cluster's root certificates.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Action, Plan};
use serde_json::json;

/// Name of the service account of pods that name none.
pub const SERVICE_ACCOUNT: &str = "default";
/// Name of the config map with the root certificates.
pub const ROOT_CA: &str = "kube-root-ca.crt";
/// Its key.
pub const ROOT_CA_KEY: &str = "ca.crt";

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Whether its service account `default` is there.
    pub has_service_account: bool,
    /// Its config map with the root certificates, if it is there.
    pub root_ca: Option<Arc<ConfigMap>>,
    /// The root certificates, in PEM.
    pub certificates: String,
}

/// What is missing in a namespace that is not being deleted.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::nothing();
    let meta = &observed.namespace.metadata;
    if meta.deletion_timestamp.is_some() {
        return plan;
    }
    let name = meta.name.as_deref().unwrap_or_default();
    let account = (!observed.has_service_account).then(|| {
        let metadata = named(name, SERVICE_ACCOUNT);
        Action::create(&ServiceAccount {
            metadata,
            ..ServiceAccount::default()
        })
    });
    plan.together(account.into_iter().chain(root_ca(observed, name)));
    plan
}

fn root_ca(observed: &Observed, namespace: &str) -> Option<Action> {
    let data = BTreeMap::from([(ROOT_CA_KEY.to_owned(), observed.certificates.clone())]);
    match &observed.root_ca {
        None => {
            let metadata = named(namespace, ROOT_CA);
            Some(Action::create(&ConfigMap {
                metadata,
                data: Some(data),
                ..ConfigMap::default()
            }))
        }
        Some(held) if held.data.as_ref() != Some(&data) => {
            let mut new = held.as_ref().clone();
            new.data = Some(data);
            Some(Action::update(&new))
        }
        Some(_) => None,
    }
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    serde_json::from_value(json!({"namespace": namespace, "name": name}))
        .expect("two names are valid metadata")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn observed(world: &World) -> Observed {
        Observed {
            namespace: world.get("", "a").unwrap(),
            has_service_account: world.get::<ServiceAccount>("a", SERVICE_ACCOUNT).is_some(),
            root_ca: world.get("a", ROOT_CA),
            certificates: "PEM".to_owned(),
        }
    }

    fn world() -> World {
        let mut world = World::default();
        world.put::<Namespace>(json!({"metadata": {"name": "a"}}));
        world
    }

    #[test]
    fn a_namespace_gets_its_account_and_certificates_once() {
        let mut world = world();
        world.apply(&plan(&observed(&world)));
        assert_eq!(
            world
                .get::<ConfigMap>("a", ROOT_CA)
                .unwrap()
                .data
                .as_ref()
                .unwrap()[ROOT_CA_KEY],
            "PEM"
        );
        assert!(plan(&observed(&world)).is_empty());
    }

    #[test]
    fn changed_certificates_are_put_right() {
        let mut world = world();
        world.apply(&plan(&observed(&world)));
        world.change::<ConfigMap>("a", ROOT_CA, |map| {
            map["data"] = json!({"ca.crt": "other", "more": "x"})
        });
        world.apply(&plan(&observed(&world)));
        assert_eq!(
            world
                .get::<ConfigMap>("a", ROOT_CA)
                .unwrap()
                .data
                .as_ref()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn a_namespace_being_deleted_gets_nothing() {
        let mut world = world();
        world.change::<Namespace>("", "a", |n| {
            n["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
        });
        assert!(plan(&observed(&world)).is_empty());
    }
}
