//! Faults and the words for them, over whole objects as they reach validation: with defaults filled in.

use super::*;
use crate::catalog::catalog;
use serde_json::json;

fn errors(group: &str, version: &str, kind: &str, object: &Value) -> Vec<String> {
    let res = catalog().by_kind(group, version, kind).unwrap();
    let mut object = object.clone();
    super::super::defaults(&res, &mut object);
    validate_create(&res, &object)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn update_errors(group: &str, kind: &str, old: &Value, new: &Value) -> Vec<String> {
    let res = catalog().by_kind(group, "v1", kind).unwrap();
    let (mut old, mut new) = (old.clone(), new.clone());
    super::super::defaults(&res, &mut old);
    super::super::defaults(&res, &mut new);
    validate_update(&res, &new, &old)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).expect("the path is there") = value;
    object
}

fn pod() -> Value {
    json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment() -> Value {
    json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn service() -> Value {
    json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"ports": [{"port": 80}]}})
}

#[test]
fn good_objects_have_no_faults() {
    assert_eq!(errors("", "v1", "Pod", &pod()), [""; 0]);
    assert_eq!(errors("apps", "v1", "Deployment", &deployment()), [""; 0]);
    assert_eq!(errors("apps", "v1", "ReplicaSet", &deployment()), [""; 0]);
    assert_eq!(errors("apps", "v1", "DaemonSet", &deployment()), [""; 0]);
    assert_eq!(errors("apps", "v1", "StatefulSet", &deployment()), [""; 0]);
    assert_eq!(errors("", "v1", "Service", &service()), [""; 0]);
}

#[test]
fn pods_name_what_is_missing() {
    let none = with(pod(), "/spec/containers", json!([]));
    assert_eq!(
        errors("", "v1", "Pod", &none),
        ["spec.containers: Required value"]
    );
    let anonymous = with(pod(), "/spec/containers/0", json!({"name": "C"}));
    let got = errors("", "v1", "Pod", &anonymous);
    assert!(
        got[0].starts_with("spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label"),
        "{got:?}"
    );
    assert_eq!(got[1], "spec.containers[0].image: Required value");
}

