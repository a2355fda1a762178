//! What a write may not decide for itself: status on create, spec on a status update, system metadata, generation.

use super::access::{at, entries, flag, has, list, same, text};
use super::qos::qos_class;
use super::{Context, id, is_custom};
use crate::catalog::Resource;
use crate::meta::{map_mut, metadata_mut, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Prepares a new object: system metadata, generation, a fresh status. `metadata.uid` and `metadata.name` must be set
/// already (Jobs select their pods by uid).
pub fn prepare_create(res: &Resource, object: &mut Value, ctx: &Context<'_>) {
    let metadata = metadata_mut(object);
    for gone in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.shift_remove(gone);
    }
    metadata.insert("creationTimestamp".into(), time(ctx.now).into());
    if has_generation(res) {
        metadata.insert("generation".into(), 1.into());
    }
    if resets_status(res) {
        reset_status(res, object, ctx);
    }
    match id(res) {
        ("", "pods") => scheduling_gates(object),
        ("", "namespaces") => namespace_finalizer(object),
        ("", "serviceaccounts") => secret_names(object),
        ("apps", "daemonsets") => annotate(object, TEMPLATE_GENERATION, "1"),
        ("batch", "jobs") => job_selector(object),
        ("certificates.k8s.io", "certificatesigningrequests") => requester(object, ctx.user),
        _ => {}
    }
    crate::defaults::apply(&res.schema, object);
    super::defaults(res, object);
}

/// Prepares an update of `old` to `new`: the parts the request may not touch are put back, and the generation is raised
/// when the wanted state has changed.
pub fn prepare_update(res: &Resource, new: &mut Value, old: &Value, ctx: &Context<'_>) {
    let generation = at(old, "metadata.generation").clone();
    match ctx.subresource {
        Some("status") => status_update(res, new, old, ctx),
        Some("finalize") => copy(new, old, "status"),
        Some("approval") => only(new, old, &["status"]),
        Some("ephemeralcontainers") => only_in_spec(new, old, "ephemeralContainers"),
        Some("resize") => resize(new, old),
        _ => main_update(res, new, old),
    }
    system_metadata(new, old);
    let raised =
        ctx.subresource != Some("status") && has_generation(res) && wanted_state_changed(res, new, old);
    let metadata = metadata_mut(new);
    match (raised, generation.as_i64()) {
        (true, number) => {
            drop(metadata_mut(new).insert("generation".into(), (number.unwrap_or(0) + 1).into()))
        }
        (false, Some(number)) => drop(metadata.insert("generation".into(), number.into())),
        (false, None) => drop(metadata.shift_remove("generation")),
    }
    if id(res) == ("apps", "daemonsets") {
        keep_template_generation(new, old);
    }
    super::defaults(res, new);
}

