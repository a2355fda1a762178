//! Rows of pods and of the kinds that make them.

use super::{Layout, View, human, or, pods};
use crate::catalog::Resource;
use crate::kinds::access::{at, has, list, text};
use jiff::Timestamp;
use serde_json::Value;

const TEMPLATE: &str = "spec.template.spec.containers";

pub(super) fn layout(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        ("", "pods") => Layout {
            columns: &[
                "Name:s",
                "Ready:s",
                "Status:s",
                "Restarts:s",
                "Age:s",
                "IP:s!",
                "Node:s!",
                "Nominated Node:s!",
                "Readiness Gates:s!",
            ],
            cells: pods::cells,
        },
        ("", "podtemplates") => Layout {
            columns: &["Name:s", "Containers:s", "Images:s", "Pod Labels:s"],
            cells: pod_template,
        },
        ("apps", "deployments") => Layout {
            columns: &[
                "Name:s",
                "Ready:s",
                "Up-to-date:i",
                "Available:i",
                "Age:s",
                "Containers:s!",
                "Images:s!",
                "Selector:s!",
            ],
            cells: deployment,
        },
        ("apps", "replicasets") | ("", "replicationcontrollers") => Layout {
            columns: &[
                "Name:s",
                "Desired:i",
                "Current:i",
                "Ready:i",
                "Age:s",
                "Containers:s!",
                "Images:s!",
                "Selector:s!",
            ],
            cells: replica_set,
        },
        ("apps", "statefulsets") => Layout {
            columns: &["Name:s", "Ready:s", "Age:s", "Containers:s!", "Images:s!"],
            cells: stateful_set,
        },
        ("apps", "daemonsets") => Layout {
            columns: &[
                "Name:s",
                "Desired:i",
                "Current:i",
                "Ready:i",
                "Up-to-date:i",
                "Available:i",
                "Node Selector:s",
                "Age:s",
                "Containers:s!",
                "Images:s!",
                "Selector:s!",
            ],
            cells: daemon_set,
        },
        ("apps", "controllerrevisions") => Layout {
            columns: &["Name:s", "Controller:s", "Revision:s", "Age:s"],
            cells: revision,
        },
        ("batch", "jobs") => Layout {
            columns: &[
                "Name:s",
                "Status:s",
                "Completions:s",
                "Duration:s",
                "Age:s",
                "Containers:s!",
                "Images:s!",
                "Selector:s!",
            ],
            cells: job,
        },
        ("batch", "cronjobs") => Layout {
            columns: &[
                "Name:s",
                "Schedule:s",
                "Timezone:s",
                "Suspend:b",
                "Active:i",
                "Last Schedule:s",
                "Age:s",
                "Containers:s!",
                "Images:s!",
                "Selector:s!",
            ],
            cells: cron_job,
        },
        ("policy", "poddisruptionbudgets") => Layout {
            columns: &[
                "Name:s",
                "Min Available:s",
                "Max Unavailable:s",
                "Allowed Disruptions:i",
                "Age:s",
            ],
            cells: budget,
        },
        ("autoscaling", "horizontalpodautoscalers") => Layout {
            columns: &[
                "Name:s",
                "Reference:s",
                "Targets:s",
                "MinPods:s",
                "MaxPods:s",
                "Replicas:s",
                "Age:s",
            ],
            cells: autoscaler,
        },
        _ => return None,
    })
}

fn pod_template(v: &View<'_>) -> Vec<Value> {
    let [names, images] = v.containers("template.spec.containers");
    vec![v.name(), names, images, v.labels("template.metadata.labels")]
}

fn deployment(v: &View<'_>) -> Vec<Value> {
    let ready = format!(
        "{}/{}",
        v.number("status.readyReplicas"),
        v.number("spec.replicas")
    );
    let [names, images] = v.containers(TEMPLATE);
    let (updated, available) = (v.int("status.updatedReplicas"), v.int("status.availableReplicas"));
    vec![
        v.name(),
        ready.into(),
        updated,
        available,
        v.age(),
        names,
        images,
        v.selector("spec.selector"),
    ]
}

fn replica_set(v: &View<'_>) -> Vec<Value> {
    let [names, images] = v.containers(TEMPLATE);
    // A ReplicationController's selector is a plain map.
    let whole = has(v.object, "spec.selector.matchLabels") || has(v.object, "spec.selector.matchExpressions");
    let selector = if whole {
        v.selector("spec.selector")
    } else {
        v.labels("spec.selector")
    };
    let (desired, current, ready) = (
        v.int("spec.replicas"),
        v.int("status.replicas"),
        v.int("status.readyReplicas"),
    );
    vec![
        v.name(),
        desired,
        current,
        ready,
        v.age(),
        names,
        images,
        selector,
    ]
}

fn stateful_set(v: &View<'_>) -> Vec<Value> {
    let ready = format!(
        "{}/{}",
        v.number("status.readyReplicas"),
        v.number("spec.replicas")
    );
    let [names, images] = v.containers(TEMPLATE);
    vec![v.name(), ready.into(), v.age(), names, images]
}

fn daemon_set(v: &View<'_>) -> Vec<Value> {
    let [names, images] = v.containers(TEMPLATE);
    vec![
        v.name(),
        v.int("status.desiredNumberScheduled"),
        v.int("status.currentNumberScheduled"),
        v.int("status.numberReady"),
        v.int("status.updatedNumberScheduled"),
        v.int("status.numberAvailable"),
        v.labels("spec.template.spec.nodeSelector"),
        v.age(),
        names,
        images,
        v.selector("spec.selector"),
    ]
}

