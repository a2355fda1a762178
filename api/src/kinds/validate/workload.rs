//! Rules for the kinds that run pods from a template.

use super::super::access::{at, has, int, list, same, text};
use super::{
    Causes, IMMUTABLE, child, immutable, invalid_each, label_selector, not_negative, one_of, pod, required,
};
use crate::names;
use crate::selector::LabelSelector;
use crate::status::Cause;
use serde_json::{Value, json};

const MISMATCH: &str = "`selector` does not match template `labels`";

fn empty_selector(selector: &Value) -> bool {
    let labels = at(selector, "matchLabels")
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    labels && list(selector, "matchExpressions").is_empty()
}

/// `spec.selector`: there, well formed, not empty, matching the template's labels.
pub(super) fn selector(spec: &Value, kind: &str, out: &mut Causes) {
    let selector = at(spec, "selector");
    if selector.is_null() {
        out.push(Cause::required("spec.selector", ""));
    } else {
        label_selector(selector, "spec.selector", out);
        if empty_selector(selector) {
            let why = format!("empty selector is invalid for {kind}");
            out.push(Cause::invalid("spec.selector", selector, &why));
        }
    }
    matches_template(spec, LabelSelector::from_json(selector).ok(), out);
}

fn matches_template(spec: &Value, selector: Option<LabelSelector>, out: &mut Causes) {
    let labels = at(spec, "template.metadata.labels");
    if selector.is_some_and(|selector| !selector.is_everything() && !selector.matches(labels)) {
        out.push(Cause::invalid("spec.template.metadata.labels", labels, MISMATCH));
    }
}

/// The template of something that keeps pods running.
fn lasting_template(spec: &Value, kind: &str, out: &mut Causes) {
    let template = at(spec, "template");
    pod::template(template, "spec.template", out);
    let policy = text(template, "spec.restartPolicy");
    if policy != "Always" {
        out.push(Cause::not_supported(
            "spec.template.spec.restartPolicy",
            &policy.into(),
            &["Always"],
        ));
    }
    let why = format!("activeDeadlineSeconds in {kind} is not Supported");
    super::forbid(template, "spec.activeDeadlineSeconds", "spec.template", &why, out);
}

fn same_selector(new: &Value, old: Option<&Value>, out: &mut Causes) {
    if old.is_some_and(|old| !same(at(new, "spec.selector"), at(old, "spec.selector"))) {
        out.push(Cause::invalid(
            "spec.selector",
            at(new, "spec.selector"),
            IMMUTABLE,
        ));
    }
}

pub(super) fn deployment(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    not_negative(spec, &["replicas"], "spec", out);
    selector(spec, "deployment", out);
    lasting_template(spec, "ReplicaSet", out);
    deployment_strategy(at(spec, "strategy"), out);
    let numbers = [
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ];
    not_negative(spec, &numbers, "spec", out);
    let ready = int(spec, "minReadySeconds").unwrap_or(0);
    if let Some(deadline) = int(spec, "progressDeadlineSeconds").filter(|deadline| *deadline <= ready) {
        let why = "must be greater than minReadySeconds";
        out.push(Cause::invalid(
            "spec.progressDeadlineSeconds",
            &deadline.into(),
            why,
        ));
    }
    same_selector(object, old, out);
}

fn deployment_strategy(strategy: &Value, out: &mut Causes) {
    let path = "spec.strategy.rollingUpdate";
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => {
            out.push(Cause::forbidden(
                path,
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            amount(rolling, "maxUnavailable", path, out);
            amount(rolling, "maxSurge", path, out);
            if [
                rolling_number(rolling, "maxUnavailable"),
                rolling_number(rolling, "maxSurge"),
            ] == [0, 0]
            {
                let why = "may not be 0 when `maxSurge` is 0";
                out.push(Cause::invalid(
                    child(path, "maxUnavailable"),
                    at(rolling, "maxUnavailable"),
                    why,
                ));
            }
        }
        _ => out.push(Cause::not_supported(
            "spec.strategy",
            strategy,
            &["Recreate", "RollingUpdate"],
        )),
    }
}

/// A count or a percentage as a bare number.
fn rolling_number(object: &Value, field: &str) -> i64 {
    match at(object, field) {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

/// A count or percentage: not negative, at most 100 %.
fn amount(object: &Value, field: &str, path: &str, out: &mut Causes) {
    let value = at(object, field);
    if let Value::String(percent) = value {
        let digits = percent
            .strip_suffix('%')
            .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
        if digits.is_none() {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                       regex used for validation is '[0-9]+%')";
            out.push(Cause::invalid(child(path, field), value, why));
        } else if rolling_number(object, field) > 100 && field != "maxSurge" {
            out.push(Cause::invalid(
                child(path, field),
                value,
                "must not be greater than 100%",
            ));
        }
    } else {
        not_negative(object, &[field], path, out);
    }
}

pub(super) fn replica_set(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    not_negative(spec, &["replicas", "minReadySeconds"], "spec", out);
    selector(spec, "deployment", out);
    lasting_template(spec, "ReplicaSet", out);
    same_selector(object, old, out);
}

pub(super) fn replication_controller(object: &Value, out: &mut Causes) {
    let spec = at(object, "spec");
    not_negative(spec, &["replicas", "minReadySeconds"], "spec", out);
    if at(spec, "selector")
        .as_object()
        .is_none_or(serde_json::Map::is_empty)
    {
        out.push(Cause::required("spec.selector", ""));
    }
    if !has(spec, "template") {
        out.push(Cause::required("spec.template", ""));
        return;
    }
    matches_template(spec, LabelSelector::from_map(at(spec, "selector")).ok(), out);
    lasting_template(spec, "ReplicationController", out);
}

pub(super) fn daemon_set(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    selector(spec, "daemonset", out);
    lasting_template(spec, "DaemonSet", out);
    not_negative(spec, &["minReadySeconds", "revisionHistoryLimit"], "spec", out);
    let (strategy, path) = (at(spec, "updateStrategy"), "spec.updateStrategy.rollingUpdate");
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            amount(rolling, "maxUnavailable", path, out);
            amount(rolling, "maxSurge", path, out);
            match (
                rolling_number(rolling, "maxUnavailable") != 0,
                rolling_number(rolling, "maxSurge") != 0,
            ) {
                (true, true) => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    out.push(Cause::invalid(
                        child(path, "maxSurge"),
                        at(rolling, "maxSurge"),
                        why,
                    ));
                }
                (false, false) => {
                    out.push(Cause::required(
                        child(path, "maxUnavailable"),
                        "cannot be 0 when maxSurge is 0",
                    ));
                }
                _ => {}
            }
        }
        _ => out.push(Cause::not_supported(
            "spec.updateStrategy",
            strategy,
            &["RollingUpdate", "OnDelete"],
        )),
    }
    same_selector(object, old, out);
}

