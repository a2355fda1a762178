//! The downward API: fields of the pod and resources of its containers as text.

use crate::model::PodModel;
use crate::quantity::{milli, units};
use k8s_openapi::api::core::v1::{ObjectFieldSelector, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Facts of the node and the sandbox that fields can name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<IpAddr>,
    /// The node's allocatable CPU in milli-cores.
    pub cpu_milli: i64,
    /// The node's allocatable memory in bytes.
    pub memory: i64,
    /// The node's allocatable ephemeral storage in bytes.
    pub ephemeral_storage: i64,
}

/// A reference to something the downward API does not have.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FieldError {
    /// No such field.
    #[error("field {0:?} cannot be used here; see the downward API documentation for the supported ones")]
    Field(String),
    /// No such container.
    #[error("container {0:?} does not exist in the pod; name one of its containers")]
    Container(String),
    /// No such resource.
    #[error("resource {0:?} cannot be used here; use limits or requests of cpu, memory or ephemeral-storage")]
    Resource(String),
}

/// The text of a pod field.
///
/// # Errors
/// When the field is none of the supported ones.
pub fn field(pod: &PodModel, facts: &Facts, selector: &ObjectFieldSelector) -> Result<String, FieldError> {
    let meta = &pod.pod.metadata;
    let path = selector.field_path.as_str();
    let text = match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => pod.spec().node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => all(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => all(&facts.pod_ips),
        _ => return keyed(pod, path),
    };
    Ok(text)
}

/// `metadata.labels['key']` and `metadata.annotations['key']`; a missing key is the empty text.
fn keyed(pod: &PodModel, path: &str) -> Result<String, FieldError> {
    let meta = &pod.pod.metadata;
    let key = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    let get = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some(key) = key("metadata.labels") {
        Ok(get(&meta.labels, key))
    } else if let Some(key) = key("metadata.annotations") {
        Ok(get(&meta.annotations, key))
    } else {
        Err(FieldError::Field(path.to_owned()))
    }
}

fn first(ips: &[IpAddr]) -> String {
    ips.first().map(ToString::to_string).unwrap_or_default()
}

fn all(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// One `key="value"` a line, sorted, the value quoted as Go's `%q` does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", quote(value));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text of a container's resource, in multiples of the divisor, rounded up. Without a limit it is the node's.
///
/// # Errors
/// When the container or the resource does not exist.
pub fn resource(
    pod: &PodModel,
    facts: &Facts,
    own: Option<&str>,
    selector: &ResourceFieldSelector,
) -> Result<String, FieldError> {
    let name = selector.container_name.as_deref().or(own).unwrap_or_default();
    let member = pod
        .member(name)
        .ok_or_else(|| FieldError::Container(name.to_owned()))?;
    let unknown = || FieldError::Resource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let set = member.spec.resources.as_ref();
    let limit = set.and_then(|r| r.limits.as_ref()?.get(resource));
    let request = set.and_then(|r| r.requests.as_ref()?.get(resource));
    let (amount, node) = match list {
        "limits" => (limit, true),
        "requests" => (request.or(limit), false),
        _ => return Err(unknown()),
    };
    let of_node = match resource {
        "cpu" => facts.cpu_milli,
        "memory" => facts.memory.saturating_mul(1000),
        "ephemeral-storage" => facts.ephemeral_storage.saturating_mul(1000),
        r if r.starts_with("hugepages-") => 0,
        _ => return Err(unknown()),
    };
    let milli_amount = amount.and_then(precise).unwrap_or(if node { of_node } else { 0 });
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(precise)
        .filter(|d| *d > 0)
        .unwrap_or(1000);
    Ok(((milli_amount + divisor - 1) / divisor).to_string())
}

fn precise(q: &Quantity) -> Option<i64> {
    milli(q).or_else(|| units(q).map(|u| u.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pod, pod_with};
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            host_ips: vec!["10.89.0.10".parse().unwrap()],
            pod_ips: vec!["10.244.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            cpu_milli: 2000,
            memory: 1 << 30,
            ephemeral_storage: 0,
        }
    }

    fn text(path: &str) -> Result<String, FieldError> {
        let meta = json!({"labels": {"b": "2", "a": "one \"1\""}, "annotations": {"x/y": "z"}});
        let pod = pod_with(meta, json!({"nodeName": "n1", "containers": []}), json!({}));
        field(
            &pod,
            &facts(),
            &ObjectFieldSelector {
                api_version: None,
                field_path: path.into(),
            },
        )
    }

    #[test]
    fn fields_of_the_pod_and_the_node_are_text() {
        assert_eq!(text("metadata.name").unwrap(), "web");
        assert_eq!(text("spec.nodeName").unwrap(), "n1");
        assert_eq!(text("status.podIP").unwrap(), "10.244.0.2");
        assert_eq!(text("status.podIPs").unwrap(), "10.244.0.2,fd00::2");
        assert_eq!(text("status.hostIP").unwrap(), "10.89.0.10");
    }

    #[test]
    fn labels_come_whole_or_one_by_one() {
        assert_eq!(text("metadata.labels").unwrap(), "a=\"one \\\"1\\\"\"\nb=\"2\"");
        assert_eq!(text("metadata.labels['b']").unwrap(), "2");
        assert_eq!(text("metadata.annotations['x/y']").unwrap(), "z");
        assert_eq!(text("metadata.annotations['none']").unwrap(), "");
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        assert_eq!(
            text("spec.nothing"),
            Err(FieldError::Field("spec.nothing".into()))
        );
    }

    #[test]
    fn resources_are_divided_and_rounded_up_and_default_to_the_nodes() {
        let pod = pod(json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "1250m"}, "limits": {"memory": "65Mi"}}}]}));
        let get = |resource: &str, divisor: &str| {
            let divisor = Some(Quantity(divisor.into()));
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor,
                resource: resource.into(),
            };
            super::resource(&pod, &facts(), Some("a"), &selector).unwrap()
        };
        assert_eq!(get("requests.cpu", "1"), "2");
        assert_eq!(get("requests.cpu", "1m"), "1250");
        assert_eq!(get("limits.memory", "1Mi"), "65");
        assert_eq!(get("limits.cpu", "1"), "2");
        assert_eq!(get("requests.memory", "1"), (65 << 20).to_string());
    }
}
