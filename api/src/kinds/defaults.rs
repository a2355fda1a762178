//! Defaults that the published schemas do not carry: the server fills them in on every write and read.
//!
//! Most are constants of a type, wherever it occurs (a `Probe` in a Pod, in a Deployment's template …), so the object is
//! walked along its schema and each named type gets its own. The functions below are for what depends on other fields.

use super::access::{at, flag, has, text};
use super::constants::CONSTANTS;
use crate::catalog::Resource;
use crate::meta::map_mut;
use crate::quantity::{Format, Quantity};
use crate::schema::{Kind, Schema};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

type Object = Map<String, Value>;

const PREFIX: &str = "io.k8s.api.";

type Constants = HashMap<&'static str, Vec<(&'static str, Value)>>;

static BY_TYPE: LazyLock<Constants> = LazyLock::new(|| {
    let mut out = Constants::new();
    for (kind, field, json) in CONSTANTS {
        let value = serde_json::from_str(json).expect("the table above is JSON, as its test shows");
        out.entry(kind).or_default().push((field, value));
    }
    out
});

/// Fills in what the server adds to an object of `res` beyond the defaults of its schema, and writes quantities in their
/// canonical form. Applying it again changes nothing.
pub fn defaults(res: &Resource, object: &mut Value) {
    walk(&res.schema, object);
    if (res.group.as_str(), res.kind.as_str()) == ("", "Pod") {
        pod(object);
    }
}

fn walk(schema: &Schema, value: &mut Value) {
    match (&schema.kind, value) {
        (Kind::Object(fields), Value::Object(map)) => {
            let name = schema.name.as_deref().and_then(|name| name.strip_prefix(PREFIX));
            if let Some(name) = name {
                of_type(name, map);
            }
            for (key, value) in map.iter_mut() {
                if let Some(field) = fields.field(key) {
                    walk(&field.schema, value);
                }
            }
        }
        (Kind::Map(values), Value::Object(map)) => {
            let quantities = matches!(values.value.kind, Kind::Quantity);
            map.values_mut().for_each(|value| {
                walk(&values.value, value);
                if quantities {
                    round_to_milli(value);
                }
            });
        }
        (Kind::List(items), Value::Array(list)) => list.iter_mut().for_each(|item| walk(&items.items, item)),
        (Kind::Quantity, value) => canonical(value),
        _ => {}
    }
}

/// A quantity that cannot be read stays as it is: validation names it.
fn canonical(value: &mut Value) {
    if let Ok(quantity) = Quantity::from_json(value) {
        *value = quantity.to_string().into();
    }
}

/// Amounts in resource lists have three decimals at most, rounded up.
fn round_to_milli(value: &mut Value) {
    let Ok(quantity) = Quantity::from_json(value) else {
        return;
    };
    let rounded = Quantity::from_milli(quantity.milli_value(), quantity.format());
    if rounded > quantity && quantity.format() != Format::Binary {
        *value = rounded.to_string().into();
    }
}

fn of_type(name: &str, map: &mut Object) {
    before_constants(name, map);
    for (field, value) in BY_TYPE.get(name).into_iter().flatten() {
        put(map, field, || value.clone());
    }
    match name {
        "core.v1.Container" | "core.v1.EphemeralContainer" => pull_policy(map, "image", "imagePullPolicy"),
        "core.v1.ImageVolumeSource" => pull_policy(map, "reference", "pullPolicy"),
        "core.v1.Service" => service(map),
        "core.v1.ReplicationController" => replication_controller(map),
        "core.v1.LimitRangeItem" => limit_range_item(map),
        "apps.v1.DeploymentStrategy" | "apps.v1.DaemonSetUpdateStrategy" => rolling_update(map),
        "batch.v1.Job" => job_labels(map),
        "batch.v1.JobSpec" => job_spec(map),
        "networking.v1.NetworkPolicySpec" => policy_types(map),
        "autoscaling.v2.HorizontalPodAutoscalerSpec" => autoscaler(map),
        "autoscaling.v1.HorizontalPodAutoscalerSpec" => {
            put(map, "targetCPUUtilizationPercentage", || json!(80))
        }
        "rbac.v1.Subject" => subject(map),
        "core.v1.Namespace" => namespace(map),
        "core.v1.Secret" => string_data(map),
        "core.v1.PodSpec" => service_account(map),
        "core.v1.PodStatus" => {
            address_twin(map, "podIP", "podIPs");
            address_twin(map, "hostIP", "hostIPs");
        }
        "core.v1.NodeSpec" => pod_cidr_twin(map),
        "core.v1.NodeStatus" => node_status(map),
        _ => {}
    }
}