/// Marks an object as being deleted: sets `deletionTimestamp` (`now` plus the grace period),
/// `deletionGracePeriodSeconds`, and raises the generation of kinds that have one.
pub fn mark_deleted(object: &mut Value, now: Timestamp, grace_seconds: i64) {
    let at = now
        .checked_add(SignedDuration::from_secs(grace_seconds))
        .unwrap_or(now);
    let metadata = metadata_mut(object);
    metadata.insert("deletionTimestamp".into(), time(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace_seconds.into());
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|g| *g > 0)
    {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// The kinds whose `metadata.generation` counts changes of the wanted state.
fn has_generation(res: &Resource) -> bool {
    match id(res) {
        _ if is_custom(res) => true,
        ("", plural) => matches!(plural, "pods" | "podtemplates" | "replicationcontrollers"),
        ("apps", plural) => plural != "controllerrevisions",
        ("batch" | "flowcontrol.apiserver.k8s.io" | "admissionregistration.k8s.io", _) => true,
        ("networking.k8s.io", plural) => matches!(plural, "ingresses" | "ingressclasses" | "networkpolicies"),
        ("discovery.k8s.io", plural) => plural == "endpointslices",
        ("policy", plural) => plural == "poddisruptionbudgets",
        ("scheduling.k8s.io", plural) => plural == "priorityclasses",
        ("resource.k8s.io", plural) => {
            matches!(plural, "resourceslices" | "deviceclasses" | "devicetaintrules")
        }
        ("apiextensions.k8s.io", plural) => plural == "customresourcedefinitions",
        _ => false,
    }
}

/// Nodes register with their status; everything else that has a status subresource starts with none.
fn resets_status(res: &Resource) -> bool {
    res.has_status_subresource() && id(res) != ("", "nodes")
}

fn reset_status(res: &Resource, object: &mut Value, ctx: &Context<'_>) {
    let fresh = match id(res) {
        ("", "pods") => json!({"phase": "Pending", "qosClass": qos_class(object)}),
        ("", "namespaces") => json!({"phase": "Active"}),
        ("", "persistentvolumeclaims") => json!({"phase": "Pending"}),
        ("", "persistentvolumes") => json!({"phase": "Pending", "lastPhaseTransitionTime": time(ctx.now)}),
        ("", "services") | ("networking.k8s.io", "ingresses") => json!({"loadBalancer": {}}),
        _ if is_custom(res) => Value::Null,
        _ => json!({}),
    };
    set(object, "status", fresh);
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        match value {
            Value::Null => drop(map.shift_remove(field)),
            value => drop(map.insert(field.to_owned(), value)),
        }
    }
}

fn copy(new: &mut Value, old: &Value, field: &str) {
    set(new, field, at(old, field).clone());
}

fn scheduling_gates(pod: &mut Value) {
    if list(pod, "spec.schedulingGates").is_empty() {
        return;
    }
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates"});
    map_mut(pod, "status").insert("conditions".into(), json!([condition]));
}

fn namespace_finalizer(namespace: &mut Value) {
    let finalizers = map_mut(namespace, "spec")
        .entry("finalizers")
        .or_insert_with(|| json!([]));
    if let Some(list) = finalizers
        .as_array_mut()
        .filter(|list| !list.contains(&json!("kubernetes")))
    {
        list.push("kubernetes".into());
    } else if finalizers.is_null() {
        *finalizers = json!(["kubernetes"]);
    }
}

fn secret_names(account: &mut Value) {
    for secret in account
        .get_mut("secrets")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        *secret = json!({"name": text(secret, "name")});
    }
}

fn annotate(object: &mut Value, key: &str, value: &str) {
    let metadata = map_mut(object, "metadata");
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(key.to_owned(), value.into());
    }
}

/// Counts changes of the template in an annotation, as older clients expect; the client's own value does not count.
fn keep_template_generation(new: &mut Value, old: &Value) {
    let number = at(old, "metadata.annotations")
        .get(TEMPLATE_GENERATION)
        .and_then(Value::as_str);
    let number: i64 = number.and_then(|n| n.parse().ok()).unwrap_or(1);
    let changed = !same(at(new, "spec.template"), at(old, "spec.template"));
    annotate(
        new,
        TEMPLATE_GENERATION,
        &(number + i64::from(changed)).to_string(),
    );
}

/// A Job without a selector of its own selects by its uid, and its template gets the labels for it.
fn job_selector(job: &mut Value) {
    if flag(job, "spec.manualSelector") {
        return;
    }
    let uid = text(job, "metadata.uid").to_owned();
    let name = text(job, "metadata.name").to_owned();
    let labels = [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ];
    let spec = map_mut(job, "spec");
    let template = spec.entry("template").or_insert_with(|| json!({}));
    let metadata = metadata_mut(template);
    let own = metadata.entry("labels").or_insert_with(|| json!({}));
    if let Some(own) = own.as_object_mut() {
        labels
            .into_iter()
            .for_each(|(key, value)| drop(own.insert(key.to_owned(), value.clone().into())));
    }
    let selector = spec.entry("selector").or_insert_with(|| json!({}));
    map_mut(selector, "matchLabels").insert("batch.kubernetes.io/controller-uid".into(), uid.into());
}

