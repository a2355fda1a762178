use super::*;
use crate::catalog::catalog;
use serde_json::json;
use std::sync::Arc;

fn resource(group: &str, version: &str, plural: &str) -> Arc<Resource> {
    catalog().lookup(group, version, plural).unwrap()
}

#[test]
fn an_event_reads_the_same_through_both_groups() {
    let (core, new) = (
        resource("", "v1", "events"),
        resource("events.k8s.io", "v1", "events"),
    );
    let original = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Started", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p"}, "message": "hello", "source": {"component": "kubelet"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 3,
        "eventTime": null, "reportingComponent": "kubelet", "reportingInstance": "n1"});
    let mut event = original.clone();
    convert(&core, &new, &mut event);
    assert_eq!(event["apiVersion"], "events.k8s.io/v1");
    assert_eq!(
        (
            &event["note"],
            &event["regarding"]["name"],
            &event["deprecatedCount"]
        ),
        (&json!("hello"), &json!("p"), &json!(3))
    );
    assert_eq!(event.get("message"), None);
    convert(&new, &core, &mut event);
    assert_eq!(event, original);
}

#[test]
fn an_autoscaler_with_other_metrics_survives_version_1() {
    let (v1, v2) = (
        resource("autoscaling", "v1", "horizontalpodautoscalers"),
        resource("autoscaling", "v2", "horizontalpodautoscalers"),
    );
    let metrics = json!([
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
        {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
        {"type": "Pods", "pods": {"metric": {"name": "rps", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "10"}}},
        {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "q"}, "target": {"type": "Value", "value": "5"}}},
        {"type": "External", "external": {"metric": {"name": "x"}, "target": {"type": "Value", "value": "7"}}}]);
    let original = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, "metrics": metrics,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
        "status": {"desiredReplicas": 1, "currentMetrics": null, "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": null}]}});
    let mut autoscaler = original.clone();
    convert(&v2, &v1, &mut autoscaler);
    assert_eq!(autoscaler["spec"]["targetCPUUtilizationPercentage"], 80);
    assert_eq!(autoscaler["spec"].get("metrics"), None);
    let note = autoscaler["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"]
        .as_str()
        .unwrap();
    let note: Value = serde_json::from_str(note).unwrap();
    assert_eq!(
        note[0],
        json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}})
    );
    assert_eq!(note[2]["object"]["target"]["kind"], "Service");
    convert(&v1, &v2, &mut autoscaler);
    assert_eq!(autoscaler["spec"], original["spec"]);
    assert_eq!(autoscaler["status"], original["status"]);
}

#[test]
fn versions_that_differ_in_name_only_change_their_name() {
    let pods = resource("", "v1", "pods");
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"x": null}});
    let before = pod.clone();
    convert(&pods, &pods, &mut pod);
    assert_eq!(pod, before);
}
