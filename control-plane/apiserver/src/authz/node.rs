//! The node authorizer: a kubelet reads what it needs to run its pods and writes what is its own.
//! <https://kubernetes.io/docs/reference/access-authn-authz/node/>
//!
//! One difference: the agent is also the node's service proxy and router, so that it has, besides the kubelet's rights,
//! those that upstream gives `system:node-proxier` (all nodes, services, endpoints; namespaces and policies too).

use control_plane_store::Store;
use serde_json::Value;

use super::Attributes;
use super::graph::{Graph, Kind};

/// Whether the node may do this.
pub(super) fn allows(store: &Store, graph: &Graph, node: &str, asked: &Attributes<'_>) -> bool {
    let read = matches!(asked.verb, "get" | "list" | "watch");
    let change = matches!(asked.verb, "update" | "patch");
    let create = asked.verb == "create";
    let own = asked.name.is_empty() || asked.name == node;
    let uses = |kind| !asked.name.is_empty() && graph.uses(store, node, kind, asked.namespace, asked.name);
    let runs = || !asked.name.is_empty() && home(store, asked).as_deref() == Some(node);
    // Of a pod that is gone the kubelet hears just that.
    let may_end = || home(store, asked).is_none_or(|home| home == node);
    match (asked.group, asked.resource, asked.subresource) {
        ("", "nodes", "" | "status") => read || (own && (create || change)),
        ("", "pods", "") => match asked.verb {
            "get" => runs(),
            "list" | "watch" => asked.node == node || runs(),
            // Admission looks at the object.
            "create" => true,
            "delete" => may_end(),
            _ => false,
        },
        ("", "pods", "status") => change && may_end(),
        ("", "pods", "eviction") => create && may_end(),
        ("", "events", _) | ("events.k8s.io", "events", _) => create || change,
        ("coordination.k8s.io", "leases", "") => {
            (read || create || change || asked.verb == "delete")
                && own
                && asked.namespace == "kube-node-lease"
        }
        ("", "configmaps", "") => read && uses(Kind::ConfigMap),
        ("", "secrets", "") => read && uses(Kind::Secret),
        ("", "serviceaccounts", "") => asked.verb == "get" && uses(Kind::Account),
        ("", "serviceaccounts", "token") => create && uses(Kind::Account),
        ("", "persistentvolumeclaims", "") => asked.verb == "get" && uses(Kind::Claim),
        ("", "persistentvolumeclaims", "status") => (asked.verb == "get" || change) && uses(Kind::Claim),
        ("", "persistentvolumes", "") => asked.verb == "get" && mounts(store, graph, node, asked.name),
        ("", "services" | "namespaces" | "endpoints", "")
        | ("discovery.k8s.io", "endpointslices", "")
        | ("networking.k8s.io", "networkpolicies" | "servicecidrs", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "csidrivers", "")
        | ("certificates.k8s.io", "clustertrustbundles", "") => read,
        ("storage.k8s.io", "csinodes", "") => own && (read || create || change || asked.verb == "delete"),
        ("storage.k8s.io", "volumeattachments", "") => {
            asked.verb == "get" && is_attached(store, node, asked.name)
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => read || create,
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => create,
        _ => false,
    }
}

/// The node that the pod which is asked for is bound to, empty before it is; none when there is no such pod.
fn home(store: &Store, asked: &Attributes<'_>) -> Option<String> {
    let pod = object(
        store,
        &format!("/registry/pods/{}/{}", asked.namespace, asked.name),
    )?;
    Some(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
}

/// Whether the volume is bound to a claim that a pod of this node uses.
fn mounts(store: &Store, graph: &Graph, node: &str, name: &str) -> bool {
    let volume = object(store, &format!("/registry/persistentvolumes/{name}")).unwrap_or_default();
    let claim = &volume["spec"]["claimRef"];
    match (claim["namespace"].as_str(), claim["name"].as_str()) {
        (Some(namespace), Some(claim)) => graph.uses(store, node, Kind::Claim, namespace, claim),
        _ => false,
    }
}

fn is_attached(store: &Store, node: &str, name: &str) -> bool {
    let key = format!("/registry/storage.k8s.io/volumeattachments/{name}");
    object(store, &key).is_some_and(|attachment| attachment["spec"]["nodeName"] == node)
}

fn object(store: &Store, key: &str) -> Option<Value> {
    let snapshot = store.snapshot();
    crate::object::value(snapshot.get(key.as_bytes())?).ok()
}