/// Who asks for a certificate is what the server says, not the request. Groups and extra are for the caller to add.
fn requester(request: &mut Value, user: &str) {
    let spec = map_mut(request, "spec");
    for gone in ["uid", "groups", "extra"] {
        spec.shift_remove(gone);
    }
    spec.insert("username".into(), user.into());
}

fn main_update(res: &Resource, new: &mut Value, old: &Value) {
    if res.has_status_subresource() {
        copy(new, old, "status");
    }
    match id(res) {
        ("", "namespaces") => {
            let finalizers = at(old, "spec.finalizers").clone();
            map_mut(new, "spec").insert("finalizers".into(), finalizers);
        }
        ("", "services") => service_allocations(new, old),
        ("", "serviceaccounts") => secret_names(new),
        ("", "secrets") if text(new, "type").is_empty() => copy(new, old, "type"),
        ("certificates.k8s.io", "certificatesigningrequests") => copy(new, old, "spec"),
        _ => {}
    }
}

/// Everything but `parts` (and what a client may change in metadata) as it was.
fn only(new: &mut Value, old: &Value, parts: &[&str]) {
    let Some(map) = new.as_object_mut() else { return };
    map.retain(|key, _| {
        parts.contains(&key.as_str()) || matches!(key.as_str(), "metadata" | "apiVersion" | "kind")
    });
    for (key, value) in old.as_object().into_iter().flatten() {
        let kept =
            parts.contains(&key.as_str()) || matches!(key.as_str(), "metadata" | "apiVersion" | "kind");
        if !kept {
            map.insert(key.clone(), value.clone());
        }
    }
}

fn only_in_spec(new: &mut Value, old: &Value, field: &str) {
    let wanted = at(new, "spec").get(field).cloned().unwrap_or_default();
    let rest = metadata_of_request(new, old);
    *new = rest;
    let spec = map_mut(new, "spec");
    match wanted {
        Value::Null => drop(spec.shift_remove(field)),
        wanted => drop(spec.insert(field.to_owned(), wanted)),
    }
}

/// The old object with the resource version (and managed fields) of the request.
fn metadata_of_request(new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    for field in ["resourceVersion", "managedFields"] {
        let value = at(new, "metadata").get(field).cloned();
        let metadata = metadata_mut(&mut out);
        match value {
            Some(value) => drop(metadata.insert(field.to_owned(), value)),
            None => drop(metadata.shift_remove(field)),
        }
    }
    out
}

fn resize(new: &mut Value, old: &Value) {
    let wanted = std::mem::replace(new, Value::Null);
    let mut out = metadata_of_request(&wanted, old);
    for group in ["containers", "initContainers"] {
        let list = out
            .get_mut("spec")
            .and_then(|spec| spec.get_mut(group))
            .and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            let name = text(container, "name").to_owned();
            let source = super::access::list(&wanted, &format!("spec.{group}"))
                .iter()
                .find(|c| text(c, "name") == name);
            for field in ["resources", "resizePolicy"] {
                if let Some(value) = source.and_then(|source| source.get(field)) {
                    set(container, field, value.clone());
                }
            }
        }
    }
    *new = out;
}

fn status_update(res: &Resource, new: &mut Value, old: &Value, ctx: &Context<'_>) {
    only(new, old, &["status"]);
    match id(res) {
        _ if is_custom(res) => {
            let rest = metadata_of_request(new, old);
            set(new, "metadata", at(&rest, "metadata").clone());
        }
        ("", "pods") => pod_status(new, old),
        ("", "persistentvolumes") => phase_time(new, old, ctx.now),
        ("apps" | "policy" | "autoscaling" | "batch", _) => {
            let labels = at(old, "metadata.labels").clone();
            put_metadata(new, "labels", labels);
        }
        _ => {}
    }
}