fn revision(v: &View<'_>) -> Vec<Value> {
    let controller = list(v.object, "metadata.ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true);
    let controller = controller.map(|owner| {
        let group = text(owner, "apiVersion")
            .split_once('/')
            .map_or("", |(group, _)| group);
        let kind = text(owner, "kind").to_lowercase();
        let kind = if group.is_empty() {
            kind
        } else {
            format!("{kind}.{group}")
        };
        format!("{kind}/{}", text(owner, "name"))
    });
    vec![
        v.name(),
        or(&controller.unwrap_or_default(), "<none>"),
        v.int("revision"),
        v.age(),
    ]
}

fn job(v: &View<'_>) -> Vec<Value> {
    let succeeded = v.number("status.succeeded");
    let completions = match (
        at(v.object, "spec.completions").as_i64(),
        v.number("spec.parallelism"),
    ) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        _ => format!("{succeeded}/1"),
    };
    let [names, images] = v.containers(TEMPLATE);
    let (status, took) = (job_status(v), job_duration(v));
    vec![
        v.name(),
        status.into(),
        completions.into(),
        took.into(),
        v.age(),
        names,
        images,
        v.selector("spec.selector"),
    ]
}

fn job_duration(v: &View<'_>) -> String {
    let time = |path: &str| text(v.object, path).parse::<Timestamp>().ok();
    let start = time("status.startTime");
    let end = time("status.completionTime").unwrap_or(v.now);
    start
        .map(|start| human(end.duration_since(start)))
        .unwrap_or_default()
}

fn job_status(v: &View<'_>) -> &'static str {
    let terminating = has(v.object, "metadata.deletionTimestamp");
    let conditions = [
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("", "Terminating"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ];
    let holds = |kind: &str| {
        if kind.is_empty() {
            terminating
        } else {
            v.has_condition(kind)
        }
    };
    conditions
        .into_iter()
        .find(|(kind, _)| holds(kind))
        .map_or("Running", |(_, shown)| shown)
}

fn cron_job(v: &View<'_>) -> Vec<Value> {
    let last = if has(v.object, "status.lastScheduleTime") {
        v.since("status.lastScheduleTime").into()
    } else {
        Value::from("<none>")
    };
    let suspend = at(v.object, "spec.suspend").as_bool();
    let suspend = suspend.map_or("<unset>", |suspend| if suspend { "True" } else { "False" });
    let [names, images] = v.containers("spec.jobTemplate.spec.template.spec.containers");
    vec![
        v.name(),
        v.text("spec.schedule"),
        v.text_or("spec.timeZone", "<none>"),
        suspend.into(),
        v.count("status.active"),
        last,
        v.age(),
        names,
        images,
        v.selector("spec.jobTemplate.spec.selector"),
    ]
}

fn budget(v: &View<'_>) -> Vec<Value> {
    let amount = |path: &str| match at(v.object, path) {
        Value::Null => "N/A".to_owned(),
        Value::String(percent) => percent.clone(),
        number => number.to_string(),
    };
    let (min, max) = (amount("spec.minAvailable"), amount("spec.maxUnavailable"));
    vec![
        v.name(),
        min.into(),
        max.into(),
        v.int("status.disruptionsAllowed"),
        v.age(),
    ]
}

fn autoscaler(v: &View<'_>) -> Vec<Value> {
    let target = at(v.object, "spec.scaleTargetRef");
    let reference = format!("{}/{}", text(target, "kind"), text(target, "name"));
    let min = at(v.object, "spec.minReplicas")
        .as_i64()
        .map_or("<unset>".into(), |min| min.to_string());
    let (max, current) = (v.int("spec.maxReplicas"), v.int("status.currentReplicas"));
    vec![
        v.name(),
        reference.into(),
        metrics(v.object).into(),
        min.into(),
        max,
        current,
        v.age(),
    ]
}

/// `cpu: 12%/80%, …`: two metrics, then how many more.
fn metrics(autoscaler: &Value) -> String {
    let specs = list(autoscaler, "spec.metrics");
    let current = list(autoscaler, "status.currentMetrics");
    let shown: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, current.get(index)))
        .collect();
    match shown.len() {
        0 => match at(autoscaler, "spec.targetCPUUtilizationPercentage").as_i64() {
            Some(target) => {
                let now = at(autoscaler, "status.currentCPUUtilizationPercentage").as_i64();
                format!(
                    "cpu: {}/{target}%",
                    now.map_or("<unknown>".into(), |now| format!("{now}%"))
                )
            }
            None => "<none>".into(),
        },
        1..=2 => shown.join(", "),
        many => format!("{} + {} more...", shown[..2].join(", "), many - 2),
    }
}

fn metric(spec: &Value, current: Option<&Value>) -> String {
    let kind = text(spec, "type");
    let field = match kind {
        "ContainerResource" => "containerResource".to_owned(),
        kind => kind.to_lowercase(),
    };
    let (spec, current) = (
        at(spec, &field),
        current.map_or(&Value::Null, |current| at(current, &field)),
    );
    let percent = |value: &Value| value.as_i64().map(|percent| format!("{percent}%"));
    let amount = |value: &Value, suffix: &str| value.as_str().map(|value| format!("{value}{suffix}"));
    let average = if matches!(kind, "Object" | "External") {
        " (avg)"
    } else {
        ""
    };
    let pick = |value: &Value| {
        percent(at(value, "averageUtilization"))
            .or_else(|| amount(at(value, "averageValue"), average))
            .or_else(|| amount(at(value, "value"), ""))
    };
    let target = pick(at(spec, "target")).unwrap_or_else(|| "<auto>".into());
    let now = pick(at(current, "current")).unwrap_or_else(|| "<unknown>".into());
    let name = text(spec, "name");
    if name.is_empty() {
        format!("{now}/{target}")
    } else {
        format!("{name}: {now}/{target}")
    }
}
