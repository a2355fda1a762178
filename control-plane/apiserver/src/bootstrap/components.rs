//! Roles of the cluster's own components: scheduler, controllers, nodes' service proxies. Names and rights are the
//! published ones (`kubectl get clusterroles` on any cluster), with one rule on top: where upstream's controller may
//! `update`, ours may `patch` too, since it sends the change and not the whole object.
//!
//! Every controller acts as the service account of its name in `kube-system`, as upstream's do with
//! `--use-service-account-credentials`.

use serde_json::{Value, json};

/// API groups, resources and verbs, each separated by blanks; `core` is the group without a name.
type Rights = (&'static str, &'static str, &'static str);

const READ: &str = "get list watch";
const CHANGE: &str = "update patch";
const ALL: &str = "create delete get list update patch watch";

/// Roles for users, and who they are.
pub(super) fn users() -> Vec<(&'static str, &'static str, Vec<Value>)> {
    let user = |role, user, rights: &[Rights]| (role, user, rules(rights));
    vec![
        user(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            MANAGER,
        ),
        user("system:kube-scheduler", "system:kube-scheduler", SCHEDULER),
        user("system:volume-scheduler", "system:kube-scheduler", VOLUMES),
        user("system:node-proxier", "system:kube-proxy", PROXY),
    ]
}

/// Controllers of ours that do what two of upstream's do: the second role, and the account that has it too.
const ALSO: [(&str, &str); 2] = [
    ("root-ca-cert-publisher", "service-account-controller"),
    ("ttl-after-finished-controller", "job-controller"),
];

/// The roles `system:controller:NAME`: name, accounts that have the role, and rules.
pub(super) fn controllers() -> impl Iterator<Item = (&'static str, Vec<&'static str>, Vec<Value>)> {
    CONTROLLERS.iter().map(|(name, rights)| {
        let others = ALSO
            .iter()
            .filter(|(role, _)| role == name)
            .map(|(_, account)| *account);
        (
            *name,
            std::iter::once(*name).chain(others).collect(),
            rules(rights),
        )
    })
}

fn rules(rights: &[Rights]) -> Vec<Value> {
    let events = ("core events.k8s.io", "events", "create update patch");
    rights.iter().chain([&events]).map(|one| rule(*one)).collect()
}

fn rule((groups, resources, verbs): Rights) -> Value {
    let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
    let groups: Vec<&str> = words(groups)
        .into_iter()
        .map(|g| if g == "core" { "" } else { g })
        .collect();
    json!({"apiGroups": groups, "resources": words(resources), "verbs": words(verbs)})
}

const MANAGER: &[Rights] = &[
    ("coordination.k8s.io", "leases", "create get list update watch"),
    ("core", "secrets serviceaccounts", "create delete get update"),
    ("core", "serviceaccounts/token", "create"),
    ("core", "configmaps namespaces", "get"),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    // What the shared caches hold.
    ("*", "*", "list watch"),
];

const SCHEDULER: &[Rights] = &[
    ("coordination.k8s.io", "leases", "create get list update watch"),
    ("core", "nodes namespaces replicationcontrollers services", READ),
    ("core", "pods", "delete get list watch"),
    ("core", "bindings pods/binding", "create"),
    ("core", "pods/status", CHANGE),
    ("apps extensions", "replicasets", READ),
    ("apps", "statefulsets", READ),
    ("policy", "poddisruptionbudgets", READ),
    ("core", "persistentvolumeclaims persistentvolumes", READ),
    (
        "storage.k8s.io",
        "csinodes csidrivers csistoragecapacities volumeattachments",
        READ,
    ),
    ("resource.k8s.io", "deviceclasses resourceslices", READ),
    (
        "resource.k8s.io",
        "resourceclaims resourceclaims/status",
        "get list watch update patch",
    ),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
];

const VOLUMES: &[Rights] = &[
    (
        "core",
        "persistentvolumes persistentvolumeclaims",
        "get list watch update patch",
    ),
    ("storage.k8s.io", "storageclasses", READ),
];

const PROXY: &[Rights] = &[
    ("core", "nodes services endpoints", READ),
    ("discovery.k8s.io", "endpointslices", "list watch"),
    ("networking.k8s.io", "servicecidrs", "list watch"),
];

const CONTROLLERS: &[(&str, &[Rights])] = &[
    (
        "certificate-controller",
        &[
            (
                "certificates.k8s.io",
                "certificatesigningrequests",
                "delete get list watch",
            ),
            (
                "certificates.k8s.io",
                "certificatesigningrequests/approval certificatesigningrequests/status",
                CHANGE,
            ),
            ("certificates.k8s.io", "signers", "approve sign"),
            ("authorization.k8s.io", "subjectaccessreviews", "create"),
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &[(
            "rbac.authorization.k8s.io",
            "clusterroles",
            "escalate get list update patch watch",
        )],
    ),
    (
        "cronjob-controller",
        &[
            ("batch", "cronjobs", "get list watch update patch"),
            ("batch", "cronjobs/status cronjobs/finalizers", CHANGE),
            ("batch", "jobs", ALL),
            ("core", "pods", "delete list watch"),
        ],
    ),
    (
        "daemon-set-controller",
        &[
            ("apps extensions", "daemonsets", READ),
            (
                "apps extensions",
                "daemonsets/status daemonsets/finalizers",
                CHANGE,
            ),
            ("core", "nodes", "list watch"),
            ("core", "pods", "create delete list patch watch"),
            ("core", "pods/binding", "create"),
            ("apps", "controllerrevisions", ALL),
        ],
    ),
    (
        "deployment-controller",
        &[
            ("apps extensions", "deployments", "get list watch update patch"),
            (
                "apps extensions",
                "deployments/status deployments/finalizers",
                CHANGE,
            ),
            ("apps extensions", "replicasets", ALL),
            ("core", "pods", "get list watch update patch"),
        ],
    ),
    (
        "disruption-controller",
        &[
            ("apps extensions", "deployments replicasets statefulsets", READ),
            ("core", "replicationcontrollers pods", READ),
            ("policy", "poddisruptionbudgets", READ),
            ("policy", "poddisruptionbudgets/status", CHANGE),
            ("core", "pods/status", CHANGE),
            ("*", "*/scale", "get"),
        ],
    ),
    (
        "endpoint-controller",
        &[
            ("core", "pods services", READ),
            ("core", "endpoints", ALL),
            ("core", "endpoints/restricted", "create"),
        ],
    ),
    (
        "endpointslice-controller",
        &[
            ("core", "nodes pods services", READ),
            ("core", "services/finalizers", CHANGE),
            ("discovery.k8s.io", "endpointslices", ALL),
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            ("core", "endpoints services", READ),
            ("core", "services/finalizers endpoints/finalizers", CHANGE),
            ("discovery.k8s.io", "endpointslices", ALL),
        ],
    ),
    (
        "ephemeral-volume-controller",
        &[
            ("core", "pods", READ),
            ("core", "pods/finalizers", CHANGE),
            ("core", "persistentvolumeclaims", "create get list watch"),
        ],
    ),
    (
        "generic-garbage-collector",
        &[("*", "*", "delete get list update patch watch")],
    ),
    (
        "horizontal-pod-autoscaler",
        &[
            ("autoscaling", "horizontalpodautoscalers", READ),
            ("autoscaling", "horizontalpodautoscalers/status", CHANGE),
            ("*", "*/scale", "get update patch"),
            ("core metrics.k8s.io", "pods", "list watch"),
            ("custom.metrics.k8s.io external.metrics.k8s.io", "*", READ),
        ],
    ),
    (
        "job-controller",
        &[
            ("batch", "jobs", "get list watch update patch"),
            ("batch", "jobs/status jobs/finalizers", CHANGE),
            ("core", "pods", "create delete list patch watch"),
        ],
    ),
    (
        "namespace-controller",
        &[
            ("core", "namespaces", "delete get list watch"),
            ("core", "namespaces/finalize namespaces/status", CHANGE),
            ("*", "*", "delete deletecollection get list watch"),
        ],
    ),
    (
        "node-controller",
        &[
            ("core", "nodes", "delete get list watch update patch"),
            ("core", "nodes/status pods/status", CHANGE),
            ("core", "pods", "delete get list watch"),
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            ("core", "persistentvolumes", ALL),
            (
                "core",
                "persistentvolumes/status persistentvolumeclaims/status",
                CHANGE,
            ),
            ("core", "persistentvolumeclaims", "get list watch update patch"),
            ("core", "pods", "create delete get list watch"),
            ("storage.k8s.io", "storageclasses", READ),
            ("core", "nodes events", "list watch"),
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            ("core", "pods", "delete list watch"),
            ("core", "nodes", READ),
            ("core", "pods/status", "patch"),
        ],
    ),
    (
        "pv-protection-controller",
        &[("core", "persistentvolumes", "get list watch update patch")],
    ),
    (
        "pvc-protection-controller",
        &[
            ("core", "persistentvolumeclaims", "get list watch update patch"),
            ("core", "persistentvolumeclaims/status", CHANGE),
            ("core", "pods", READ),
        ],
    ),
    (
        "replicaset-controller",
        &[
            ("apps extensions", "replicasets", "get list watch update patch"),
            (
                "apps extensions",
                "replicasets/status replicasets/finalizers",
                CHANGE,
            ),
            ("core", "pods", "create delete list patch watch"),
        ],
    ),
    (
        "replication-controller",
        &[
            ("core", "replicationcontrollers", "get list watch update patch"),
            (
                "core",
                "replicationcontrollers/status replicationcontrollers/finalizers",
                CHANGE,
            ),
            ("core", "pods", "create delete list patch watch"),
        ],
    ),
    (
        "resourcequota-controller",
        &[
            ("*", "*", "list watch"),
            ("core", "resourcequotas/status", CHANGE),
        ],
    ),
    (
        "root-ca-cert-publisher",
        &[("core", "configmaps", "create update patch")],
    ),
    (
        "service-account-controller",
        &[("core", "serviceaccounts", "create")],
    ),
    (
        "service-controller",
        &[
            ("core", "services", READ),
            ("core", "services/status", CHANGE),
            ("core", "nodes", "list watch"),
        ],
    ),
    (
        "statefulset-controller",
        &[
            ("core", "pods", ALL),
            ("apps", "statefulsets", READ),
            ("apps", "statefulsets/status statefulsets/finalizers", CHANGE),
            ("apps", "controllerrevisions", ALL),
            (
                "core",
                "persistentvolumeclaims",
                "create delete get list update watch",
            ),
            ("core", "pods/finalizers", CHANGE),
        ],
    ),
    (
        "ttl-after-finished-controller",
        &[("batch", "jobs", "delete get list watch")],
    ),
];