fn put_metadata(object: &mut Value, field: &str, value: Value) {
    let metadata = metadata_mut(object);
    match value {
        Value::Null => drop(metadata.shift_remove(field)),
        value => drop(metadata.insert(field.to_owned(), value)),
    }
}

fn pod_status(new: &mut Value, old: &Value) {
    put_metadata(
        new,
        "ownerReferences",
        at(old, "metadata.ownerReferences").clone(),
    );
    put_metadata(
        new,
        "deletionTimestamp",
        at(old, "metadata.deletionTimestamp").clone(),
    );
    let status = map_mut(new, "status");
    for field in ["qosClass", "observedGeneration"] {
        let value = at(old, "status").get(field);
        if let (None | Some(Value::Null), Some(value)) = (status.get(field), value) {
            status.insert(field.to_owned(), value.clone());
        }
    }
}

fn phase_time(new: &mut Value, old: &Value, now: Timestamp) {
    let field = "lastPhaseTransitionTime";
    let before = at(old, "status").get(field).cloned().unwrap_or_default();
    let given = at(new, "status").get(field).cloned().unwrap_or_default();
    let changed = text(new, "status.phase") != text(old, "status.phase");
    let status = map_mut(new, "status");
    if changed && (given.is_null() || given == before) {
        status.insert(field.into(), time(now).into());
    } else if !changed && given.is_null() && !before.is_null() {
        status.insert(field.into(), before);
    }
}

/// Uid, creation and deletion are the server's.
fn system_metadata(new: &mut Value, old: &Value) {
    let before = at(old, "metadata").as_object().cloned().unwrap_or_default();
    let metadata = metadata_mut(new);
    metadata.shift_remove("selfLink");
    let keep = |metadata: &mut Map<String, Value>, field: &str| {
        if let Some(value) = before.get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    };
    keep(metadata, "creationTimestamp");
    keep(metadata, "deletionTimestamp");
    for field in ["uid", "deletionGracePeriodSeconds"] {
        if metadata
            .get(field)
            .is_none_or(|value| value.is_null() || value == "")
        {
            keep(metadata, field);
        }
    }
}

fn wanted_state_changed(res: &Resource, new: &Value, old: &Value) -> bool {
    let status_counts = is_custom(res) && !res.has_status_subresource();
    let counts =
        |key: &str| !matches!(key, "metadata" | "apiVersion" | "kind") && (key != "status" || status_counts);
    let keys = entries(new, "").chain(entries(old, "")).map(|(key, _)| key);
    let changed = keys
        .into_iter()
        .any(|key| counts(key) && !same(at(new, key), at(old, key)));
    let metadata = match id(res) {
        ("apps", "deployments") => Some("metadata.annotations"),
        ("discovery.k8s.io", "endpointslices") => Some("metadata.labels"),
        _ => None,
    };
    changed || metadata.is_some_and(|path| !same(at(new, path), at(old, path)))
}

/// Addresses and ports that were given to a Service stay with it when the update does not name them.
fn service_allocations(new: &mut Value, old: &Value) {
    let external = |service: &Value| text(service, "spec.type") == "ExternalName";
    if !external(new) && !external(old) {
        let addressed = !text(new, "spec.clusterIP").is_empty() || !list(new, "spec.clusterIPs").is_empty();
        let addresses = ["clusterIP", "clusterIPs"].into_iter().filter(|_| !addressed);
        for field in addresses.chain(["ipFamilies", "ipFamilyPolicy"]) {
            keep_in_spec(new, old, field);
        }
    }
    if external(new) && !external(old) {
        release_addresses(new, old);
    }
    let node_ports = |service: &Value| matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer");
    if node_ports(new) && node_ports(old) {
        keep_node_ports(new, old);
        if text(new, "spec.externalTrafficPolicy") == "Local"
            && text(old, "spec.externalTrafficPolicy") == "Local"
        {
            keep_in_spec(new, old, "healthCheckNodePort");
        }
    } else if !node_ports(new) && node_ports(old) {
        release_node_ports(new, old);
    }
}

