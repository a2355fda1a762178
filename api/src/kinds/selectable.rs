//! The fields that a `fieldSelector` may name, per kind.

use super::access::{at, text};
use super::id;
use crate::catalog::Resource;
use serde_json::Value;

/// How an absent value of a field reads.
#[derive(Clone, Copy)]
enum As {
    Text,
    Flag,
    Number,
}

use As::{Flag, Number, Text};

const POD: &[(&str, As)] = &[
    ("spec.nodeName", Text),
    ("spec.restartPolicy", Text),
    ("spec.schedulerName", Text),
    ("spec.serviceAccountName", Text),
    ("spec.hostNetwork", Flag),
    ("status.phase", Text),
    ("status.podIP", Text),
    ("status.podIPs", Text),
    ("status.nominatedNodeName", Text),
];
const EVENT: &[&str] = &[
    "kind",
    "namespace",
    "name",
    "uid",
    "apiVersion",
    "resourceVersion",
    "fieldPath",
];
/// The same in the order of [`EVENT`], by the name queries use.
const INVOLVED: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
];

/// The same by the name they have in `events.k8s.io`.
const REGARDING: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
];

/// Every field of `object` that a selector may name, with its value. `metadata.name` is always there, and
/// `metadata.namespace` for namespaced kinds. On a null object it tells which names are allowed.
pub fn selectable_fields(res: &Resource, object: &Value) -> Vec<(&'static str, String)> {
    let mut out = vec![("metadata.name", text(object, "metadata.name").to_owned())];
    if res.namespaced {
        out.push((
            "metadata.namespace",
            text(object, "metadata.namespace").to_owned(),
        ));
    }
    if res.kind == "Event" {
        out.extend(event(object));
        return out;
    }
    out.extend(
        plain(res)
            .iter()
            .map(|(path, kind)| (*path, shown(object, path, *kind))),
    );
    // Older names that clients still use.
    if matches!(
        id(res),
        ("", "namespaces" | "persistentvolumes" | "persistentvolumeclaims")
    ) {
        out.push(("name", text(object, "metadata.name").to_owned()));
    }
    out
}

fn plain(res: &Resource) -> &'static [(&'static str, As)] {
    match id(res) {
        ("", "pods") => POD,
        ("", "nodes") => &[("spec.unschedulable", Flag)],
        ("", "namespaces") => &[("status.phase", Text)],
        ("", "secrets") => &[("type", Text)],
        ("", "services") => &[("spec.clusterIP", Text), ("spec.type", Text)],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &[("status.replicas", Number)],
        ("batch", "jobs") => &[("status.successful", Number)],
        ("certificates.k8s.io", "certificatesigningrequests" | "clustertrustbundles") => {
            &[("spec.signerName", Text)]
        }
        ("certificates.k8s.io", "podcertificaterequests") => &[
            ("spec.signerName", Text),
            ("spec.podName", Text),
            ("spec.nodeName", Text),
        ],
        ("resource.k8s.io", "resourceslices") => &[("spec.nodeName", Text), ("spec.driver", Text)],
        ("coordination.k8s.io", "leasecandidates") => &[("spec.leaseName", Text)],
        _ => &[],
    }
}

fn shown(object: &Value, path: &str, kind: As) -> String {
    // The selector has an older name than the field.
    let path = if path == "status.successful" {
        "status.succeeded"
    } else {
        path
    };
    match at(object, path) {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let ips: Vec<&str> = list.iter().map(|ip| text(ip, "ip")).collect();
            ips.join(",")
        }
        Value::Null => match kind {
            Text => String::new(),
            Flag => "false".into(),
            Number => "0".into(),
        },
        other => other.to_string(),
    }
}

fn event(object: &Value) -> Vec<(&'static str, String)> {
    let involved = if object.get("regarding").is_some() {
        "regarding"
    } else {
        "involvedObject"
    };
    let about = EVENT.iter().zip(INVOLVED).chain(EVENT.iter().zip(REGARDING));
    let mut out: Vec<(&'static str, String)> = about
        .map(|(field, name)| (*name, text(at(object, involved), field).to_owned()))
        .collect();
    let reporter = [
        text(object, "reportingComponent"),
        text(object, "reportingController"),
    ]
    .concat();
    let old = [
        text(object, "source.component"),
        text(object, "deprecatedSource.component"),
    ]
    .concat();
    out.push(("reason", text(object, "reason").to_owned()));
    out.push(("type", text(object, "type").to_owned()));
    out.push(("source", if old.is_empty() { reporter.clone() } else { old }));
    out.push(("reportingComponent", reporter.clone()));
    out.push(("reportingController", reporter));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;
    use serde_json::json;

    fn fields(group: &str, plural: &str, object: Value) -> Vec<(&'static str, String)> {
        selectable_fields(&catalog().lookup(group, "v1", plural).unwrap(), &object)
    }

    fn of<'a>(fields: &'a [(&str, String)], name: &str) -> &'a str {
        &fields.iter().find(|(field, _)| *field == name).unwrap().1
    }

    #[test]
    fn pods_and_nodes_have_their_fields() {
        let pod = fields(
            "",
            "pods",
            json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"},
            "status": {"phase": "Running", "podIPs": [{"ip": "1"}, {"ip": "2"}]}}),
        );
        assert_eq!(
            (of(&pod, "metadata.namespace"), of(&pod, "spec.nodeName")),
            ("n", "x")
        );
        assert_eq!(
            (of(&pod, "spec.hostNetwork"), of(&pod, "status.podIPs")),
            ("false", "1,2")
        );
        assert_eq!(
            of(
                &fields("", "nodes", json!({"spec": {"unschedulable": true}})),
                "spec.unschedulable"
            ),
            "true"
        );
        assert_eq!(
            of(
                &fields("batch", "jobs", json!({"status": {"succeeded": 2}})),
                "status.successful"
            ),
            "2"
        );
    }

    #[test]
    fn events_are_found_by_what_they_are_about() {
        let event = fields(
            "",
            "events",
            json!({"involvedObject": {"name": "p", "kind": "Pod"}, "reason": "Why",
            "source": {"component": "kubelet"}}),
        );
        assert_eq!(
            (of(&event, "involvedObject.name"), of(&event, "source")),
            ("p", "kubelet")
        );
        let newer = fields(
            "events.k8s.io",
            "events",
            json!({"regarding": {"name": "p"}, "reportingController": "c"}),
        );
        assert_eq!(
            (
                of(&newer, "involvedObject.name"),
                of(&newer, "reportingComponent")
            ),
            ("p", "c")
        );
        assert_eq!(
            (of(&newer, "regarding.name"), of(&newer, "reportingController")),
            ("p", "c")
        );
    }
}
