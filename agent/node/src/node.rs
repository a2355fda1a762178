//! The Node object and its status, as upstream's kubelet fills them. Pure: time and observations are passed in.

use crate::machine::{Machine, Pressure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The Kubernetes version whose kubelet this agent stands in for, with our own behind the plus sign.
pub const VERSION: &str = concat!("v1.36.2+skep.", env!("CARGO_PKG_VERSION"));
/// Most pods on a node (upstream's default).
const MOST_PODS: i64 = 110;
/// Under this many free bytes memory is short (upstream's default eviction threshold).
const MEMORY_SHORT: i64 = 100 << 20;
/// Under this many per cent the process identifiers are short, and the disk where nothing else is set (upstream's
/// default eviction threshold `nodefs.available`).
pub const SHARE_SHORT: u8 = 10;

/// What the status is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its addresses, the primary one first.
    pub ips: &'a [IpAddr],
    /// The machine.
    pub machine: &'a Machine,
    /// The runtime as `containerd://1.6.20`.
    pub runtime: &'a str,
    /// Port of the kubelet API.
    pub port: u16,
    /// Under this many per cent free the disk is short.
    pub disk_short: u8,
}

/// Why the node is not ready; empty when it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is missing, for people.
    pub problems: Vec<String>,
}

fn labels(facts: &Facts) -> BTreeMap<String, String> {
    let list = [
        ("kubernetes.io/hostname", facts.name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", &facts.machine.arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", &facts.machine.arch),
    ];
    list.into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The object to register.
#[must_use]
pub fn object(facts: &Facts) -> Node {
    let ips: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
    let annotations = [("alpha.kubernetes.io/provided-node-ip".to_owned(), ips.join(","))];
    Node {
        metadata: ObjectMeta {
            name: Some(facts.name.to_owned()),
            labels: Some(labels(facts)),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

/// The status.
#[must_use]
pub fn status(
    facts: &Facts,
    health: &Health,
    pressure: Pressure,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let machine = facts.machine;
    let resources: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.disk / 1024)),
        ("pods", MOST_PODS.to_string()),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    let mut conditions = conditions(health, pressure, facts.disk_short);
    for condition in &mut conditions {
        stamp(condition, old, now);
    }
    // Conditions of others (a cloud's, a problem detector's) stay.
    let ours: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    let others = old.and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.extend(others.into_iter().filter(|c| !ours.contains(&c.type_)));
    NodeStatus {
        addresses: Some(addresses(facts)),
        allocatable: Some(resources.clone()),
        capacity: Some(resources),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(facts.port),
            }),
        }),
        node_info: Some(info(facts)),
        ..NodeStatus::default()
    }
}

fn addresses(facts: &Facts) -> Vec<NodeAddress> {
    let ips = facts.ips.iter().map(|ip| ("InternalIP", ip.to_string()));
    let list = ips.chain([("Hostname", facts.name.to_owned())]);
    list.map(|(type_, address)| NodeAddress {
        type_: type_.to_owned(),
        address,
    })
    .collect()
}

fn info(facts: &Facts) -> NodeSystemInfo {
    let machine = facts.machine;
    NodeSystemInfo {
        architecture: machine.arch.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: facts.runtime.to_owned(),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

fn conditions(health: &Health, pressure: Pressure, disk_short: u8) -> Vec<NodeCondition> {
    let short = |type_: &str, short: bool, good: &str, bad: &str, what: &str| {
        let (status, reason) = if short { ("True", bad) } else { ("False", good) };
        let has = if short {
            "has insufficient"
        } else {
            "has sufficient"
        };
        condition(type_, status, reason, &format!("kubelet {has} {what} available"))
    };
    let ready = match health.problems.is_empty() {
        true => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        false => condition("Ready", "False", "KubeletNotReady", &health.problems.join("; ")),
    };
    vec![
        short(
            "MemoryPressure",
            pressure.memory_available < MEMORY_SHORT,
            "KubeletHasSufficientMemory",
            "KubeletHasInsufficientMemory",
            "memory",
        ),
        short(
            "DiskPressure",
            pressure.disk_free < i64::from(disk_short),
            "KubeletHasNoDiskPressure",
            "KubeletHasDiskPressure",
            "disk",
        ),
        short(
            "PIDPressure",
            pressure.pids_free < i64::from(SHARE_SHORT),
            "KubeletHasSufficientPID",
            "KubeletHasInsufficientPID",
            "PID",
        ),
        condition(
            "NetworkUnavailable",
            "False",
            "RouteCreated",
            "the node's pod network is set up by its agent",
        ),
        ready,
    ]
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> NodeCondition {
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..NodeCondition::default()
    }
}

fn stamp(condition: &mut NodeCondition, old: Option<&NodeStatus>, now: Timestamp) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let before = old.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == condition.type_));
    let same = before.filter(|c| c.status == condition.status);
    condition.last_transition_time = same
        .and_then(|c| c.last_transition_time.clone())
        .or(Some(now.clone()));
    condition.last_heartbeat_time = Some(now);
}

/// Whether two statuses differ in more than their heartbeat times.
#[must_use]
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |s: &NodeStatus| {
        let mut s = s.clone();
        for condition in s.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        s
    };
    quiet(a) != quiet(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(health: &Health, old: Option<&NodeStatus>, second: i64) -> NodeStatus {
        let machine = Machine {
            cpus: 2,
            memory: 4 << 30,
            arch: "amd64".into(),
            ..Machine::default()
        };
        let ips = ["10.89.0.11".parse().unwrap()];
        let facts = Facts {
            name: "n1",
            ips: &ips,
            machine: &machine,
            runtime: "containerd://1.6.20",
            port: 10250,
            disk_short: SHARE_SHORT,
        };
        let plenty = Pressure {
            memory_available: 1 << 30,
            disk_free: 50,
            pids_free: 50,
        };
        status(
            &facts,
            health,
            plenty,
            old,
            Timestamp::from_second(second).unwrap(),
        )
    }

    fn ready(status: &NodeStatus) -> NodeCondition {
        status
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .find(|c| c.type_ == "Ready")
            .unwrap()
            .clone()
    }

    #[test]
    fn a_healthy_node_is_ready_and_names_its_addresses_and_capacity() {
        let status = make(&Health::default(), None, 10);
        assert_eq!(ready(&status).status, "True");
        assert_eq!(status.capacity.as_ref().unwrap()["memory"].0, "4194304Ki");
        let addresses: Vec<String> = status.addresses.unwrap().into_iter().map(|a| a.type_).collect();
        assert_eq!(addresses, ["InternalIP", "Hostname"]);
    }

    #[test]
    fn an_unhealthy_node_says_what_is_missing() {
        let status = make(
            &Health {
                problems: vec!["runtime is down".into()],
            },
            None,
            10,
        );
        assert_eq!(ready(&status).message.as_deref(), Some("runtime is down"));
        assert_eq!(ready(&status).status, "False");
    }

    #[test]
    fn transitions_are_stamped_only_when_the_status_changes_and_heartbeats_always() {
        let first = make(&Health::default(), None, 10);
        let second = make(&Health::default(), Some(&first), 20);
        assert_eq!(
            ready(&second).last_transition_time,
            ready(&first).last_transition_time
        );
        assert_ne!(
            ready(&second).last_heartbeat_time,
            ready(&first).last_heartbeat_time
        );
        assert!(!differs(&first, &second));
        let third = make(
            &Health {
                problems: vec!["x".into()],
            },
            Some(&second),
            30,
        );
        assert_ne!(
            ready(&third).last_transition_time,
            ready(&first).last_transition_time
        );
        assert!(differs(&second, &third));
    }
}
