//! Requests and limits as the kernel's numbers, and the quality-of-service class they give a pod.
//!
//! The formulas are those of upstream's kubelet (`cpu.shares` = milli-cores × 1024 / 1000, quota over a 100 ms period).

use crate::model::{Member, PodModel, Role};
use crate::quantity::{milli, units};
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// CFS period in microseconds.
pub const CPU_PERIOD: i64 = 100_000;
/// Smallest quota the kernel takes, in microseconds.
const LEAST_QUOTA: i64 = 1000;
/// Smallest and largest `cpu.shares`.
const SHARES: (i64, i64) = (2, 262_144);

/// A pod's quality-of-service class.
pub const GUARANTEED: &str = "Guaranteed";
/// A pod's quality-of-service class.
pub const BURSTABLE: &str = "Burstable";
/// A pod's quality-of-service class.
pub const BEST_EFFORT: &str = "BestEffort";

/// Limits in kernel units; zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `cpu.shares` (2…262144).
    pub cpu_shares: i64,
    /// CFS quota in microseconds per [`CPU_PERIOD`].
    pub cpu_quota: i64,
    /// Bytes.
    pub memory: i64,
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str, read: fn(&Quantity) -> Option<i64>) -> i64 {
    list.and_then(|l| l.get(name)).and_then(read).unwrap_or(0)
}

/// A container's CPU request in milli-cores; the limit stands in for a missing request.
fn cpu_request(r: &ResourceRequirements) -> i64 {
    let asked = r.requests.as_ref().filter(|l| l.contains_key("cpu"));
    amount(asked.or(r.limits.as_ref()), "cpu", milli)
}

fn memory_request(r: &ResourceRequirements) -> i64 {
    let asked = r.requests.as_ref().filter(|l| l.contains_key("memory"));
    amount(asked.or(r.limits.as_ref()), "memory", units)
}

fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(SHARES.0, SHARES.1)
}

fn quota(milli: i64) -> i64 {
    if milli == 0 {
        0
    } else {
        (milli * CPU_PERIOD / 1000).max(LEAST_QUOTA)
    }
}

/// A container's limits.
#[must_use]
pub fn container(c: &Container) -> Limits {
    let empty = ResourceRequirements::default();
    let r = c.resources.as_ref().unwrap_or(&empty);
    let limits = r.limits.as_ref();
    Limits {
        cpu_shares: shares(cpu_request(r)),
        cpu_quota: quota(amount(limits, "cpu", milli)),
        memory: amount(limits, "memory", units),
    }
}

/// A pod's limits: the sum over what runs at the same time, or the largest init container; a limit holds for the
/// pod only when every container has one.
#[must_use]
pub fn pod(model: &PodModel) -> Limits {
    let empty = ResourceRequirements::default();
    let of = |m: &Member| m.spec.resources.clone().unwrap_or_else(|| empty.clone());
    let combine = |read: &dyn Fn(&ResourceRequirements) -> i64| {
        let at_once: i64 = together(model).map(|m| read(&of(m))).sum();
        let sidecars: i64 = model.with_role(Role::Sidecar).map(|m| read(&of(m))).sum();
        let init = model
            .with_role(Role::Init)
            .map(|m| read(&of(m)) + sidecars)
            .max()
            .unwrap_or(0);
        at_once.max(init)
    };
    let limited = |name: &str, read: fn(&Quantity) -> Option<i64>| {
        let all = together(model).all(|m| amount(of(m).limits.as_ref(), name, read) > 0);
        if all {
            combine(&|r| amount(r.limits.as_ref(), name, read))
        } else {
            0
        }
    };
    Limits {
        cpu_shares: shares(combine(&cpu_request)),
        cpu_quota: quota(limited("cpu", milli)),
        memory: limited("memory", units),
    }
}

fn together(model: &PodModel) -> impl Iterator<Item = &Member> {
    model
        .members
        .iter()
        .filter(|m| matches!(m.role, Role::Regular | Role::Sidecar))
}

