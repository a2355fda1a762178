//! Who owns what: controller references, adoption and release
//! (<https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/>).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use machinery_plan::{Action, Kubernetes};
use serde_json::json;

use crate::selector;

/// The owner that manages an object, if there is one.
#[must_use]
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// Uid of the owner that manages an object.
#[must_use]
pub fn controller_uid(meta: &ObjectMeta) -> Option<&str> {
    controller_of(meta).map(|owner| owner.uid.as_str())
}

/// A reference that makes `owner` the managing owner.
pub fn controller_ref<K: Kubernetes>(owner: &K) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Objects that an owner manages, and what makes the others match that.
#[derive(Debug)]
pub struct Claim<D> {
    /// Managed now.
    pub owned: Vec<Arc<D>>,
    /// Patches that adopt and release. When there is one, the objects it concerns come back as changed.
    pub patches: Vec<Action>,
}

/// Sorts out which of `candidates` (all in the owner's namespace) `owner` manages: its own that match stay, its own
/// that do not are released, orphans that match are adopted. An owner that is being deleted only keeps.
pub fn claim<O: Kubernetes, D: Kubernetes>(
    owner: &O,
    labels: &LabelSelector,
    candidates: &[Arc<D>],
) -> Claim<D> {
    let (mut owned, mut patches) = (Vec::new(), Vec::new());
    let uid = owner.metadata().uid.as_deref();
    let may_change = owner.metadata().deletion_timestamp.is_none();
    for candidate in candidates {
        let meta = candidate.metadata();
        let matching = selector::matches(labels, meta.labels.as_ref());
        match controller_uid(meta) {
            Some(controller) if Some(controller) != uid => {}
            Some(_) if matching || !may_change => owned.push(Arc::clone(candidate)),
            Some(_) => patches.push(release(owner, candidate.as_ref())),
            None if matching && may_change && meta.deletion_timestamp.is_none() => {
                patches.push(adopt(owner, candidate.as_ref()));
            }
            None => {}
        }
    }
    Claim { owned, patches }
}

fn adopt<O: Kubernetes, D: Kubernetes>(owner: &O, orphan: &D) -> Action {
    Action::strategic(
        orphan,
        json!({"metadata": {"ownerReferences": [controller_ref(owner)]}}),
    )
}

fn release<O: Kubernetes, D: Kubernetes>(owner: &O, dependent: &D) -> Action {
    let uid = owner.metadata().uid.as_deref().unwrap_or_default();
    Action::strategic(
        dependent,
        json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": uid}]}}),
    )
}
