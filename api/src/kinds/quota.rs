//! What objects use of a ResourceQuota, and which quotas they count for.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::access::{at, has, int, list, text};
use super::qos::qos_class;
use crate::catalog::Resource;
use crate::quantity::{Format, Quantity};

/// Amounts by the name a quota gives them.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds of the core group that may be counted by their bare names.
const BARE: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Resources of containers that are asked for also by their bare names.
const PLAIN: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What `object` uses, whatever quotas there are.
#[must_use]
pub fn usage(res: &Resource, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let ended = matches!(text(object, "status.phase"), "Succeeded" | "Failed");
    let is_pod = res.group.is_empty() && res.plural == "pods";
    for name in counted_as(&res.group, &res.plural) {
        // A pod that has ended holds nothing but its place in the store.
        if !(is_pod && ended && name == "pods") {
            usage.insert(name, one(1));
        }
    }
    match (res.group.as_str(), res.plural.as_str()) {
        ("", "pods") if !ended => pod(&mut usage, object),
        ("", "services") => service(&mut usage, object),
        ("", "persistentvolumeclaims") => claim(&mut usage, object),
        _ => {}
    }
    usage
}

/// The names under which a quota may count objects of a resource.
#[must_use]
pub fn counted_as(group: &str, plural: &str) -> Vec<String> {
    if !group.is_empty() {
        return vec![format!("count/{plural}.{group}")];
    }
    let bare = BARE.contains(&plural).then(|| plural.to_owned());
    bare.into_iter().chain([format!("count/{plural}")]).collect()
}

/// The sum of two usages.
#[must_use]
pub fn sum(mut one: Usage, other: Usage) -> Usage {
    for (name, amount) in other {
        let have = one.get(&name).copied();
        one.insert(name, have.map_or(amount, |have| have + amount));
    }
    one
}

/// Amounts as an API object has them.
#[must_use]
pub fn amounts(map: &Value) -> Usage {
    let pairs = map.as_object().into_iter().flat_map(Map::iter);
    pairs
        .filter_map(|(name, value)| Some((name.clone(), Quantity::from_json(value).ok()?)))
        .collect()
}

/// Whether an object counts for a quota with this spec. Scopes speak of pods only, so that a quota that has one takes
/// no other kinds.
#[must_use]
pub fn counts(spec: &Value, res: &Resource, object: &Value) -> bool {
    let is_pod = res.group.is_empty() && res.plural == "pods";
    let expressions = list(spec, "scopeSelector.matchExpressions");
    let scopes = list(spec, "scopes")
        .iter()
        .map(|scope| scope.as_str().unwrap_or_default());
    let listed = scopes
        .into_iter()
        .all(|scope| is_pod && in_scope(object, scope, "Exists", &[]));
    listed
        && expressions.iter().all(|wanted| {
            let (scope, operator) = (text(wanted, "scopeName"), text(wanted, "operator"));
            is_pod && in_scope(object, scope, operator, list(wanted, "values"))
        })
}

fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let terminating = int(pod, "spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    let best_effort = qos_class(pod) == "BestEffort";
    let class = text(pod, "spec.priorityClassName");
    let named = values.iter().any(|value| value == class);
    match (scope, operator) {
        ("Terminating", _) => terminating,
        ("NotTerminating", _) => !terminating,
        ("BestEffort", _) => best_effort,
        ("NotBestEffort", _) => !best_effort,
        ("CrossNamespacePodAffinity", _) => crosses_namespaces(pod),
        ("PriorityClass", "Exists") => !class.is_empty(),
        ("PriorityClass", "DoesNotExist") => class.is_empty(),
        ("PriorityClass", "In") => named,
        ("PriorityClass", "NotIn") => !named,
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !list(term, "namespaces").is_empty() || has(term, "namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = at(at(pod, "spec.affinity"), kind);
        let preferred = list(affinity, "preferredDuringSchedulingIgnoredDuringExecution");
        let required = list(affinity, "requiredDuringSchedulingIgnoredDuringExecution");
        required.iter().any(crosses) || preferred.iter().any(|term| crosses(at(term, "podAffinityTerm")))
    })
}

