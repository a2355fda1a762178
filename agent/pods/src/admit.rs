//! What a node refuses although the pod is bound to it: who binds a pod past the scheduler has not looked.

use crate::memory::Verdict;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

/// Why this node does not run a new pod beside those it has, if it does not. A pod that was begun is never refused.
#[must_use]
pub fn refusal<'a>(pod: &Pod, others: impl IntoIterator<Item = &'a Pod>) -> Option<Verdict> {
    let status = pod.status.as_ref();
    if status.is_some_and(|s| s.start_time.is_some()) || host_ports(pod).next().is_none() {
        return None;
    }
    let others = others.into_iter().filter(|other| !is_over(other));
    let mut taken = others.flat_map(host_ports);
    let clash = taken.any(|one| host_ports(pod).any(|other| clashes(one, other)));
    clash.then(|| Verdict {
        reason: "NodePorts",
        message: "Pod was rejected: Predicate NodePorts failed: a pod of this node has the same host port"
            .to_owned(),
    })
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter(|port| port.host_port.is_some_and(|number| number > 0))
}

/// Whether two host ports cannot be had at the same time: an address of all takes the port at each.
fn clashes(one: &ContainerPort, other: &ContainerPort) -> bool {
    let ip = |port: &ContainerPort| port.host_ip.clone().unwrap_or_default();
    let all = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    let protocol = |port: &ContainerPort| port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let (a, b) = (ip(one), ip(other));
    one.host_port == other.host_port && protocol(one) == protocol(other) && (a == b || all(&a) || all(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(port: &Value, status: &Value) -> Pod {
        let spec = json!({"containers": [{"name": "a", "ports": [port]}]});
        serde_json::from_value(json!({"spec": spec, "status": status})).unwrap()
    }

    fn port(number: i32, protocol: &str, ip: &str) -> Value {
        json!({"containerPort": 80, "hostPort": number, "protocol": protocol, "hostIP": ip})
    }

    #[test]
    fn a_host_port_that_a_pod_of_the_node_has_refuses_the_next() {
        let new = pod(&port(99, "TCP", "192.0.2.1"), &json!({}));
        let refused = |other: Value| refusal(&new, [&pod(&other, &json!({"phase": "Running"}))]).is_some();
        assert!(refused(port(99, "TCP", "192.0.2.1")));
        assert!(refused(port(99, "TCP", "")) && refused(port(99, "TCP", "0.0.0.0")));
        assert!(!refused(port(99, "TCP", "192.0.2.2")));
        assert!(!refused(port(99, "UDP", "")) && !refused(port(98, "TCP", "")));
        assert!(!refused(json!({"containerPort": 99})));
    }

    #[test]
    fn what_is_over_takes_no_port_and_what_was_begun_is_not_refused() {
        let taken = port(99, "TCP", "");
        let over = pod(&taken, &json!({"phase": "Succeeded"}));
        assert_eq!(refusal(&pod(&taken, &json!({})), [&over]), None);
        let runs = pod(&taken, &json!({"phase": "Running"}));
        let begun = pod(&taken, &json!({"startTime": "2026-01-01T00:00:00Z"}));
        assert_eq!(refusal(&begun, [&runs]), None);
    }
}
