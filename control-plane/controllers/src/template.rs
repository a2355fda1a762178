//! Pod templates: their hash, whether two are the same, and the pod made from one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The label that tells the replica sets of a deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// A short name for the content of `template`, different for each `collisions`. Letters are those that cannot form
/// words, as in all generated names.
#[must_use]
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let bytes = serde_json::to_vec(template).expect("a pod template is always valid JSON");
    let salt = collisions.map(|count| count.to_le_bytes());
    let mut sum: u32 = 0x811c_9dc5;
    for byte in bytes.iter().chain(salt.iter().flatten()) {
        sum = (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    safe_text(u64::from(sum))
}

/// `number` in letters and digits that names may have and words do not.
#[must_use]
pub fn safe_text(number: u64) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digits = number.to_string().into_bytes();
    digits
        .into_iter()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// Whether two templates are the same but for the hash label.
#[must_use]
pub fn same(one: &PodTemplateSpec, other: &PodTemplateSpec) -> bool {
    one.spec == other.spec && without_hash(one) == without_hash(other)
}

fn without_hash(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    meta
}

/// A pod as `template` describes it, in `namespace`, owned by `owner`; the name is made from `prefix` by the API server.
#[must_use]
pub fn pod(template: &PodTemplateSpec, namespace: &str, prefix: &str, owner: OwnerReference) -> Pod {
    let described = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        generate_name: Some(format!(
            "{}-",
            prefix.get(..prefix.len().min(246)).unwrap_or(prefix)
        )),
        labels: described
            .labels
            .filter(|labels: &BTreeMap<_, _>| !labels.is_empty()),
        annotations: described.annotations,
        finalizers: described.finalizers,
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Pod {
        metadata,
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = json!({"app": "web"});
        if let Some(hash) = hash {
            labels[HASH_LABEL] = json!(hash);
        }
        let spec = json!({"containers": [{"name": "c", "image": image}]});
        serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_hash_follows_content_and_collisions() {
        let one = hash(&template("a", None), None);
        assert_eq!(one, hash(&template("a", None), None));
        assert_ne!(one, hash(&template("b", None), None));
        assert_ne!(one, hash(&template("a", None), Some(1)));
        assert!(one.len() <= 10 && one.chars().all(|c| c.is_ascii_alphanumeric()));
    }

    #[test]
    fn the_hash_label_does_not_make_templates_differ() {
        assert!(same(&template("a", None), &template("a", Some("xyz"))));
        assert!(!same(&template("a", None), &template("b", None)));
    }
}