/// What has to look at fields before the constants fill them.
fn before_constants(name: &str, map: &mut Object) {
    match name {
        "core.v1.Volume" if map.keys().all(|key| key == "name") => put(map, "emptyDir", || json!({})),
        // The partition is only filled in with the whole strategy.
        "apps.v1.StatefulSetUpdateStrategy" if !map.contains_key("type") => {
            put(map, "rollingUpdate", || json!({}))
        }
        _ => {}
    }
}

/// Sets a field that is absent.
fn put(map: &mut Object, field: &str, value: impl FnOnce() -> Value) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), value());
    }
}

fn get<'a>(map: &'a Object, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn pull_policy(map: &mut Object, image: &str, field: &str) {
    let policy = if is_latest(get(map, image)) {
        "Always"
    } else {
        "IfNotPresent"
    };
    if get(map, field).is_empty() {
        map.insert(field.to_owned(), policy.into());
    }
}

/// Whether an image reference means the tag `latest`: written so, or with neither tag nor digest.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, ""), |(name, digest)| (name, digest));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_empty() && !image.is_empty(),
    }
}

fn service(map: &mut Object) {
    let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    put(spec, "sessionAffinity", || "None".into());
    put(spec, "type", || "ClusterIP".into());
    session_affinity(spec);
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let number = port.get("port").cloned();
        let Some(port) = port.as_object_mut() else {
            continue;
        };
        put(port, "protocol", || "TCP".into());
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null))
            || port
                .get("targetPort")
                .is_some_and(|t| *t == json!(0) || *t == json!(""));
        if let (true, Some(number)) = (unset, number) {
            port.insert("targetPort".into(), number);
        }
    }
    traffic(spec);
}

fn session_affinity(spec: &mut Object) {
    match get(spec, "sessionAffinity") {
        "None" => drop(spec.shift_remove("sessionAffinityConfig")),
        "ClientIP" => {
            let config = spec.get("sessionAffinityConfig").unwrap_or(&Value::Null);
            if !has(config, "clientIP.timeoutSeconds") {
                spec.insert(
                    "sessionAffinityConfig".into(),
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
        }
        _ => {}
    }
}

fn traffic(spec: &mut Object) {
    let kind = get(spec, "type").to_owned();
    let external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if outside || (kind == "ClusterIP" && external_ips) {
        put(spec, "externalTrafficPolicy", || "Cluster".into());
    }
    if outside || kind == "ClusterIP" {
        put(spec, "internalTrafficPolicy", || "Cluster".into());
    }
    if kind == "LoadBalancer" {
        put(spec, "allocateLoadBalancerNodePorts", || true.into());
    }
}

fn replication_controller(map: &mut Object) {
    let template = map
        .get("spec")
        .map(|spec| at(spec, "template.metadata.labels").clone())
        .unwrap_or_default();
    if template.as_object().is_none_or(Map::is_empty) {
        return;
    }
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        put(spec, "selector", || template.clone());
    }
    labels_if_none(map, template);
}

fn labels_if_none(map: &mut Object, labels: Value) {
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let none = metadata
            .get("labels")
            .and_then(Value::as_object)
            .is_none_or(Map::is_empty);
        if none {
            metadata.insert("labels".into(), labels);
        }
    }
}

fn job_labels(map: &mut Object) {
    let labels = map
        .get("spec")
        .map(|spec| at(spec, "template.metadata.labels").clone())
        .unwrap_or_default();
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        labels_if_none(map, labels);
    }
}

fn job_spec(map: &mut Object) {
    if !map.contains_key("completions") && !map.contains_key("parallelism") {
        map.insert("completions".into(), json!(1));
    }
    put(map, "parallelism", || json!(1));
    let per_index = map.contains_key("backoffLimitPerIndex");
    put(map, "backoffLimit", || {
        json!(if per_index { i32::MAX } else { 6 })
    });
    let failure_policy = map.contains_key("podFailurePolicy");
    put(map, "podReplacementPolicy", || {
        if failure_policy {
            "Failed".into()
        } else {
            "TerminatingOrFailed".into()
        }
    });
}

fn rolling_update(map: &mut Object) {
    if get(map, "type") == "RollingUpdate" {
        put(map, "rollingUpdate", || json!({}));
    }
}

fn limit_range_item(map: &mut Object) {
    if get(map, "type") != "Container" {
        return;
    }
    for (to, from) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        fill_from(map, to, from);
    }
}