/// Amounts that `hard` limits and that some container of a pod does not state, as `cpu for: a,b`; a pod that counts for
/// a quota has to state all of them.
#[must_use]
pub fn unstated(hard: &Usage, pod: &Value) -> Vec<String> {
    let containers = || {
        list(pod, "spec.initContainers")
            .iter()
            .chain(list(pod, "spec.containers"))
    };
    let whole = at(pod, "spec.resources");
    let states = |resources: &Value, name: &str| {
        let (part, resource) = split(name);
        has(at(resources, part), resource)
    };
    let limited = hard.keys().filter(|name| is_stated_by_containers(name));
    let missing = limited.filter(|name| !states(whole, name)).filter_map(|name| {
        let silent = containers().filter(|container| !states(at(container, "resources"), name));
        let names: Vec<&str> = silent.map(|container| text(container, "name")).collect();
        (!names.is_empty()).then(|| format!("{name} for: {}", names.join(",")))
    });
    missing.collect()
}

fn is_stated_by_containers(name: &str) -> bool {
    let (_, resource) = split(name);
    PLAIN[..2].contains(&resource)
}

/// `limits.cpu` is the `cpu` of `limits`; a bare name is a request.
fn split(name: &str) -> (&str, &str) {
    match name.split_once('.') {
        Some((part @ ("requests" | "limits"), resource)) => (part, resource),
        _ => ("requests", name),
    }
}

fn one(number: i64) -> Quantity {
    Quantity::from_value(number, Format::Decimal)
}