fn keep_in_spec(new: &mut Value, old: &Value, field: &str) {
    let before = at(old, "spec").get(field).cloned().unwrap_or_default();
    let spec = map_mut(new, "spec");
    if spec
        .get(field)
        .is_none_or(|v| v.is_null() || v == "" || v == &json!([]))
        && !before.is_null()
    {
        spec.insert(field.to_owned(), before);
    }
}

/// A Service that becomes an `ExternalName` loses its addresses, unless the request itself changed them.
fn release_addresses(new: &mut Value, old: &Value) {
    for field in [
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "internalTrafficPolicy",
    ] {
        let unchanged = same(&at(new, "spec")[field], &at(old, "spec")[field]);
        if unchanged {
            map_mut(new, "spec").shift_remove(field);
        }
    }
}

fn port_key(port: &Value) -> (String, i64) {
    (
        text(port, "protocol").to_owned(),
        super::access::int(port, "port").unwrap_or(0),
    )
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    let ports = service
        .get_mut("spec")
        .and_then(|spec| spec.get_mut("ports"))
        .and_then(Value::as_array_mut);
    ports.into_iter().flatten()
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let taken: Vec<Value> = list(new, "spec.ports")
        .iter()
        .filter_map(|port| port.get("nodePort").cloned())
        .collect();
    for port in ports_mut(new).filter(|port| !has(port, "nodePort") || port["nodePort"] == 0) {
        let before = list(old, "spec.ports")
            .iter()
            .find(|before| port_key(before) == port_key(port));
        let number = before
            .and_then(|before| before.get("nodePort"))
            .filter(|number| !taken.contains(number));
        if let (Some(number), Some(port)) = (number, port.as_object_mut()) {
            port.insert("nodePort".into(), number.clone());
        }
    }
}

