//! `/stats/summary` and `/metrics/resource`: what pods and their containers use, from the runtime.

use agent_cri::Runtime;
use agent_pods::names::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use jiff::Timestamp;
use k8s_cri::v1::{ContainerStats, UInt64Value};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

fn label<'a>(stats: &'a ContainerStats, name: &str) -> &'a str {
    let attributes = stats.attributes.as_ref();
    attributes
        .and_then(|a| a.labels.get(name))
        .map_or("", String::as_str)
}

fn value(number: &Option<UInt64Value>) -> u64 {
    number.as_ref().map_or(0, |v| v.value)
}

fn cpu(stats: &ContainerStats) -> (u64, u64) {
    let cpu = stats.cpu.unwrap_or_default();
    (value(&cpu.usage_nano_cores), value(&cpu.usage_core_nano_seconds))
}

fn working_set(stats: &ContainerStats) -> u64 {
    value(&stats.memory.unwrap_or_default().working_set_bytes)
}

/// The summary API's document.
#[must_use]
pub fn summary(node: &str, stats: &[ContainerStats], now: Timestamp) -> Value {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut pods: BTreeMap<&str, Vec<&ContainerStats>> = BTreeMap::new();
    for one in stats {
        pods.entry(label(one, LABEL_POD_UID)).or_default().push(one);
    }
    let usage = |all: &[&ContainerStats]| {
        let (cores, total) = all
            .iter()
            .map(|s| cpu(s))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let memory: u64 = all.iter().map(|s| working_set(s)).sum();
        (
            json!({"time": time, "usageNanoCores": cores, "usageCoreNanoSeconds": total}),
            json!({"time": time, "workingSetBytes": memory}),
        )
    };
    let pod = |(uid, containers): (&&str, &Vec<&ContainerStats>)| {
        let (cpu, memory) = usage(containers);
        let first = containers[0];
        let each = containers.iter().map(|c| {
            let (cpu, memory) = usage(&[c]);
            json!({"name": label(c, LABEL_CONTAINER_NAME), "startTime": time, "cpu": cpu, "memory": memory})
        });
        json!({
            "podRef": {"name": label(first, LABEL_POD_NAME), "namespace": label(first, LABEL_POD_NAMESPACE), "uid": uid},
            "startTime": time, "containers": each.collect::<Vec<_>>(), "cpu": cpu, "memory": memory})
    };
    let all: Vec<&ContainerStats> = stats.iter().collect();
    let (cpu, memory) = usage(&all);
    let pods: Vec<Value> = pods.iter().map(pod).collect();
    json!({"node": {"nodeName": node, "startTime": time, "cpu": cpu, "memory": memory}, "pods": pods})
}

/// The resource metrics in the text format.
#[must_use]
pub fn resource_metrics(stats: &[ContainerStats]) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, read: &dyn Fn(&ContainerStats) -> f64| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for one in stats {
            let (container, pod) = (label(one, LABEL_CONTAINER_NAME), label(one, LABEL_POD_NAME));
            let namespace = label(one, LABEL_POD_NAMESPACE);
            let labels = format!("container={container:?},namespace={namespace:?},pod={pod:?}");
            let _ = writeln!(out, "{name}{{{labels}}} {}", read(one));
        }
    };
    family("container_cpu_usage_seconds_total", "counter", &|s| {
        cpu(s).1 as f64 / 1e9
    });
    family("container_memory_working_set_bytes", "gauge", &|s| {
        working_set(s) as f64
    });
    out
}

/// What all containers use.
///
/// # Errors
/// [`agent_cri::RuntimeError`]
pub async fn read(runtime: &Runtime) -> Result<Vec<ContainerStats>, agent_cri::RuntimeError> {
    runtime.stats(None).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{ContainerAttributes, CpuUsage};

    #[test]
    fn containers_are_summed_by_pod() {
        let labels = [
            (LABEL_POD_UID, "u"),
            (LABEL_POD_NAME, "p"),
            (LABEL_CONTAINER_NAME, "c"),
        ];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let one = ContainerStats {
            attributes: Some(ContainerAttributes {
                labels,
                ..ContainerAttributes::default()
            }),
            cpu: Some(CpuUsage {
                usage_core_nano_seconds: Some(UInt64Value { value: 5 }),
                ..CpuUsage::default()
            }),
            ..ContainerStats::default()
        };
        let got = summary("n", &[one.clone(), one.clone()], Timestamp::UNIX_EPOCH);
        assert_eq!(got["pods"][0]["cpu"]["usageCoreNanoSeconds"], 10);
        assert_eq!(got["pods"][0]["podRef"]["name"], "p");
        assert!(resource_metrics(&[one]).contains("container_cpu_usage_seconds_total{container=\"c\""));
    }
}
