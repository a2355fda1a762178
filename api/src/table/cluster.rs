//! Rows of nodes, namespaces, configuration, access and the rest.

use super::{Layout, View, human, or};
use crate::catalog::Resource;
use crate::kinds::access::{at, entries, flag, has, list, text};
use jiff::SignedDuration;
use serde_json::Value;

pub(super) fn layout(res: &Resource) -> Option<Layout> {
    let found = core(res);
    found.or_else(|| access(res)).or_else(|| policy(res))
}

fn core(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        ("", "nodes") => Layout {
            columns: &[
                "Name:s",
                "Status:s",
                "Roles:s",
                "Age:s",
                "Version:s",
                "Internal-IP:s!",
                "External-IP:s!",
                "OS-Image:s!",
                "Kernel-Version:s!",
                "Container-Runtime:s!",
            ],
            cells: node,
        },
        ("" | "events.k8s.io", "events") => Layout {
            columns: &[
                "Last Seen:s",
                "Type:s",
                "Reason:s",
                "Object:s",
                "Subobject:s!",
                "Source:s!",
                "Message:s",
                "First Seen:s!",
                "Count:s!",
                "Name:s!",
            ],
            cells: event,
        },
        ("", "namespaces") => Layout {
            columns: &["Name:s", "Status:s", "Age:s"],
            cells: |v| vec![v.name(), v.text("status.phase"), v.age()],
        },
        ("", "secrets") => Layout {
            columns: &["Name:s", "Type:s", "Data:s", "Age:s"],
            cells: |v| vec![v.name(), v.text("type"), v.count("data"), v.age()],
        },
        ("", "configmaps") => Layout {
            columns: &["Name:s", "Data:s", "Age:s"],
            cells: config_map,
        },
        ("", "serviceaccounts") => Layout {
            columns: &["Name:s", "Age:s"],
            cells: |v| vec![v.name(), v.age()],
        },
        ("", "resourcequotas") => Layout {
            columns: &["Name:s", "Request:s", "Limit:s", "Age:s"],
            cells: quota,
        },
        ("", "componentstatuses") => Layout {
            columns: &["Name:s", "Status:s", "Message:s", "Error:s"],
            cells: component,
        },
        ("coordination.k8s.io", "leases") => Layout {
            columns: &["Name:s", "Holder:s", "Age:s"],
            cells: |v| vec![v.name(), v.text("spec.holderIdentity"), v.age()],
        },
        ("scheduling.k8s.io", "priorityclasses") => Layout {
            columns: &[
                "Name:s",
                "Value:i",
                "Global-Default:b",
                "Age:s",
                "PreemptionPolicy:s!",
            ],
            cells: priority_class,
        },
        ("node.k8s.io", "runtimeclasses") => Layout {
            columns: &["Name:s", "Handler:s", "Age:s"],
            cells: |v| vec![v.name(), v.text("handler"), v.age()],
        },
        ("resource.k8s.io", "deviceclasses" | "resourceclaimtemplates") => Layout {
            columns: &["Name:s", "Age:s"],
            cells: |v| vec![v.name(), v.age()],
        },
        _ => return None,
    })
}

fn access(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => Layout {
            columns: &[
                "Name:s",
                "Role:s",
                "Age:s",
                "Users:s!",
                "Groups:s!",
                "ServiceAccounts:s!",
            ],
            cells: binding,
        },
        ("certificates.k8s.io", "certificatesigningrequests") => Layout {
            columns: &[
                "Name:s",
                "Age:s",
                "SignerName:s",
                "Requestor:s",
                "RequestedDuration:s",
                "Condition:s",
            ],
            cells: signing_request,
        },
        ("certificates.k8s.io", "clustertrustbundles") => Layout {
            columns: &["Name:s", "SignerName:s"],
            cells: |v| vec![v.name(), v.text_or("spec.signerName", "<none>")],
        },
        ("apiregistration.k8s.io", "apiservices") => Layout {
            columns: &["Name:s", "Service:s", "Available:s", "Age:s"],
            cells: api_service,
        },
        ("apiextensions.k8s.io", "customresourcedefinitions") => Layout {
            columns: &["Name:s", "Created At:d"],
            cells: |v| vec![v.name(), v.text("metadata.creationTimestamp")],
        },
        _ => return None,
    })
}