/// The quality-of-service class (Kubernetes documentation, "Pod Quality of Service Classes").
#[must_use]
pub fn qos(spec: &PodSpec) -> &'static str {
    let all: Vec<&Container> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .collect();
    let positive = |list: Option<&BTreeMap<String, Quantity>>, name| amount(list, name, milli) > 0;
    let any = all.iter().filter_map(|c| c.resources.as_ref()).any(|r| {
        ["cpu", "memory"]
            .iter()
            .any(|n| positive(r.requests.as_ref(), n) || positive(r.limits.as_ref(), n))
    });
    let exact = all.iter().all(|c| {
        let r = c.resources.as_ref();
        ["cpu", "memory"].iter().all(|name| {
            let limit = amount(r.and_then(|r| r.limits.as_ref()), name, milli);
            let request = amount(r.and_then(|r| r.requests.as_ref()), name, milli);
            limit > 0 && (request == limit || request == 0)
        })
    });
    match (any, exact) {
        (false, _) => BEST_EFFORT,
        (true, true) => GUARANTEED,
        (true, false) => BURSTABLE,
    }
}

/// The cgroup folder of a class below `kubepods`; guaranteed pods have none of their own.
#[must_use]
pub fn qos_folder(qos: &str) -> Option<&'static str> {
    match qos {
        BURSTABLE => Some("burstable"),
        BEST_EFFORT => Some("besteffort"),
        _ => None,
    }
}

/// `oom_score_adj` of a container on a node with `node_memory` bytes: less memory asked for, sooner killed.
#[must_use]
pub fn oom_score(spec: &PodSpec, container: &Container, node_memory: i64) -> i64 {
    match qos(spec) {
        GUARANTEED => -997,
        BEST_EFFORT => 1000,
        _ => {
            let empty = ResourceRequirements::default();
            let request = memory_request(container.resources.as_ref().unwrap_or(&empty));
            let score = 1000 - 1000_i64.saturating_mul(request) / node_memory.max(1);
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod as make;
    use serde_json::json;

    #[test]
    fn requests_become_shares_and_limits_become_quota_and_bytes() {
        let pod = make(json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "250m"}, "limits": {"cpu": "1500m", "memory": "64Mi"}}}]}));
        let expected = Limits {
            cpu_shares: 256,
            cpu_quota: 150_000,
            memory: 64 << 20,
        };
        assert_eq!(container(&pod.members[0].spec), expected);
    }

    #[test]
    fn a_container_without_resources_has_the_least_shares_and_no_limits() {
        let expected = Limits {
            cpu_shares: 2,
            cpu_quota: 0,
            memory: 0,
        };
        assert_eq!(container(&Container::default()), expected);
    }

    #[test]
    fn a_pod_is_limited_only_when_all_its_containers_are() {
        let limits = json!({"limits": {"memory": "10Mi", "cpu": "1"}});
        let both = make(json!({"containers": [
            {"name": "a", "resources": limits}, {"name": "b", "resources": limits}]}));
        assert_eq!(
            pod(&both),
            Limits {
                cpu_shares: 2048,
                cpu_quota: 200_000,
                memory: 20 << 20
            }
        );
        let one = make(json!({"containers": [{"name": "a", "resources": limits}, {"name": "b"}]}));
        assert_eq!(
            pod(&one),
            Limits {
                cpu_shares: 1024,
                cpu_quota: 0,
                memory: 0
            }
        );
    }

    #[test]
    fn a_large_init_container_sets_the_pods_limits() {
        let pod_ = make(json!({
            "initContainers": [{"name": "i", "resources": {"limits": {"memory": "90Mi"}}}],
            "containers": [{"name": "a", "resources": {"limits": {"memory": "10Mi"}}}]}));
        assert_eq!(pod(&pod_).memory, 90 << 20);
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let class =
            |resources| qos(make(json!({"containers": [{"name": "a", "resources": resources}]})).spec());
        assert_eq!(class(json!({})), BEST_EFFORT);
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), BURSTABLE);
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})),
            GUARANTEED
        );
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}})),
            GUARANTEED
        );
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})),
            BURSTABLE
        );
    }

    #[test]
    fn oom_scores_order_the_classes() {
        let score = |resources| {
            let pod = make(json!({"containers": [{"name": "a", "resources": resources}]}));
            oom_score(pod.spec(), &pod.members[0].spec, 4 << 30)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"requests": {"memory": "1Gi"}})), 750);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), -997);
    }
}
