//! Claims and volumes in use are kept by a finalizer that the API server gives them; it is taken away from those that are
//! deleted and no longer used
//! (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use machinery_plan::{Action, Kubernetes, Plan};
use serde_json::json;

use crate::pod::{is_terminal, node_name};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Lets a deleted claim go that no pod uses. `pods` are those of its namespace.
#[must_use]
pub fn claim(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Plan {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let used = pods
        .iter()
        // What ended, or was never placed, holds nothing.
        .filter(|pod| !is_terminal(pod) && !node_name(pod).is_empty())
        .any(|pod| claims_of(pod).any(|of| of == name));
    without(claim, CLAIM, !used)
}

/// Lets a deleted volume go that is bound to no claim.
#[must_use]
pub fn volume(volume: &PersistentVolume) -> Plan {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    without(volume, VOLUME, phase != Some("Bound"))
}

/// The names of the claims that a pod uses: those it names, and those made for it of its name and the volume's.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(
        move |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{own}-{}", volume.name)),
            (None, None) => None,
        },
    )
}

fn without<K: Kubernetes>(object: &K, finalizer: &str, free: bool) -> Plan {
    let mut plan = Plan::nothing();
    let meta = object.metadata();
    let held = meta.finalizers.as_deref().unwrap_or_default();
    if free && meta.deletion_timestamp.is_some() && held.iter().any(|one| one == finalizer) {
        let rest: Vec<_> = held.iter().filter(|one| *one != finalizer).collect();
        plan.then(Action::merge(object, json!({"metadata": {"finalizers": rest}})));
    }
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn meta(finalizer: &str) -> Value {
        json!({"name": "c", "namespace": "a", "uid": "u", "resourceVersion": "1",
            "finalizers": [finalizer, "other/f"], "deletionTimestamp": "2026-01-01T00:00:00Z"})
    }

    fn deleted() -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": meta(CLAIM)})).unwrap()
    }

    fn user(volume: Value, phase: &str, node: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p"}, "status": {"phase": phase},
            "spec": {"containers": [], "nodeName": node, "volumes": [volume]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_deleted_claim_stays_while_a_pod_runs_with_it() {
        let named = || json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        assert!(claim(&deleted(), &[user(named(), "Running", "n")]).is_empty());
        for pod in [user(named(), "Succeeded", "n"), user(named(), "Pending", "")] {
            let plan = claim(&deleted(), &[pod]);
            assert_eq!(plan.actions().count(), 1);
        }
        let mut alive = deleted();
        alive.metadata.deletion_timestamp = None;
        assert!(claim(&alive, &[]).is_empty());
    }

    #[test]
    fn a_claim_made_for_a_pod_has_its_name() {
        let pod = user(json!({"name": "c", "ephemeral": {}}), "Running", "n");
        assert_eq!(claims_of(&pod).collect::<Vec<_>>(), ["p-c"]);
    }

    #[test]
    fn a_deleted_volume_stays_while_it_is_bound() {
        let of = |phase: &str| {
            let object = json!({"metadata": meta(VOLUME), "status": {"phase": phase}});
            volume(&serde_json::from_value(object).unwrap())
        };
        assert!(of("Bound").is_empty());
        assert_eq!(of("Released").actions().count(), 1);
    }
}
