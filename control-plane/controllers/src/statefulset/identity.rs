//! What makes the pods of a stateful set different from each other.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};

use super::REVISION;
use crate::ownership::controller_ref;
use crate::template;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

fn name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The number of a pod that has a name of the set.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let own = pod.metadata.name.as_deref()?;
    let number = own.strip_prefix(name(set))?.strip_prefix('-')?;
    let number: i32 = number.parse().ok()?;
    (own == format!("{}-{number}", name(set))).then_some(number)
}

/// The revision that a pod was made from.
pub(super) fn revision(pod: &Pod) -> Option<&String> {
    pod.metadata.labels.as_ref()?.get(REVISION)
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    let own = template.metadata.name.as_deref().unwrap_or_default();
    format!("{own}-{}-{ordinal}", name(set))
}

/// The claims of the pod with this number.
pub(super) fn claims(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = spec.volume_claim_templates.iter().flatten();
    let claims = templates.map(|template| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        claim
    });
    claims.collect()
}

/// The pod with this number, from a template of this revision.
pub(super) fn pod(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    ordinal: i32,
    revision: &str,
) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let own = format!("{}-{ordinal}", name(set));
    let mut pod = template::pod(template, namespace, "", controller_ref(set));
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(own.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), own.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION.to_owned(), revision.to_owned());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(own);
        pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
        let volumes = pod_spec.volumes.get_or_insert_default();
        for template in spec.volume_claim_templates.iter().flatten() {
            let volume = template.metadata.name.clone().unwrap_or_default();
            volumes.retain(|held| held.name != volume);
            volumes.push(Volume {
                name: volume,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(set, template, ordinal),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
    }
    pod
}