fn policy(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => Layout {
            columns: &["Name:s", "Webhooks:i", "Age:s"],
            cells: |v| vec![v.name(), v.count("webhooks"), v.age()],
        },
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => Layout {
            columns: &["Name:s", "Validations:i", "ParamKind:s", "Age:s"],
            cells: |v| vec![v.name(), v.count("spec.validations"), param_kind(v), v.age()],
        },
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => Layout {
            columns: &["Name:s", "Mutations:i", "ParamKind:s", "Age:s"],
            cells: |v| vec![v.name(), v.count("spec.mutations"), param_kind(v), v.age()],
        },
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings",
        ) => Layout {
            columns: &["Name:s", "PolicyName:s", "ParamRef:s", "Age:s"],
            cells: policy_binding,
        },
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => Layout {
            columns: &[
                "Name:s",
                "PriorityLevel:s",
                "MatchingPrecedence:s",
                "DistinguisherMethod:s",
                "Age:s",
                "MissingPL:s",
            ],
            cells: flow_schema,
        },
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => Layout {
            columns: &[
                "Name:s",
                "Type:s",
                "NominalConcurrencyShares:s",
                "Queues:s",
                "HandSize:s",
                "QueueLengthLimit:s",
                "Age:s",
            ],
            cells: priority_level,
        },
        _ => return None,
    })
}

fn node(v: &View<'_>) -> Vec<Value> {
    let ready = list(v.object, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == "Ready");
    let mut status = vec![match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if flag(v.object, "spec.unschedulable") {
        status.push("SchedulingDisabled");
    }
    let unknown = |path: &str| v.text_or(path, "<unknown>");
    let mut kernel = unknown("status.nodeInfo.kernelVersion");
    if let (Value::String(kernel), arch) = (&mut kernel, text(v.object, "status.nodeInfo.architecture"))
        && !arch.is_empty()
    {
        kernel.push_str(&format!(" ({arch})"));
    }
    vec![
        v.name(),
        status.join(",").into(),
        or(&roles(v.object).join(","), "<none>"),
        v.age(),
        v.text("status.nodeInfo.kubeletVersion"),
        address(v, "InternalIP"),
        address(v, "ExternalIP"),
        unknown("status.nodeInfo.osImage"),
        kernel,
        unknown("status.nodeInfo.containerRuntimeVersion"),
    ]
}

fn roles(node: &Value) -> Vec<String> {
    let role = |(key, value): (&str, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let mut roles: Vec<String> = entries(node, "metadata.labels")
        .filter_map(role)
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort();
    roles.dedup();
    roles
}

fn address(v: &View<'_>, kind: &str) -> Value {
    let found = list(v.object, "status.addresses")
        .iter()
        .find(|address| text(address, "type") == kind);
    or(
        found.map(|address| text(address, "address")).unwrap_or_default(),
        "<none>",
    )
}

fn event(v: &View<'_>) -> Vec<Value> {
    let pick = |older: &str, newer: &str| {
        let older = text(v.object, older);
        if older.is_empty() {
            text(v.object, newer).to_owned()
        } else {
            older.to_owned()
        }
    };
    let first = when(v, &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]);
    let last = when(
        v,
        &[
            "series.lastObservedTime",
            "lastTimestamp",
            "deprecatedLastTimestamp",
        ],
    );
    let last = last
        .or_else(|| first.clone())
        .unwrap_or_else(|| "<unknown>".into());
    let about = if has(v.object, "regarding") {
        at(v.object, "regarding")
    } else {
        at(v.object, "involvedObject")
    };
    let (kind, name) = (text(about, "kind").to_lowercase(), text(about, "name"));
    let target = if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    };
    let component = pick("source.component", "reportingComponent");
    let component = if component.is_empty() {
        pick("deprecatedSource.component", "reportingController")
    } else {
        component
    };
    let host = pick("source.host", "reportingInstance");
    let source = if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    };
    let counts = ["series.count", "count", "deprecatedCount"].map(|path| v.number(path));
    let count = counts.into_iter().find(|count| *count != 0).unwrap_or(1);
    vec![
        last.into(),
        v.text("type"),
        v.text("reason"),
        target.into(),
        text(about, "fieldPath").into(),
        source.into(),
        pick("message", "note").trim().into(),
        first.unwrap_or_else(|| "<unknown>".into()).into(),
        count.into(),
        v.name(),
    ]
}

/// How long ago the first of these times was that is set.
fn when(v: &View<'_>, paths: &[&str]) -> Option<String> {
    paths
        .iter()
        .find(|path| has(v.object, path))
        .map(|path| v.since(path))
}

fn config_map(v: &View<'_>) -> Vec<Value> {
    let count = entries(v.object, "data").count() + entries(v.object, "binaryData").count();
    vec![v.name(), count.into(), v.age()]
}

fn quota(v: &View<'_>) -> Vec<Value> {
    let mut hard: Vec<(&str, &Value)> = entries(v.object, "status.hard").collect();
    hard.sort_by_key(|(name, _)| *name);
    let used = at(v.object, "status.used");
    let mut sides = [Vec::new(), Vec::new()];
    for (name, limit) in hard {
        let used = used.get(name).and_then(Value::as_str).unwrap_or("0");
        let shown = format!("{name}: {used}/{}", limit.as_str().unwrap_or("0"));
        sides[usize::from(name.starts_with("limits"))].push(shown);
    }
    vec![
        v.name(),
        sides[0].join(", ").into(),
        sides[1].join(", ").into(),
        v.age(),
    ]
}