/// Entries of the map `from` that the map `to` does not have.
fn fill_from(map: &mut Object, to: &str, from: &str) {
    let source = map
        .get(from)
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if source.is_empty() {
        return;
    }
    let target = map.entry(to).or_insert_with(|| json!({}));
    if let Some(target) = target.as_object_mut() {
        for (key, value) in source {
            target.entry(key).or_insert(value);
        }
    }
}

fn policy_types(map: &mut Object) {
    let egress = map
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    put(map, "policyTypes", || {
        if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        }
    });
}

fn autoscaler(map: &mut Object) {
    let cpu = || {
        json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}])
    };
    put(map, "metrics", cpu);
    let Some(behavior) = map.get_mut("behavior").and_then(Value::as_object_mut) else {
        return;
    };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]});
    let down = json!({"selectPolicy": "Max", "policies": [percent]});
    for (side, rules) in [("scaleUp", up), ("scaleDown", down)] {
        let have = behavior.entry(side).or_insert_with(|| json!({}));
        if let (Some(have), Value::Object(rules)) = (have.as_object_mut(), rules) {
            rules
                .into_iter()
                .for_each(|(field, value)| put(have, &field, || value));
        }
    }
}

fn subject(map: &mut Object) {
    if matches!(get(map, "kind"), "User" | "Group") {
        put(map, "apiGroup", || "rbac.authorization.k8s.io".into());
    }
}

fn namespace(map: &mut Object) {
    let name = map
        .get("metadata")
        .map(|meta| text(meta, "name").to_owned())
        .unwrap_or_default();
    if name.is_empty() {
        return;
    }
    if let Some(metadata) = map.get_mut("metadata") {
        map_mut(metadata, "labels").insert("kubernetes.io/metadata.name".into(), name.into());
    }
}

/// `stringData` is for writing only: its entries go into `data`.
fn string_data(map: &mut Object) {
    let Some(Value::Object(plain)) = map.shift_remove("stringData") else {
        return;
    };
    let data = map.entry("data").or_insert_with(|| json!({}));
    if data.is_null() {
        *data = json!({});
    }
    if let Some(data) = data.as_object_mut() {
        for (key, text) in plain {
            let bytes = text.as_str().unwrap_or_default();
            data.insert(
                key,
                base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            );
        }
    }
}

/// `serviceAccount` is the older name of `serviceAccountName`; both are always given.
fn service_account(map: &mut Object) {
    let (name, older) = (get(map, "serviceAccountName"), get(map, "serviceAccount"));
    let name = if name.is_empty() { older } else { name }.to_owned();
    if !name.is_empty() {
        map.insert("serviceAccountName".into(), name.clone().into());
        map.insert("serviceAccount".into(), name.into());
    }
}

/// `podIP` is the first of `podIPs`, `hostIP` of `hostIPs`; either may be given. The list counts.
fn address_twin(map: &mut Object, one: &str, many: &str) {
    let first = map
        .get(many)
        .and_then(|list| list.get(0))
        .map(|entry| text(entry, "ip").to_owned());
    match (first, get(map, one).to_owned()) {
        (Some(first), _) if !first.is_empty() => drop(map.insert(one.to_owned(), first.into())),
        (None, ip) if !ip.is_empty() => drop(map.insert(many.to_owned(), json!([{"ip": ip}]))),
        _ => {}
    }
}

fn pod_cidr_twin(map: &mut Object) {
    let first = map.get("podCIDRs").and_then(|list| list.get(0)).cloned();
    match (first, get(map, "podCIDR").to_owned()) {
        (Some(first), cidr) if cidr.is_empty() => drop(map.insert("podCIDR".into(), first)),
        (None, cidr) if !cidr.is_empty() => drop(map.insert("podCIDRs".into(), json!([cidr]))),
        _ => {}
    }
}

fn node_status(map: &mut Object) {
    if let Some(capacity) = map.get("capacity").cloned() {
        put(map, "allocatable", || capacity);
    }
}

/// What a Pod gets and a pod template does not.
fn pod(object: &mut Value) {
    let host_network = flag(object, "spec.hostNetwork");
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for list in ["containers", "initContainers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                fill_from(resources, "requests", "limits");
            }
            if host_network {
                host_ports(container);
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
        fill_from(resources, "requests", "limits");
    }
    put(spec, "enableServiceLinks", || true.into());
}

