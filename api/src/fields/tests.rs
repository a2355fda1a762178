use super::*;
use crate::catalog::catalog;
use serde_json::json;

fn check_kind(group: &str, kind: &str, value: &Value) -> Report {
    check(&catalog().by_kind(group, "v1", kind).unwrap().schema, value)
}

#[test]
fn unknown_fields_are_named_by_their_paths() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [
        {"name": "a", "imag": "x", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "a", "x": 1}}}]}],
        "volumes": [{"name": "v", "emptyDir": {}, "emptydir": {}}]}, "metadata": {"labels": {"anything": "goes"}}});
    let report = check_kind("", "Pod", &pod);
    assert_eq!(
        report.unknown,
        [
            "spec.containers[0].imag",
            "spec.containers[0].env[0].valueFrom.fieldRef.x",
            "spec.volumes[0].emptydir"
        ]
    );
    assert_eq!(report.causes, []);
}

#[test]
fn a_wrong_type_is_told_in_the_words_of_the_published_server() {
    let deployment = json!({"spec": {"replicas": "3", "selector": {"matchLabels": {"a": 1}},
        "template": {"spec": {"containers": [{"name": 5, "ports": [{"containerPort": 99_999_999_999_i64}]}]}}}});
    let report = check_kind("apps", "Deployment", &deployment);
    assert_eq!(
        report.unreadable,
        [
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            "json: cannot unmarshal number into Go struct field LabelSelector.spec.selector.matchLabels of type string",
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
            "json: cannot unmarshal number 99999999999 into Go struct field \
             ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
        ]
    );
    assert_eq!(
        report.causes[3].field,
        "spec.template.spec.containers[0].ports[0].containerPort"
    );
    assert_eq!(report.causes[0].reason, "FieldValueTypeInvalid");
}

#[test]
fn missing_fields_are_causes_but_not_in_the_status() {
    let deployment = json!({"spec": {}, "status": {"conditions": [{}]}});
    let report = check_kind("apps", "Deployment", &deployment);
    let fields: Vec<&str> = report.causes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!(fields, ["spec.selector", "spec.template"]);
    assert_eq!(report.causes[0].reason, "FieldValueRequired");
}

#[test]
fn texts_with_a_format_are_checked() {
    let secret =
        json!({"data": {"a": "no base64!", "b": "aGk="}, "metadata": {"creationTimestamp": "yesterday"}});
    let report = check_kind("", "Secret", &secret);
    assert_eq!(report.unreadable[0], "illegal base64 data at input byte 2");
    assert!(report.unreadable[1].starts_with("parsing time \"yesterday\""));
    let pod =
        json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1x", "memory": 5}}}]}});
    assert_eq!(
        check_kind("", "Pod", &pod).causes[0].field,
        "spec.containers[0].resources.limits.cpu"
    );
    let service =
        json!({"spec": {"ports": [{"port": 1, "targetPort": true}, {"port": 1, "targetPort": "http"}]}});
    assert_eq!(check_kind("", "Service", &service).unreadable.len(), 1);
}

#[test]
fn pruning_gives_what_the_published_types_would_hold() {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "junk": 1,
        "metadata": {"name": "p", "creationTimestamp": null, "labels": {}, "annotations": {"a": ""}},
        "spec": {"hostNetwork": false, "nodeName": "", "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "", "args": [], "resources": {"limits": {"cpu": "1000m", "memory": 1}}, "livenessProbe": null}]}});
    prune(&catalog().by_kind("", "v1", "Pod").unwrap().schema, &mut pod);
    assert_eq!(
        pod,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {"a": ""}},
            "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "", "resources": {"limits": {"cpu": "1", "memory": "1"}}}]}})
    );
}

#[test]
fn times_are_written_in_utc() {
    let mut lease = json!({"spec": {"renewTime": "2026-01-02T03:04:05.5+02:00"}, "metadata": {"creationTimestamp": "2026-01-02T03:04:05.5+02:00"}});
    prune(
        &catalog()
            .by_kind("coordination.k8s.io", "v1", "Lease")
            .unwrap()
            .schema,
        &mut lease,
    );
    assert_eq!(lease["spec"]["renewTime"], "2026-01-02T01:04:05.500000Z");
    assert_eq!(lease["metadata"]["creationTimestamp"], "2026-01-02T01:04:05Z");
}
