//! The node authorizer: a kubelet reads what it needs to run pods and writes what is its own.
//! <https://kubernetes.io/docs/reference/access-authn-authz/node/>

use control_plane_store::Snapshot;

use super::Attributes;

const READ: [&str; 3] = ["get", "list", "watch"];

/// Whether the node may do this.
pub(super) fn allows(snapshot: &Snapshot, node: &str, asked: &Attributes<'_>) -> bool {
    let read = READ.contains(&asked.verb);
    let write = matches!(asked.verb, "create" | "update" | "patch" | "delete");
    let own = asked.name.is_empty() || asked.name == node;
    match (asked.group, asked.resource, asked.subresource) {
        ("", "nodes", "" | "status") => read || (own && matches!(asked.verb, "create" | "update" | "patch")),
        ("", "pods", "") => {
            read || asked.verb == "create" || (asked.verb == "delete" && runs(snapshot, node, asked))
        }
        ("", "pods", "status") => {
            read || (matches!(asked.verb, "update" | "patch") && runs(snapshot, node, asked))
        }
        ("", "pods", "eviction") => asked.verb == "create",
        ("", "events", _) | ("events.k8s.io", "events", _) => {
            matches!(asked.verb, "create" | "update" | "patch")
        }
        ("coordination.k8s.io", "leases", "") => {
            (read || write) && own && asked.namespace == "kube-node-lease"
        }
        ("", "serviceaccounts", "token") => asked.verb == "create",
        ("", "services" | "namespaces" | "serviceaccounts", "") => read,
        ("", "configmaps" | "secrets", "") => read && used_here(snapshot, node, asked),
        ("", "persistentvolumeclaims" | "persistentvolumes", _) => read,
        ("discovery.k8s.io", "endpointslices", "") | ("", "endpoints", "") => read,
        ("networking.k8s.io", "networkpolicies" | "servicecidrs", "") => read,
        ("storage.k8s.io", "csidrivers" | "csinodes" | "volumeattachments" | "storageclasses", _) => {
            read || (own && asked.resource == "csinodes")
        }
        ("node.k8s.io", "runtimeclasses", "") => read,
        ("certificates.k8s.io", "certificatesigningrequests", "") => read || asked.verb == "create",
        ("authentication.k8s.io", "tokenreviews", "") => asked.verb == "create",
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
            asked.verb == "create"
        }
        _ => false,
    }
}

/// Whether the pod that is asked for is bound to this node.
fn runs(snapshot: &Snapshot, node: &str, asked: &Attributes<'_>) -> bool {
    let key = format!("/registry/pods/{}/{}", asked.namespace, asked.name);
    let entry = snapshot.get(key.as_bytes());
    entry
        .and_then(|e| crate::object::value(e).ok())
        .is_some_and(|pod| pod["spec"]["nodeName"] == node)
}

/// Whether a pod of this node names the config map or secret. Collections are not for nodes.
fn used_here(snapshot: &Snapshot, node: &str, asked: &Attributes<'_>) -> bool {
    if asked.name.is_empty() {
        return false;
    }
    let prefix = format!("/registry/pods/{}/", asked.namespace);
    let name = serde_json::Value::from(asked.name).to_string();
    snapshot.range(prefix.as_bytes(), b"").any(|(_, entry)| {
        // The name must stand somewhere in the pod as a string; checked before the pod is parsed.
        contains(&entry.value, name.as_bytes())
            && crate::object::value(entry).is_ok_and(|pod| pod["spec"]["nodeName"] == node)
    })
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}