#[test]
fn containers_are_checked_in_all_their_parts() {
    let cases = [
        (
            json!({"ports": [{"containerPort": 0}]}),
            "ports[0].containerPort: Required value",
        ),
        (
            json!({"ports": [{"containerPort": 70000, "protocol": "TCP"}]}),
            "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/"}]}),
            "volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"env": [{"name": "a=b"}]}),
            "env[0].name: Invalid value: \"a=b\": a valid environment variable name must \
            consist only of printable ASCII characters other than '='",
        ),
        (
            json!({"env": [{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"livenessProbe": {}}),
            "livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 0}}}),
            "livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"imagePullPolicy": "Now"}),
            "imagePullPolicy: Unsupported value: \"Now\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
    ];
    for (more, wanted) in cases {
        let mut object = pod();
        let container = object
            .pointer_mut("/spec/containers/0")
            .unwrap()
            .as_object_mut()
            .unwrap();
        container.extend(more.as_object().unwrap().clone());
        let got = errors("", "v1", "Pod", &object);
        let wanted = format!("spec.containers[0].{wanted}");
        assert!(got.contains(&wanted), "wanted {wanted}\ngot {got:#?}");
    }
}

#[test]
fn pod_updates_may_change_images_and_nothing_else() {
    let update = |new: &Value| {
        let mut old = pod();
        old["metadata"]["uid"] = "u".into();
        let mut new = new.clone();
        new["metadata"]["uid"] = "u".into();
        update_errors("", "Pod", &old, &new)
    };
    assert_eq!(
        update(&with(pod(), "/spec/containers/0/image", json!("j:1"))).len(),
        1,
        "the pull policy follows"
    );
    let mut pinned = pod();
    pinned["spec"]["containers"][0] = json!({"name": "c", "image": "j:1", "imagePullPolicy": "Always"});
    assert_eq!(update(&pinned), [""; 0]);
    let mut host = pod();
    host["spec"]["hostname"] = "h".into();
    let got = update(&host);
    assert!(got[0].starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"
    ));
    let mut more = pod();
    more["spec"]["containers"] = json!([{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]);
    assert_eq!(
        update(&more),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    let renamed = with(pod(), "/metadata/name", json!("b"));
    assert_eq!(
        update(&renamed),
        ["metadata.name: Invalid value: \"b\": field is immutable"]
    );
}

#[test]
fn workloads_must_select_their_own_pods() {
    let other = with(deployment(), "/spec/template/metadata/labels", json!({"a": "c"}));
    assert_eq!(
        errors("apps", "v1", "Deployment", &other),
        [
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"
        ]
    );
    let mut never = deployment();
    never["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    assert_eq!(
        errors("apps", "v1", "Deployment", &never),
        ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
    );
    let mut moved = deployment();
    moved["spec"]["selector"] = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
    let got = update_errors("apps", "Deployment", &deployment(), &moved);
    assert!(
        got.len() == 1 && got[0].ends_with("field is immutable"),
        "{got:?}"
    );
}

#[test]
fn services_are_checked() {
    let cases = [
        (json!([]), "spec.ports: Required value"),
        (
            json!([{"port": 80}, {"port": 81}]),
            "spec.ports[0].name: Required value",
        ),
        (
            json!([{"port": 0}]),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!([{"port": 1, "nodePort": 30000}]),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
    ];
    for (ports, wanted) in cases {
        let got = errors("", "v1", "Service", &with(service(), "/spec/ports", ports));
        assert!(got.contains(&wanted.to_owned()), "wanted {wanted}\ngot {got:?}");
    }
    let mut old = service();
    old["spec"]["clusterIP"] = "10.0.0.1".into();
    old["spec"]["clusterIPs"] = json!(["10.0.0.1"]);
    let mut new = old.clone();
    new["spec"]["clusterIP"] = "10.0.0.2".into();
    new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
    assert_eq!(
        update_errors("", "Service", &old, &new),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );
}

#[test]
fn metadata_rules_hold_for_every_kind() {
    let object = json!({"metadata": {"name": "A_", "namespace": "n", "labels": {"-": "x y"}, "annotations": {"": ""},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}], "finalizers": ["/"]}});
    let got = errors("", "v1", "ConfigMap", &object);
    for path in [
        "name",
        "labels",
        "annotations",
        "ownerReferences.uid",
        "finalizers",
    ] {
        assert!(
            got.iter()
                .any(|e| e.starts_with(&format!("metadata.{path}: Invalid value"))),
            "{path}: {got:#?}"
        );
    }
    let cluster = json!({"metadata": {"namespace": "n"}});
    let got = errors("", "v1", "Namespace", &cluster);
    assert_eq!(
        got[0],
        "metadata.name: Required value: name or generateName is required"
    );
    assert_eq!(got[1], "metadata.namespace: Forbidden: not allowed on this type");
}

#[test]
fn frozen_configuration_stays() {
    let old = json!({"metadata": {"name": "c", "namespace": "n"}, "immutable": true, "data": {"a": "1"}});
    let new = with(old.clone(), "/data/a", json!("2"));
    assert_eq!(
        update_errors("", "ConfigMap", &old, &new),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let tls = json!({"metadata": {"name": "c", "namespace": "n"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
    assert_eq!(
        errors("", "v1", "Secret", &tls),
        ["data[tls.key]: Required value"]
    );
}

#[test]
fn terminating_objects_get_no_new_finalizers() {
    let old =
        json!({"metadata": {"name": "c", "namespace": "n", "deletionTimestamp": "2024-01-01T00:00:00Z"}});
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!(["example.com/a"]);
    assert_eq!(
        update_errors("", "ConfigMap", &old, &new),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
          finalizers []string{\"example.com/a\"}"
        ]
    );
}

#[test]
fn jobs_and_cron_jobs_are_checked() {
    let template = json!({"spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]}});
    let cron = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"schedule": "61 * * * *",
        "jobTemplate": {"spec": {"template": template}}}});
    let got = errors("batch", "v1", "CronJob", &cron);
    assert_eq!(
        got[0],
        "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"
    );
    assert_eq!(
        got[1],
        "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
    );
}

#[test]
fn endpoint_slices_know_their_family() {
    let slice = json!({"metadata": {"name": "c", "namespace": "n"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": ["127.0.0.1"]}],
        "ports": [{"port": 80}]});
    assert_eq!(
        errors("discovery.k8s.io", "v1", "EndpointSlice", &slice),
        [
            "endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be an IPv4 address",
            "endpoints[1].addresses: Required value: must contain at least 1 address",
            "endpoints[2].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
             ::1/128)",
        ]
    );
}

/// The examples of this repository, as a server takes them in.
#[test]
fn the_examples_are_valid_and_settle_after_one_pass() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut seen = 0;
    for file in std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        let text = std::fs::read_to_string(&file).unwrap();
        for document in text
            .split("\n---\n")
            .filter(|document| document.contains("kind:"))
            // Configurations of the programs themselves are no objects of the API.
            .filter(|document| !document.contains("apiVersion: skep/"))
        {
            let mut object = crate::yaml::parse(document.as_bytes()).unwrap().value;
            let (group, version) = match self::text(&object, "apiVersion").split_once('/') {
                Some((group, version)) => (group.to_owned(), version.to_owned()),
                None => (String::new(), self::text(&object, "apiVersion").to_owned()),
            };
            let res = catalog()
                .by_kind(&group, &version, self::text(&object, "kind"))
                .unwrap();
            let report = crate::fields::check(&res.schema, &object);
            assert!(
                report.unknown.is_empty() && report.causes.is_empty(),
                "{file:?}: {report:?}"
            );
            if res.namespaced {
                object["metadata"]["namespace"] = "default".into();
            }
            crate::defaults::apply(&res.schema, &mut object);
            super::super::defaults(&res, &mut object);
            let now = "2024-01-02T03:04:05Z".parse().unwrap();
            let ctx = super::super::Context {
                now,
                user: "u",
                subresource: None,
            };
            super::super::prepare_create(&res, &mut object, &ctx);
            assert_eq!(validate_create(&res, &object), [], "{file:?}");
            let mut again = object.clone();
            super::super::prepare_update(&res, &mut again, &object, &ctx);
            assert_eq!(again, object, "an update without a change changes nothing");
            seen += 1;
        }
    }
    assert!(seen > 0, "no examples in {folder}");
}

fn update_errors_of(subresource: &str, old: &Value, new: &Value) -> Vec<String> {
    let res = catalog().by_kind("", "v1", "Pod").unwrap();
    let (mut old, mut new) = (old.clone(), new.clone());
    super::super::defaults(&res, &mut old);
    super::super::defaults(&res, &mut new);
    let causes = validate_update_of(&res, Some(subresource), &new, &old);
    causes.iter().map(ToString::to_string).collect()
}

#[test]
fn ephemeral_containers_are_added_and_never_changed_or_removed() {
    let with_debuggers = |debuggers: Value| {
        let mut pod = pod();
        pod["metadata"]["resourceVersion"] = "1".into();
        pod["spec"]["ephemeralContainers"] = debuggers;
        pod
    };
    let (none, one) = (
        with_debuggers(json!([])),
        with_debuggers(json!([{"name": "d", "image": "busybox"}])),
    );
    let kind = "ephemeralcontainers";
    assert_eq!(update_errors_of(kind, &none, &one), [""; 0]);
    assert!(update_errors("", "Pod", &none, &one)[0].contains("pod updates may not change"));
    let said = update_errors_of(kind, &one, &none);
    assert!(said[0].contains("may not be removed"), "{said:?}");
    let said = update_errors_of(
        kind,
        &one,
        &with_debuggers(json!([{"name": "d", "image": "other"}])),
    );
    assert!(
        said[0].contains("spec.ephemeralContainers[0]") && said[0].contains("may not be changed"),
        "{said:?}"
    );
    let probed = json!([{"name": "d", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]);
    let said = update_errors_of(kind, &none, &with_debuggers(probed));
    assert!(
        said[0].contains("cannot be set for an Ephemeral Container"),
        "{said:?}"
    );
}

#[test]
fn a_resize_keeps_the_class_and_takes_nothing_away() {
    let sized = |resources: Value| {
        let mut pod = pod();
        pod["metadata"]["resourceVersion"] = "1".into();
        pod["spec"]["containers"][0]["resources"] = resources;
        pod
    };
    let before = sized(json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}}));
    let resize = |resources: Value| update_errors_of("resize", &before, &sized(resources));
    assert_eq!(
        resize(json!({"requests": {"cpu": "150m"}, "limits": {"cpu": "300m", "memory": "1Gi"}})),
        [""; 0]
    );
    let said = resize(json!({"requests": {"cpu": "100m"}}));
    assert!(said[0].contains("resource limits cannot be removed"), "{said:?}");
    let same = json!({"cpu": "200m", "memory": "1Gi"});
    let said = resize(json!({"requests": same, "limits": same}));
    assert!(said[0].contains("Pod QOS Class may not change"), "{said:?}");
    let storage = json!({"requests": {"cpu": "100m", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "200m"}});
    let said = resize(storage);
    assert!(
        said[0].contains("only cpu and memory resources are mutable"),
        "{said:?}"
    );
}