pub(super) fn stateful_set(object: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(object, "spec");
    let management = text(spec, "podManagementPolicy");
    if !matches!(management, "OrderedReady" | "Parallel") {
        let why = "must be 'OrderedReady' or 'Parallel'";
        out.push(Cause::invalid_str("spec.podManagementPolicy", management, why));
    }
    stateful_strategy(at(spec, "updateStrategy"), out);
    for field in ["whenDeleted", "whenScaled"] {
        let path = "spec.persistentVolumeClaimRetentionPolicy";
        one_of(
            at(spec, "persistentVolumeClaimRetentionPolicy"),
            field,
            path,
            &["Retain", "Delete"],
            false,
            out,
        );
    }
    not_negative(spec, &["replicas", "minReadySeconds"], "spec", out);
    let name = text(spec, "serviceName");
    if old.is_none() && !name.is_empty() {
        invalid_each(out, "spec.serviceName", name, names::dns_label(name));
    }
    selector(spec, "statefulset", out);
    lasting_template(&with_claims(spec), "StatefulSet", out);
    if let Some(old) = old {
        stateful_update(object, old, out);
    }
}

/// The spec with a volume for each claim template: pods may mount them.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let names: Vec<String> = list(&spec, "volumeClaimTemplates")
        .iter()
        .map(|c| text(c, "metadata.name").to_owned())
        .collect();
    let Some(pod) = spec
        .get_mut("template")
        .and_then(|t| t.get_mut("spec"))
        .and_then(Value::as_object_mut)
    else {
        return spec;
    };
    let volumes = pod.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.retain(|volume| !names.iter().any(|name| text(volume, "name") == name));
        volumes.extend(
            names
                .iter()
                .map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}})),
        );
    }
    spec
}

fn stateful_strategy(strategy: &Value, out: &mut Causes) {
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" if !rolling.is_null() => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            out.push(Cause::invalid("spec.updateStrategy.rollingUpdate", rolling, why));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            not_negative(rolling, &["partition"], "spec.updateStrategy.rollingUpdate", out);
            amount(
                rolling,
                "maxUnavailable",
                "spec.updateStrategy.rollingUpdate",
                out,
            );
        }
        "" => out.push(Cause::required("spec.updateStrategy", "")),
        _ => {
            out.push(Cause::invalid(
                "spec.updateStrategy",
                strategy,
                "must be 'RollingUpdate' or 'OnDelete'",
            ));
        }
    }
}

fn stateful_update(new: &Value, old: &Value, out: &mut Causes) {
    let changeable = [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    let fixed = |object: &Value| {
        let mut spec = at(object, "spec").clone();
        if let Some(map) = spec.as_object_mut() {
            map.retain(|key, _| !changeable.contains(&key.as_str()));
        }
        spec
    };
    if !same(&fixed(new), &fixed(old)) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                   'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                   'minReadySeconds' are forbidden";
        out.push(Cause::forbidden("spec", why));
    }
}

pub(super) fn controller_revision(object: &Value, old: Option<&Value>, out: &mut Causes) {
    not_negative(object, &["revision"], "", out);
    match old {
        None if !has(object, "data") => out.push(Cause::required("data", "data is mandatory")),
        None => {}
        Some(old) => immutable(object, old, "data", out),
    }
}

pub(super) fn disruption_budget(object: &Value, out: &mut Causes) {
    let spec = at(object, "spec");
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        out.push(Cause::invalid("spec", spec, why));
    }
    amount(spec, "minAvailable", "spec", out);
    amount(spec, "maxUnavailable", "spec", out);
    label_selector(at(spec, "selector"), "spec.selector", out);
    let policies = &["AlwaysAllow", "IfHealthyBudget"];
    one_of(spec, "unhealthyPodEvictionPolicy", "spec", policies, false, out);
}

pub(super) fn autoscaler(object: &Value, out: &mut Causes) {
    let spec = at(object, "spec");
    let (min, max) = (
        int(spec, "minReplicas").unwrap_or(1),
        int(spec, "maxReplicas").unwrap_or(0),
    );
    if min < 1 {
        out.push(Cause::invalid(
            "spec.minReplicas",
            &min.into(),
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        let why = "must be greater than or equal to 1";
        out.push(Cause::invalid("spec.maxReplicas", &max.into(), why));
    } else if max < min {
        let why = "must be greater than or equal to `minReplicas`";
        out.push(Cause::invalid("spec.maxReplicas", &max.into(), why));
    }
    for field in ["kind", "name"] {
        required(at(spec, "scaleTargetRef"), field, "spec.scaleTargetRef", out);
    }
}
