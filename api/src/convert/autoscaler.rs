//! `HorizontalPodAutoscaler` v1 knows one metric, the CPU use. What else v2 has travels in annotations, in the shape
//! that the published server gives them.

use serde_json::{Map, Value, json};

use super::rename;

const CPU_TARGET: &str = "targetCPUUtilizationPercentage";
const CPU_CURRENT: &str = "currentCPUUtilizationPercentage";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Which side of a metric: what is wanted (`target`) or what was measured (`current`).
#[derive(Clone, Copy)]
enum Side {
    Target,
    Current,
}

impl Side {
    fn field(self) -> &'static str {
        match self {
            Side::Target => "target",
            Side::Current => "current",
        }
    }

    /// v1 joins the side and the kind of amount in one name (`targetAverageValue`).
    fn flat(self, amount: &str) -> String {
        let (first, rest) = amount.split_at(1);
        format!("{}{}{rest}", self.field(), first.to_uppercase())
    }
}

const AMOUNTS: &[&str] = &["value", "averageValue", "averageUtilization"];

pub(super) fn to_v1(object: &mut Map<String, Value>) {
    let mut notes = Vec::new();
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        let mut metrics = take_list(spec, "metrics");
        if let Some(place) = metrics.iter().position(|m| is_cpu(m, Side::Target)) {
            let cpu = metrics.remove(place);
            spec.insert(
                CPU_TARGET.into(),
                cpu["resource"]["target"]["averageUtilization"].clone(),
            );
        }
        notes.push((METRICS, flat_list(metrics, Side::Target)));
        notes.push((BEHAVIOR, spec.shift_remove("behavior").unwrap_or_default()));
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        let metrics = take_list(status, "currentMetrics");
        if let Some(cpu) = metrics.iter().find(|m| is_cpu(m, Side::Current)) {
            status.insert(
                CPU_CURRENT.into(),
                cpu["resource"]["current"]["averageUtilization"].clone(),
            );
        }
        notes.push((CURRENT_METRICS, flat_list(metrics, Side::Current)));
        notes.push((CONDITIONS, status.shift_remove("conditions").unwrap_or_default()));
    }
    for (name, value) in notes
        .into_iter()
        .filter(|(_, value)| !crate::fields::is_zero(value))
    {
        annotations(object).insert(name.to_owned(), value.to_string().into());
    }
}

pub(super) fn to_v2(object: &mut Map<String, Value>) {
    let mut note = |name: &str| -> Option<Value> {
        let annotations = object
            .get_mut("metadata")?
            .get_mut("annotations")?
            .as_object_mut()?;
        serde_json::from_str(annotations.shift_remove(name)?.as_str()?).ok()
    };
    let (metrics, behavior) = (note(METRICS), note(BEHAVIOR));
    let (current, conditions) = (note(CURRENT_METRICS), note(CONDITIONS));
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        let cpu = spec
            .shift_remove(CPU_TARGET)
            .filter(|v| !v.is_null())
            .map(|percent| cpu_target(&percent));
        let rest = deep_list(metrics, Side::Target);
        let all: Vec<Value> = cpu.into_iter().chain(rest).collect();
        if !all.is_empty() {
            spec.insert("metrics".into(), all.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        let cpu = status.shift_remove(CPU_CURRENT).filter(|v| !v.is_null());
        let mut all = deep_list(current, Side::Current);
        if let (Some(percent), false) = (cpu, all.iter().any(|m| is_cpu(m, Side::Current))) {
            all.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
        }
        if !all.is_empty() {
            status.insert("currentMetrics".into(), all.into());
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".into(), conditions);
        }
    }
}

fn cpu_target(percent: &Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn take_list(object: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match object.shift_remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn annotations(object: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let metadata = as_object(object.entry("metadata").or_insert(Value::Null));
    as_object(metadata.entry("annotations").or_insert(Value::Null))
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

fn is_cpu(metric: &Value, side: Side) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource"
        && resource["name"] == "cpu"
        && !resource[side.field()]["averageUtilization"].is_null()
}

/// The source of a metric stands under a field named for its type (`ContainerResource` → `containerResource`).
fn source(metric: &mut Value) -> Option<(&'static str, &mut Map<String, Value>)> {
    const SOURCES: &[&str] = &["object", "pods", "resource", "containerResource", "external"];
    let name = SOURCES.iter().find(|name| metric[**name].is_object())?;
    Some((name, metric[*name].as_object_mut()?))
}

fn flat_list(metrics: Vec<Value>, side: Side) -> Value {
    let flat = |mut metric: Value| {
        if let Some((name, source)) = source(&mut metric) {
            flatten(name, source, side);
        }
        metric
    };
    metrics.into_iter().map(flat).collect()
}

/// The name of an amount in v1: an `object` metric's average has no side in its name.
fn flat_name(source: &str, amount: &str, side: Side) -> String {
    match (source, amount) {
        ("object", "averageValue") => amount.to_owned(),
        _ => side.flat(amount),
    }
}

fn flatten(name: &str, source: &mut Map<String, Value>, side: Side) {
    if name == "object" {
        rename(source, "describedObject", "@target");
    }
    if let Some(Value::Object(amounts)) = source.shift_remove(side.field()) {
        for (amount, value) in amounts
            .into_iter()
            .filter(|(amount, _)| AMOUNTS.contains(&amount.as_str()))
        {
            source.insert(flat_name(name, &amount, side), value);
        }
    }
    rename(source, "@target", "target");
    if let Some(Value::Object(metric)) = source.shift_remove("metric") {
        let selector = if name == "external" {
            "metricSelector"
        } else {
            "selector"
        };
        for (from, to) in [("name", "metricName"), ("selector", selector)] {
            if let Some(value) = metric.get(from) {
                source.insert(to.to_owned(), value.clone());
            }
        }
    }
}

fn deep_list(metrics: Option<Value>, side: Side) -> Vec<Value> {
    let Some(Value::Array(mut metrics)) = metrics else {
        return Vec::new();
    };
    for metric in &mut metrics {
        if let Some((name, source)) = source(metric) {
            deepen(name, source, side);
        }
    }
    metrics
}

fn deepen(name: &str, source: &mut Map<String, Value>, side: Side) {
    if name == "object" {
        rename(source, "target", "describedObject");
    }
    let mut amounts = Map::new();
    for amount in AMOUNTS {
        if let Some(value) = source.shift_remove(&flat_name(name, amount, side)) {
            amounts.insert((*amount).to_owned(), value);
        }
    }
    if let Side::Target = side {
        amounts.insert("type".to_owned(), target_type(&amounts).into());
    }
    source.insert(side.field().to_owned(), Value::Object(amounts));
    if let Some(metric_name) = source.shift_remove("metricName") {
        let mut metric = Map::from_iter([("name".to_owned(), metric_name)]);
        let selector = if name == "external" {
            "metricSelector"
        } else {
            "selector"
        };
        if let Some(selector) = source.shift_remove(selector) {
            metric.insert("selector".to_owned(), selector);
        }
        source.insert("metric".to_owned(), Value::Object(metric));
    }
}

fn target_type(amounts: &Map<String, Value>) -> &'static str {
    if amounts.contains_key("averageUtilization") {
        "Utilization"
    } else if amounts.contains_key("averageValue") {
        "AverageValue"
    } else {
        "Value"
    }
}