fn pod(usage: &mut Usage, pod: &Value) {
    for (name, amount) in pod_total(pod, "requests") {
        usage.insert(format!("requests.{name}"), amount);
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name, amount);
        }
    }
    for (name, amount) in pod_total(pod, "limits") {
        if PLAIN.contains(&name.as_str()) {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
}

/// What a pod may use at one time: its containers and sidecars together, or an init container with the sidecars that
/// were started before it, and the overhead of its runtime class.
fn pod_total(pod: &Value, part: &str) -> Usage {
    let of = |container: &Value| amounts(at(at(container, "resources"), part));
    let (mut sidecars, mut peak) = (Usage::new(), Usage::new());
    for container in list(pod, "spec.initContainers") {
        if text(container, "restartPolicy") == "Always" {
            sidecars = sum(sidecars, of(container));
            peak = larger(peak, &sidecars);
        } else {
            peak = larger(peak, &sum(sidecars.clone(), of(container)));
        }
    }
    let running = list(pod, "spec.containers").iter().map(of).fold(sidecars, sum);
    let mut total = larger(peak, &running);
    // What the pod says as a whole stands above what its containers say.
    total.extend(amounts(at(at(pod, "spec.resources"), part)));
    sum(total, amounts(at(pod, "spec.overhead")))
}

fn larger(mut one: Usage, other: &Usage) -> Usage {
    for (name, amount) in other {
        let have = one.get(name).copied();
        one.insert(name.clone(), have.map_or(*amount, |have| have.max(*amount)));
    }
    one
}

fn service(usage: &mut Usage, service: &Value) {
    let ports = i64::try_from(list(service, "spec.ports").len()).unwrap_or(i64::MAX);
    let allocates = at(service, "spec.allocateLoadBalancerNodePorts") != &Value::Bool(false);
    let explicit = list(service, "spec.ports")
        .iter()
        .filter(|port| int(port, "nodePort").is_some_and(|p| p > 0));
    match text(service, "spec.type") {
        "NodePort" => {
            usage.insert("services.nodeports".into(), one(ports));
        }
        "LoadBalancer" => {
            let explicit = i64::try_from(explicit.count()).unwrap_or(i64::MAX);
            usage.insert("services.loadbalancers".into(), one(1));
            usage.insert(
                "services.nodeports".into(),
                one(if allocates { ports } else { explicit }),
            );
        }
        _ => {}
    }
}

fn claim(usage: &mut Usage, claim: &Value) {
    let storage = amounts(at(claim, "spec.resources.requests")).remove("storage");
    let class = text(claim, "spec.storageClassName");
    let of_class = |name: &str| format!("{class}.storageclass.storage.k8s.io/{name}");
    if !class.is_empty() {
        usage.insert(of_class("persistentvolumeclaims"), one(1));
    }
    if let Some(storage) = storage {
        usage.insert("requests.storage".into(), storage);
        if !class.is_empty() {
            usage.insert(of_class("requests.storage"), storage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;
    use serde_json::json;

    fn used(group: &str, plural: &str, object: Value) -> BTreeMap<String, String> {
        let res = catalog().lookup(group, "v1", plural).unwrap();
        let all = usage(&res, &object).into_iter();
        all.map(|(name, amount)| (name, amount.to_string())).collect()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn every_kind_is_counted_under_its_names() {
        assert_eq!(
            used("", "secrets", json!({})),
            map(&[("secrets", "1"), ("count/secrets", "1")])
        );
        assert_eq!(
            used("apps", "replicasets", json!({})),
            map(&[("count/replicasets.apps", "1")])
        );
    }

    #[test]
    fn a_pod_uses_what_it_may_use_at_one_time_until_it_has_ended() {
        let cpu = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": "2"}}});
        let mut pod =
            json!({"spec": {"containers": [cpu("100m"), cpu("200m")], "initContainers": [cpu("1")]}});
        assert_eq!(
            used("", "pods", pod.clone()),
            map(&[
                ("pods", "1"),
                ("count/pods", "1"),
                ("cpu", "1"),
                ("requests.cpu", "1"),
                ("limits.cpu", "4")
            ])
        );
        pod["status"] = json!({"phase": "Failed"});
        assert_eq!(used("", "pods", pod), map(&[("count/pods", "1")]));
    }

    #[test]
    fn a_load_balancer_takes_node_ports_unless_it_declines() {
        let mut service = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        let with = |service: &Value| used("", "services", service.clone())["services.nodeports"].clone();
        assert_eq!(with(&service), "2");
        service["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert_eq!(with(&service), "0");
    }

    #[test]
    fn scopes_choose_pods_and_nothing_else() {
        let pods = catalog().lookup("", "v1", "pods").unwrap();
        let secrets = catalog().lookup("", "v1", "secrets").unwrap();
        let ending =
            json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{}], "priorityClassName": "high"}});
        let scopes = |names: Value| json!({"scopes": names});
        assert!(counts(
            &scopes(json!(["Terminating", "BestEffort"])),
            &pods,
            &ending
        ));
        assert!(!counts(&scopes(json!(["NotTerminating"])), &pods, &ending));
        assert!(!counts(&scopes(json!(["Terminating"])), &secrets, &json!({})));
        assert!(counts(&json!({}), &secrets, &json!({})));
        let classes = |operator: &str| {
            let wanted = json!({"scopeName": "PriorityClass", "operator": operator, "values": ["high"]});
            json!({"scopeSelector": {"matchExpressions": [wanted]}})
        };
        assert!(counts(&classes("In"), &pods, &ending));
        assert!(!counts(&classes("NotIn"), &pods, &ending));
    }

    #[test]
    fn containers_have_to_state_what_is_limited() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"memory": "1"}}},
        ]}});
        let hard = amounts(&json!({"cpu": "1", "limits.memory": "1", "pods": "5"}));
        assert_eq!(unstated(&hard, &pod), ["cpu for: b", "limits.memory for: a,b"]);
    }
}
