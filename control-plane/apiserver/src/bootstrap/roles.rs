//! The roles and bindings that every cluster has:
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings>.

use serde_json::{Value, json};

use super::components;

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// Paths and objects.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    for (name, rules) in roles() {
        all.push(role(name, rules));
    }
    for (name, groups) in bindings() {
        all.push(binding(
            name,
            groups.iter().map(|g| subject("Group", g)).collect(),
        ));
    }
    for (name, user, rules) in components::users() {
        all.push(role(name, rules));
        all.push(binding(name, vec![subject("User", user)]));
    }
    for (name, accounts, rules) in components::controllers() {
        let name = format!("system:controller:{name}");
        all.push(role(&name, rules));
        let subject =
            |account| json!({"kind": "ServiceAccount", "name": account, "namespace": "kube-system"});
        all.push(binding(&name, accounts.into_iter().map(subject).collect()));
    }
    all
}

fn role(name: &str, rules: Vec<Value>) -> (&'static str, Value) {
    (ROLES, labelled("ClusterRole", name, json!({"rules": rules})))
}

/// A binding of the role of the same name.
fn binding(name: &str, subjects: Vec<Value>) -> (&'static str, Value) {
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let body = json!({"roleRef": role, "subjects": subjects});
    (BINDINGS, labelled("ClusterRoleBinding", name, body))
}

fn subject(kind: &str, name: &str) -> Value {
    json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name})
}

fn labelled(kind: &str, name: &str, body: Value) -> Value {
    let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}}});
    if let (Value::Object(object), Value::Object(body)) = (&mut object, body) {
        object.extend(body);
    }
    object
}

fn bindings() -> [(&'static str, &'static [&'static str]); 5] {
    [
        ("cluster-admin", &["system:masters"]),
        ("system:discovery", &["system:authenticated"]),
        ("system:basic-user", &["system:authenticated"]),
        (
            "system:public-info-viewer",
            &["system:authenticated", "system:unauthenticated"],
        ),
        (
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
    ]
}

fn roles() -> Vec<(&'static str, Vec<Value>)> {
    let paths = |paths: &[&str]| json!({"verbs": ["get"], "nonResourceURLs": paths});
    let public = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let keys = [
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/",
        "/openid/v1/jwks",
        "/openid/v1/jwks/",
    ];
    vec![
        (
            "cluster-admin",
            vec![
                json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
                json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
            ],
        ),
        ("system:discovery", vec![paths(&discovery)]),
        ("system:public-info-viewer", vec![paths(&public)]),
        ("system:service-account-issuer-discovery", vec![paths(&keys)]),
        (
            "system:basic-user",
            vec![
                json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
                    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}),
                json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}),
            ],
        ),
        (
            "system:auth-delegator",
            vec![
                json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]}),
                json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"]}),
            ],
        ),
        ("view", vec![rule(&READ, &[]), core_status()]),
        (
            "edit",
            vec![
                rule(&READ, &["secrets"]),
                core_status(),
                write(&[
                    "secrets",
                    "serviceaccounts",
                    "pods/exec",
                    "pods/attach",
                    "pods/portforward",
                    "pods/proxy",
                    "services/proxy",
                ]),
                evict(),
            ],
        ),
        (
            "admin",
            vec![
                rule(&READ, &["secrets"]),
                core_status(),
                write(&[
                    "secrets",
                    "serviceaccounts",
                    "serviceaccounts/token",
                    "pods/exec",
                    "pods/attach",
                    "pods/portforward",
                    "pods/proxy",
                    "services/proxy",
                ]),
                evict(),
                json!({"verbs": ([READ.as_slice(), WRITE.as_slice()].concat()), "apiGroups": ["rbac.authorization.k8s.io"],
                "resources": ["roles", "rolebindings"]}),
                json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["localsubjectaccessreviews"]}),
            ],
        ),
    ]
}

const GROUPS: [&str; 7] = [
    "",
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "networking.k8s.io",
    "discovery.k8s.io",
];
const RESOURCES: [&str; 25] = [
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
    "controllerrevisions",
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
    "horizontalpodautoscalers",
    "cronjobs",
    "jobs",
    "poddisruptionbudgets",
    "ingresses",
    "networkpolicies",
    "endpointslices",
    "events",
    "resourcequotas",
];

fn rule(verbs: &[&str], more: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": GROUPS, "resources": ([RESOURCES.as_slice(), more].concat())})
}

fn core_status() -> Value {
    json!({"verbs": READ, "apiGroups": GROUPS, "resources": ["*/status", "pods/log", "limitranges", "namespaces", "bindings"]})
}

fn write(more: &[&str]) -> Value {
    // Quotas and slices are not for tenants to change.
    let ours: Vec<&str> = RESOURCES
        .iter()
        .copied()
        .filter(|r| !matches!(*r, "resourcequotas" | "endpointslices"))
        .collect();
    json!({"verbs": WRITE, "apiGroups": GROUPS, "resources": ([ours.as_slice(), more].concat())})
}

fn evict() -> Value {
    json!({"verbs": ["create"], "apiGroups": [""], "resources": ["pods/eviction"]})
}