fn host_ports(container: &mut Value) {
    for port in container
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let number = port.get("containerPort").cloned();
        let unset = port.get("hostPort").is_none_or(|p| p.is_null() || *p == json!(0));
        if let (Some(port), Some(number), true) = (port.as_object_mut(), number, unset) {
            port.insert("hostPort".into(), number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;

    fn filled(group: &str, version: &str, kind: &str, mut object: Value) -> Value {
        let res = catalog().by_kind(group, version, kind).unwrap();
        defaults(&res, &mut object);
        let once = object.clone();
        defaults(&res, &mut object);
        assert_eq!(once, object, "defaulting twice is defaulting once");
        object
    }

    #[test]
    fn every_type_and_field_of_the_table_exists() {
        let mut missing = Vec::new();
        for (kind, field, _) in CONSTANTS {
            let schema = crate::catalog::type_schema(&format!("{PREFIX}{kind}"));
            if schema.is_none_or(|schema| schema.field(field).is_none()) {
                missing.push((kind, field));
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
        assert!(!BY_TYPE.is_empty());
    }

    #[test]
    fn a_pod_gets_what_upstream_gives_it() {
        let pod = filled(
            "",
            "v1",
            "Pod",
            json!({"spec": {"hostNetwork": true, "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1000m"}}}]}}),
        );
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["restartPolicy"], &spec["dnsPolicy"]),
            (&json!("Always"), &json!("ClusterFirst"))
        );
        assert_eq!(
            (&spec["enableServiceLinks"], &spec["securityContext"]),
            (&json!(true), &json!({}))
        );
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        let c = &spec["containers"][0];
        assert_eq!(
            (&c["imagePullPolicy"], &c["ports"][0]["hostPort"]),
            (&json!("Always"), &json!(80))
        );
        assert_eq!(
            c["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})
        );
        assert_eq!(
            c["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
    }

    #[test]
    fn image_tags_decide_the_pull_policy() {
        for latest in ["a", "a:latest", "r:5000/a", "r:5000/b/a:latest"] {
            assert!(is_latest(latest), "{latest}");
        }
        for other in ["a:1", "a@sha256:00", "r:5000/a:1", ""] {
            assert!(!is_latest(other), "{other}");
        }
    }

    #[test]
    fn services_get_ports_and_policies() {
        let ports = json!([{"port": 80}, {"port": 81, "targetPort": "http"}]);
        let service = filled(
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "NodePort", "ports": ports}}),
        );
        assert_eq!(
            service["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP", "targetPort": 80},
                {"port": 81, "targetPort": "http", "protocol": "TCP"}])
        );
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        let external = filled("", "v1", "Service", json!({"spec": {"type": "ExternalName"}}));
        assert_eq!(external["spec"].get("internalTrafficPolicy"), None);
    }

    #[test]
    fn older_names_and_single_addresses_follow_the_newer_ones() {
        let pod = json!({"spec": {"serviceAccount": "a"}, "status": {"podIP": "1.2.3.4",
            "hostIPs": [{"ip": "5.6.7.8"}, {"ip": "fd00::1"}]}});
        let pod = filled("", "v1", "Pod", pod);
        assert_eq!(pod["spec"]["serviceAccountName"], "a");
        assert_eq!(pod["status"]["podIPs"], json!([{"ip": "1.2.3.4"}]));
        assert_eq!(pod["status"]["hostIP"], "5.6.7.8");
        let node = filled("", "v1", "Node", json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}));
        assert_eq!(node["spec"]["podCIDR"], "10.0.0.0/24");
    }

    #[test]
    fn plain_text_of_secrets_is_stored_as_bytes() {
        let secret = json!({"stringData": {"a": "x"}, "data": {"a": "AA==", "b": "AA=="}});
        let secret = filled("", "v1", "Secret", secret);
        assert_eq!(
            (&secret["data"], secret.get("stringData")),
            (&json!({"a": "eA==", "b": "AA=="}), None)
        );
    }

    #[test]
    fn workloads_get_their_strategies() {
        let deployment = filled(
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": []}}}}),
        );
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            deployment["spec"]["template"]["spec"].get("enableServiceLinks"),
            None
        );
        let recreate = filled(
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
        let job = filled(
            "batch",
            "v1",
            "Job",
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
        );
        assert_eq!(
            (&job["spec"]["completions"], &job["metadata"]["labels"]),
            (&json!(1), &json!({"a": "b"}))
        );
    }

    #[test]
    fn quantities_are_written_canonically() {
        let quota = filled(
            "",
            "v1",
            "ResourceQuota",
            json!({"spec": {"hard": {"cpu": "100u", "memory": 1024, "x": "?"}}}),
        );
        assert_eq!(
            quota["spec"]["hard"],
            json!({"cpu": "1m", "memory": "1024", "x": "?"})
        );
    }
}