/// A Service that stops being reachable on nodes loses node ports that the request did not change.
fn release_node_ports(new: &mut Value, old: &Value) {
    let before: Vec<(String, Value)> = list(old, "spec.ports")
        .iter()
        .map(|port| (text(port, "name").to_owned(), port["nodePort"].clone()))
        .collect();
    for port in ports_mut(new) {
        let pair = (text(port, "name").to_owned(), port["nodePort"].clone());
        if let (true, Some(port)) = (before.contains(&pair), port.as_object_mut()) {
            port.shift_remove("nodePort");
        }
    }
    for field in [
        "externalTrafficPolicy",
        "healthCheckNodePort",
        "allocateLoadBalancerNodePorts",
        "loadBalancerClass",
    ] {
        let external_ips = field == "externalTrafficPolicy" && !list(new, "spec.externalIPs").is_empty();
        if same(&at(new, "spec")[field], &at(old, "spec")[field]) && !external_ips {
            map_mut(new, "spec").shift_remove(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;
    use std::sync::Arc;

    fn resource(group: &str, plural: &str) -> Arc<Resource> {
        catalog().lookup(group, "v1", plural).unwrap()
    }

    fn ctx(subresource: Option<&str>) -> Context<'_> {
        Context {
            now: "2024-01-02T03:04:05Z".parse().unwrap(),
            user: "me",
            subresource,
        }
    }

    #[test]
    fn a_new_object_has_a_fresh_status_and_generation() {
        let mut pod = json!({"metadata": {"name": "a", "deletionTimestamp": "x"}, "status": {"phase": "Running"},
            "spec": {"containers": [{"name": "c"}]}});
        prepare_create(&resource("", "pods"), &mut pod, &ctx(None));
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["qosClass"], "BestEffort");
        assert_eq!(pod["metadata"]["generation"], 1);
        assert_eq!(pod["metadata"]["creationTimestamp"], "2024-01-02T03:04:05Z");
        assert!(pod["metadata"].get("deletionTimestamp").is_none());
    }

    #[test]
    fn a_namespace_gets_its_finalizer_once() {
        let mut namespace = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["x"]}});
        prepare_create(&resource("", "namespaces"), &mut namespace, &ctx(None));
        assert_eq!(namespace["spec"]["finalizers"], json!(["x", "kubernetes"]));
        assert_eq!(namespace["status"]["phase"], "Active");
        let before = namespace.clone();
        prepare_update(&resource("", "namespaces"), &mut namespace, &before, &ctx(None));
        assert_eq!(namespace, before);
    }

    #[test]
    fn generation_rises_with_the_spec_only() {
        let res = resource("apps", "deployments");
        let old = json!({"metadata": {"generation": 3, "uid": "u"}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let update = |mut new: Value, sub: Option<&str>| {
            prepare_update(&res, &mut new, &old, &ctx(sub));
            new
        };
        let spec = update(
            json!({"metadata": {"generation": 9}, "spec": {"replicas": 2}, "status": {"replicas": 9}}),
            None,
        );
        assert_eq!(
            (&spec["metadata"]["generation"], &spec["metadata"]["uid"]),
            (&json!(4), &json!("u"))
        );
        assert_eq!(spec["status"]["replicas"], 1);
        let labels = update(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}}),
            None,
        );
        assert_eq!(labels["metadata"]["generation"], 3);
        let status = update(
            json!({"metadata": {}, "spec": {"replicas": 7}, "status": {"replicas": 2}}),
            Some("status"),
        );
        assert_eq!(
            (&status["spec"]["replicas"], &status["status"]["replicas"]),
            (&json!(1), &json!(2))
        );
        assert_eq!(status["metadata"]["generation"], 3);
    }

    #[test]
    fn deletion_marks_cannot_be_taken_back() {
        let mut old = json!({"metadata": {"name": "a", "generation": 1}, "spec": {}});
        mark_deleted(&mut old, "2024-01-02T03:04:05Z".parse().unwrap(), 30);
        assert_eq!(old["metadata"]["deletionTimestamp"], "2024-01-02T03:04:35Z");
        assert_eq!(old["metadata"]["generation"], 2);
        let mut new = json!({"metadata": {"name": "a"}, "spec": {}});
        prepare_update(&resource("", "pods"), &mut new, &old, &ctx(None));
        assert_eq!(new["metadata"]["deletionTimestamp"], "2024-01-02T03:04:35Z");
        assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 30);
    }

    #[test]
    fn services_keep_what_was_allocated() {
        let old = json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "c", "clusterIPs": ["c"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut new =
            json!({"metadata": {}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        prepare_update(&resource("", "services"), &mut new, &old, &ctx(None));
        assert_eq!(
            (&new["spec"]["clusterIP"], &new["spec"]["ports"][0]["nodePort"]),
            (&json!("c"), &json!(30001))
        );
        let mut gone = old.clone();
        gone["spec"]["type"] = "ExternalName".into();
        prepare_update(&resource("", "services"), &mut gone, &old, &ctx(None));
        assert_eq!(
            (
                gone["spec"].get("clusterIP"),
                gone["spec"]["ports"][0].get("nodePort")
            ),
            (None, None)
        );
    }

    #[test]
    fn jobs_select_their_pods_by_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        prepare_create(&resource("batch", "jobs"), &mut job, &ctx(None));
        assert_eq!(
            job["spec"]["selector"]["matchLabels"],
            json!({"batch.kubernetes.io/controller-uid": "u"})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }

    #[test]
    fn ephemeral_containers_change_nothing_else() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "1"}]}});
        let mut new = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "2"}],
            "ephemeralContainers": [{"name": "e"}]}});
        prepare_update(
            &resource("", "pods"),
            &mut new,
            &old,
            &ctx(Some("ephemeralcontainers")),
        );
        assert_eq!(new["spec"]["containers"][0]["image"], "1");
        assert_eq!(new["spec"]["ephemeralContainers"][0]["name"], "e");
    }
}
