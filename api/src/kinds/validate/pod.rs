//! Rules for pod specs, in Pods and in every template.

use super::super::access::{at, flag, has, int, list, text};
use super::{Causes, child, invalid_each, label_selector, labels, one_of, volume};
use crate::names;
use crate::status::Cause;
use serde_json::Value;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const RESTART: &[&str] = &["Always", "OnFailure", "Never"];
const DNS: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const PREEMPTION: &[&str] = &["PreemptLowerPriority", "Never"];

/// A Pod; `old` is there on an update.
pub(super) fn create(pod: &Value, old: Option<&Value>, out: &mut Causes) {
    spec(at(pod, "spec"), "spec", out);
    if old.is_some() {
        return;
    }
    if !list(pod, "spec.ephemeralContainers").is_empty() {
        out.push(Cause::forbidden(
            "spec.ephemeralContainers",
            "cannot be set on create",
        ));
    }
    if !text(pod, "spec.nodeName").is_empty() && !list(pod, "spec.schedulingGates").is_empty() {
        out.push(Cause::forbidden(
            "spec.nodeName",
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

/// A pod template.
pub(super) fn template(template: &Value, path: &str, out: &mut Causes) {
    super::generic::template_metadata(template, path, out);
    spec(at(template, "spec"), &child(path, "spec"), out);
    if !list(template, "spec.ephemeralContainers").is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        out.push(Cause::forbidden(format!("{path}.spec.ephemeralContainers"), why));
    }
}

/// A pod spec under `path`.
pub(super) fn spec(spec: &Value, path: &str, out: &mut Causes) {
    if !has(spec, "terminationGracePeriodSeconds") {
        out.push(Cause::required(child(path, "terminationGracePeriodSeconds"), ""));
    }
    let volumes = volume::volumes(list(spec, "volumes"), &child(path, "volumes"), out);
    super::container::all(spec, path, &volumes, out);
    one_of(spec, "restartPolicy", path, RESTART, true, out);
    one_of(spec, "dnsPolicy", path, DNS, true, out);
    one_of(spec, "preemptionPolicy", path, PREEMPTION, false, out);
    labels(at(spec, "nodeSelector"), &child(path, "nodeSelector"), out);
    host_network(spec, path, out);
    security(spec, path, out);
    dns_config(spec, path, out);
    gates(spec, path, out);
    spread(spec, path, out);
    affinity(at(spec, "affinity"), &child(path, "affinity"), out);
    tolerations(list(spec, "tolerations"), &child(path, "tolerations"), out);
    names_in(spec, path, out);
    host_aliases(spec, path, out);
    if let Some(seconds) =
        int(spec, "activeDeadlineSeconds").filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        let why = "must be between 1 and 2147483647, inclusive";
        out.push(Cause::invalid(
            child(path, "activeDeadlineSeconds"),
            &seconds.into(),
            why,
        ));
    }
}

fn names_in(spec: &Value, path: &str, out: &mut Causes) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 6] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ];
    for (field, rule) in rules {
        let value = text(spec, field);
        if !value.is_empty() {
            invalid_each(out, &child(path, field), value, rule(value));
        }
    }
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            out.push(Cause::required(
                format!("{path}.imagePullSecrets[{index}].name"),
                "",
            ));
        }
    }
}