fn component(v: &View<'_>) -> Vec<Value> {
    let healthy = list(v.object, "conditions")
        .iter()
        .find(|c| text(c, "type") == "Healthy");
    let field = |name: &str| healthy.map(|c| text(c, name)).unwrap_or_default();
    let status = match field("status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    };
    vec![
        v.name(),
        status.into(),
        field("message").into(),
        field("error").into(),
    ]
}

fn priority_class(v: &View<'_>) -> Vec<Value> {
    let default = flag(v.object, "globalDefault").into();
    vec![
        v.name(),
        v.int("value"),
        default,
        v.age(),
        v.text("preemptionPolicy"),
    ]
}

fn binding(v: &View<'_>) -> Vec<Value> {
    let role = at(v.object, "roleRef");
    let subjects = |kind: &str| -> Value {
        let of_kind = list(v.object, "subjects")
            .iter()
            .filter(|subject| text(subject, "kind") == kind);
        let names = of_kind.map(|subject| match text(subject, "namespace") {
            namespace if kind == "ServiceAccount" => format!("{namespace}/{}", text(subject, "name")),
            _ => text(subject, "name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    let role = format!("{}/{}", text(role, "kind"), text(role, "name"));
    vec![
        v.name(),
        role.into(),
        v.age(),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn signing_request(v: &View<'_>) -> Vec<Value> {
    let has = |kind: &str| {
        list(v.object, "status.conditions")
            .iter()
            .any(|c| text(c, "type") == kind)
    };
    let mut condition = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !text(v.object, "status.certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let wanted = at(v.object, "spec.expirationSeconds").as_i64();
    let wanted = wanted.map_or("<none>".into(), |seconds| {
        human(SignedDuration::from_secs(seconds))
    });
    let signer = v.text_or("spec.signerName", "<none>");
    vec![
        v.name(),
        v.age(),
        signer,
        v.text("spec.username"),
        wanted.into(),
        condition.into(),
    ]
}

fn api_service(v: &View<'_>) -> Vec<Value> {
    let service = at(v.object, "spec.service");
    let shown = if service.is_null() {
        "Local".to_owned()
    } else {
        format!("{}/{}", text(service, "namespace"), text(service, "name"))
    };
    let available = list(v.object, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == "Available");
    let available = available.map_or("Unknown".to_owned(), |c| match text(c, "status") {
        "True" => "True".into(),
        status => format!("{status} ({})", text(c, "reason")),
    });
    vec![v.name(), shown.into(), available.into(), v.age()]
}

fn param_kind(v: &View<'_>) -> Value {
    let kind = at(v.object, "spec.paramKind");
    if kind.is_null() {
        return "<unset>".into();
    }
    format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")).into()
}

fn policy_binding(v: &View<'_>) -> Vec<Value> {
    let reference = at(v.object, "spec.paramRef");
    let shown = match (
        reference.is_null(),
        text(reference, "namespace"),
        text(reference, "name"),
    ) {
        (true, ..) => "<unset>".to_owned(),
        (_, "", "") => "*".to_owned(),
        (_, "", name) => name.to_owned(),
        (_, namespace, "") => format!("{namespace}/*"),
        (_, namespace, name) => format!("{namespace}/{name}"),
    };
    vec![v.name(), v.text("spec.policyName"), shown.into(), v.age()]
}

fn flow_schema(v: &View<'_>) -> Vec<Value> {
    let dangling = list(v.object, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == "Dangling");
    vec![
        v.name(),
        v.text_or("spec.priorityLevelConfiguration.name", "<none>"),
        v.int("spec.matchingPrecedence"),
        v.text_or("spec.distinguisherMethod.type", "<none>"),
        v.age(),
        dangling.map(|c| text(c, "status")).unwrap_or("?").into(),
    ]
}

fn priority_level(v: &View<'_>) -> Vec<Value> {
    let number = |path: &str| {
        at(v.object, path)
            .as_i64()
            .map_or(Value::from("<none>"), Value::from)
    };
    let shares = [
        "spec.limited.nominalConcurrencyShares",
        "spec.exempt.nominalConcurrencyShares",
    ];
    let shares = shares
        .into_iter()
        .find(|path| has(v.object, path))
        .unwrap_or(shares[0]);
    vec![
        v.name(),
        v.text("spec.type"),
        number(shares),
        number("spec.limited.limitResponse.queuing.queues"),
        number("spec.limited.limitResponse.queuing.handSize"),
        number("spec.limited.limitResponse.queuing.queueLengthLimit"),
        v.age(),
    ]
}