/// A pod in the network of its node has the same port inside and outside.
fn host_network(spec: &Value, path: &str, out: &mut Causes) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for group in ["containers", "initContainers"] {
        for (index, container) in list(spec, group).iter().enumerate() {
            for (place, port) in list(container, "ports").iter().enumerate() {
                if int(port, "hostPort").unwrap_or(0) != int(port, "containerPort").unwrap_or(0) {
                    let at_port = format!("{path}.{group}[{index}].ports[{place}].hostPort");
                    let value = int(port, "hostPort").unwrap_or(0).into();
                    out.push(Cause::invalid(
                        at_port,
                        &value,
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
}

fn security(spec: &Value, path: &str, out: &mut Causes) {
    let context = at(spec, "securityContext");
    let path = child(path, "securityContext");
    for (field, upper) in [
        ("runAsUser", "user"),
        ("runAsGroup", "group"),
        ("fsGroup", "group"),
    ] {
        identity(context, field, &path, upper, out);
    }
    one_of(
        context,
        "fsGroupChangePolicy",
        &path,
        &["Always", "OnRootMismatch"],
        false,
        out,
    );
    let mut seen: Vec<&str> = Vec::new();
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name");
        if name.is_empty() {
            out.push(Cause::required(format!("{path}.sysctls[{index}].name"), ""));
        } else if !is_sysctl(name) {
            let why = format!("must have at most 253 characters and match regex {SYSCTL}");
            let path = format!("{path}.sysctls[{index}].name");
            out.push(Cause::invalid_str(path, name, &why));
        } else if seen.contains(&name) {
            out.push(Cause::duplicate(
                format!("{path}.sysctls[{index}].name"),
                &name.into(),
            ));
        }
        seen.push(name);
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let path = child(&path, "shareProcessNamespace");
        out.push(Cause::invalid(
            path,
            &true.into(),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
}

/// The form of a sysctl's name as messages give it.
const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9]$";

/// Parts of lower-case letters, digits and inner dashes and underscores, with dots or slashes between them.
fn is_sysctl(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().is_some_and(|c| plain(*c)) && bytes.last().is_some_and(|c| plain(*c));
        ends && bytes.iter().all(|c| plain(*c) || matches!(c, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

/// A user or group number.
pub(super) fn identity(context: &Value, field: &str, path: &str, _what: &str, out: &mut Causes) {
    if let Some(number) = int(context, field).filter(|n| !(0..=i64::from(i32::MAX)).contains(n)) {
        let why = "must be between 0 and 2147483647, inclusive";
        out.push(Cause::invalid(child(path, field), &number.into(), why));
    }
}

fn dns_config(spec: &Value, path: &str, out: &mut Causes) {
    let config = at(spec, "dnsConfig");
    let path = child(path, "dnsConfig");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            out.push(Cause::required(path, why));
            return;
        }
        if list(config, "nameservers").is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            out.push(Cause::required(child(&path, "nameservers"), why));
        }
    }
    let servers = list(config, "nameservers");
    if servers.len() > 3 {
        let why = "must not have more than 3 nameservers";
        out.push(Cause::invalid(
            child(&path, "nameservers"),
            at(config, "nameservers"),
            why,
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        if super::ip(server).is_none() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            out.push(Cause::invalid_str(
                format!("{path}.nameservers[{index}]"),
                server,
                why,
            ));
        }
    }
    for (index, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            out.push(Cause::required(
                format!("{path}.options[{index}]"),
                "must not be empty",
            ));
        }
    }
}

fn gates(spec: &Value, path: &str, out: &mut Causes) {
    for (index, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        invalid_each(
            out,
            &format!("{path}.readinessGates[{index}].conditionType"),
            kind,
            names::qualified_name(kind),
        );
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        let path = format!("{path}.schedulingGates[{index}]");
        invalid_each(out, &path, name, names::qualified_name(name));
        if seen.contains(&name) {
            out.push(Cause::duplicate(path, &name.into()));
        }
        seen.push(name);
    }
}

fn spread(spec: &Value, path: &str, out: &mut Causes) {
    let constraints = list(spec, "topologySpreadConstraints");
    for (index, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{index}]");
        if int(constraint, "maxSkew").unwrap_or(0) <= 0 {
            let value = int(constraint, "maxSkew").unwrap_or(0).into();
            out.push(Cause::invalid(
                child(&path, "maxSkew"),
                &value,
                "must be greater than zero",
            ));
        }
        if text(constraint, "topologyKey").is_empty() {
            out.push(Cause::required(child(&path, "topologyKey"), "can not be empty"));
        }
        let actions = &["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&text(constraint, "whenUnsatisfiable")) {
            let value = text(constraint, "whenUnsatisfiable").into();
            out.push(Cause::not_supported(
                child(&path, "whenUnsatisfiable"),
                &value,
                actions,
            ));
        }
        label_selector(
            at(constraint, "labelSelector"),
            &child(&path, "labelSelector"),
            out,
        );
        let key = |c: &Value| {
            (
                text(c, "topologyKey").to_owned(),
                text(c, "whenUnsatisfiable").to_owned(),
            )
        };
        if constraints[..index]
            .iter()
            .any(|before| key(before) == key(constraint))
        {
            let (topology, action) = key(constraint);
            let value = format!("{{{topology}, {action}}}");
            out.push(Cause::duplicate(
                format!("{path}.{{topologyKey, whenUnsatisfiable}}"),
                &value.into(),
            ));
        }
    }
}

fn affinity(affinity: &Value, path: &str, out: &mut Causes) {
    let node = at(affinity, "nodeAffinity");
    let node_path = child(path, "nodeAffinity");
    let must = at(node, "requiredDuringSchedulingIgnoredDuringExecution");
    let must_path = child(&node_path, "requiredDuringSchedulingIgnoredDuringExecution");
    if !must.is_null() {
        node_selector(must, &must_path, out);
    }
    for (index, term) in list(node, "preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .enumerate()
    {
        let path = format!("{node_path}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
        weight(term, &path, out);
        node_term(at(term, "preference"), &child(&path, "preference"), out);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(at(affinity, kind), &child(path, kind), out);
    }
}

fn weight(term: &Value, path: &str, out: &mut Causes) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        out.push(Cause::invalid(
            child(path, "weight"),
            &weight.into(),
            "must be in the range 1-100",
        ));
    }
}

/// A `NodeSelector`: at least one term.
pub(super) fn node_selector(selector: &Value, path: &str, out: &mut Causes) {
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        let why = "must have at least one node selector term";
        out.push(Cause::required(child(path, "nodeSelectorTerms"), why));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(term, &format!("{path}.nodeSelectorTerms[{index}]"), out);
    }
}

fn node_term(term: &Value, path: &str, out: &mut Causes) {
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = list(expression, "values").len();
        let problem = match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => Some(Cause::required(
                child(&path, "values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => Some(Cause::forbidden(
                child(&path, "values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values != 1 => Some(Cause::required(
                child(&path, "values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => None,
            other => Some(Cause::invalid_str(
                child(&path, "operator"),
                other,
                "not a valid selector operator",
            )),
        };
        out.extend(problem);
        let key = text(expression, "key");
        invalid_each(out, &child(&path, "key"), key, names::qualified_name(key));
    }
}

fn pod_affinity(affinity: &Value, path: &str, out: &mut Causes) {
    for (index, term) in list(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .enumerate()
    {
        pod_term(
            term,
            &format!("{path}.requiredDuringSchedulingIgnoredDuringExecution[{index}]"),
            out,
        );
    }
    for (index, term) in list(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .enumerate()
    {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
        weight(term, &path, out);
        pod_term(at(term, "podAffinityTerm"), &child(&path, "podAffinityTerm"), out);
    }
}

fn pod_term(term: &Value, path: &str, out: &mut Causes) {
    label_selector(at(term, "labelSelector"), &child(path, "labelSelector"), out);
    label_selector(
        at(term, "namespaceSelector"),
        &child(path, "namespaceSelector"),
        out,
    );
    let key = text(term, "topologyKey");
    if key.is_empty() {
        out.push(Cause::required(child(path, "topologyKey"), "can not be empty"));
    } else {
        invalid_each(out, &child(path, "topologyKey"), key, names::qualified_name(key));
    }
}

/// The tolerations of a pod.
pub(super) fn tolerations(tolerations: &[Value], path: &str, out: &mut Causes) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (key, operator, value) = (
            text(toleration, "key"),
            text(toleration, "operator"),
            text(toleration, "value"),
        );
        if !key.is_empty() {
            invalid_each(out, &child(&path, "key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            out.push(Cause::invalid_str(child(&path, "operator"), operator, why));
        }
        if has(toleration, "tolerationSeconds") && text(toleration, "effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            out.push(Cause::invalid_str(
                child(&path, "effect"),
                text(toleration, "effect"),
                why,
            ));
        }
        match operator {
            "" | "Equal" => {
                let problems = names::label_value(value);
                if !problems.is_empty() {
                    out.push(Cause::invalid_str(
                        child(&path, "operator"),
                        value,
                        &problems.join(";"),
                    ));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                out.push(Cause::invalid_str(child(&path, "operator"), value, why));
            }
            "Exists" => {}
            _ => out.push(Cause::not_supported(
                child(&path, "operator"),
                &operator.into(),
                &["Equal", "Exists"],
            )),
        }
        one_of(toleration, "effect", &path, EFFECTS, false, out);
    }
}

fn host_aliases(spec: &Value, path: &str, out: &mut Causes) {
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        if super::ip(text(alias, "ip")).is_none() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            out.push(Cause::invalid_str(child(&path, "ip"), text(alias, "ip"), why));
        }
        for (place, name) in list(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            invalid_each(
                out,
                &format!("{path}.hostnames[{place}]"),
                name,
                names::dns_subdomain(name),
            );
        }
    }
}
