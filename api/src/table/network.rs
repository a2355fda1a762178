//! Rows of services, endpoints and ingresses.

use super::{Layout, View, some};
use crate::catalog::Resource;
use crate::kinds::access::{at, list, text};
use serde_json::Value;

pub(super) fn layout(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        ("", "services") => Layout {
            columns: &[
                "Name:s",
                "Type:s",
                "Cluster-IP:s",
                "External-IP:s",
                "Port(s):s",
                "Age:s",
                "Selector:s!",
            ],
            cells: service,
        },
        ("", "endpoints") => Layout {
            columns: &["Name:s", "Endpoints:s", "Age:s"],
            cells: |v| vec![v.name(), endpoints(v.object).into(), v.age()],
        },
        ("discovery.k8s.io", "endpointslices") => Layout {
            columns: &["Name:s", "AddressType:s", "Ports:s", "Endpoints:s", "Age:s"],
            cells: slice,
        },
        ("networking.k8s.io", "ingresses") => Layout {
            columns: &["Name:s", "Class:s", "Hosts:s", "Address:s", "Ports:s", "Age:s"],
            cells: ingress,
        },
        ("networking.k8s.io", "ingressclasses") => Layout {
            columns: &["Name:s", "Controller:s", "Parameters:s", "Age:s"],
            cells: ingress_class,
        },
        ("networking.k8s.io", "networkpolicies") => Layout {
            columns: &["Name:s", "Pod-Selector:s", "Age:s"],
            cells: |v| vec![v.name(), v.selector("spec.podSelector"), v.age()],
        },
        ("networking.k8s.io", "servicecidrs") => Layout {
            columns: &["Name:s", "CIDRs:s", "Age:s"],
            cells: |v| vec![v.name(), texts(v.object, "spec.cidrs").join(",").into(), v.age()],
        },
        ("networking.k8s.io", "ipaddresses") => Layout {
            columns: &["Name:s", "ParentRef:s"],
            cells: |v| vec![v.name(), parent(v.object).into()],
        },
        _ => return None,
    })
}

fn texts<'a>(object: &'a Value, path: &str) -> Vec<&'a str> {
    list(object, path).iter().filter_map(Value::as_str).collect()
}

fn service(v: &View<'_>) -> Vec<Value> {
    let spec = at(v.object, "spec");
    let ip = texts(spec, "clusterIPs").first().copied().unwrap_or("<none>");
    let ports: Vec<String> = list(spec, "ports").iter().map(port).collect();
    let ports = if ports.is_empty() {
        "<none>".into()
    } else {
        ports.join(",")
    };
    let (kind, external) = (v.text("spec.type"), external_ip(v.object));
    vec![
        v.name(),
        kind,
        ip.into(),
        external.into(),
        ports.into(),
        v.age(),
        v.labels("spec.selector"),
    ]
}

fn port(port: &Value) -> String {
    let number = |field: &str| at(port, field).as_i64().unwrap_or(0);
    match number("nodePort") {
        0 => format!("{}/{}", number("port"), text(port, "protocol")),
        node => format!("{}:{node}/{}", number("port"), text(port, "protocol")),
    }
}

fn external_ip(service: &Value) -> String {
    let ips = texts(service, "spec.externalIPs");
    match text(service, "spec.type") {
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = balancers(service);
            all.extend(ips);
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",")
            }
        }
        "ClusterIP" | "NodePort" if ips.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => ips.join(","),
        _ => "<unknown>".into(),
    }
}

/// Addresses or names that a load balancer has.
fn balancers(object: &Value) -> Vec<&str> {
    let ingress = list(object, "status.loadBalancer.ingress");
    let shown = ingress.iter().map(|entry| match text(entry, "ip") {
        "" => text(entry, "hostname"),
        ip => ip,
    });
    shown.filter(|entry| !entry.is_empty()).collect()
}

fn with_port(ip: &str, port: i64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object, "subsets") {
        let addresses = || {
            list(subset, "addresses")
                .iter()
                .map(|address| text(address, "ip"))
        };
        let ports = list(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let number = at(port, "port").as_i64().unwrap_or(0);
            all.extend(addresses().map(|ip| with_port(ip, number)));
        }
    }
    some(&all, 3)
}

fn slice(v: &View<'_>) -> Vec<Value> {
    let ports: Vec<String> = list(v.object, "ports")
        .iter()
        .map(
            |port| match (at(port, "port").as_i64(), at(port, "name").as_str()) {
                (Some(number), _) => number.to_string(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => "*".to_owned(),
            },
        )
        .collect();
    let addresses: Vec<String> = list(v.object, "endpoints")
        .iter()
        .flat_map(|endpoint| texts(endpoint, "addresses"))
        .map(str::to_owned)
        .collect();
    let unset = |shown: String| {
        if shown == "<none>" {
            "<unset>".to_owned()
        } else {
            shown
        }
    };
    let (ports, addresses) = (unset(some(&ports, 3)), unset(some(&addresses, 3)));
    vec![
        v.name(),
        v.text("addressType"),
        ports.into(),
        addresses.into(),
        v.age(),
    ]
}

fn ingress(v: &View<'_>) -> Vec<Value> {
    let hosts: Vec<String> = list(v.object, "spec.rules")
        .iter()
        .map(|rule| text(rule, "host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    let hosts = if hosts.is_empty() {
        "*".to_owned()
    } else {
        some(&hosts, 3)
    };
    let ports = if list(v.object, "spec.tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    let class = v.text_or("spec.ingressClassName", "<none>");
    let address = balancers(v.object).join(",");
    vec![
        v.name(),
        class,
        hosts.into(),
        address.into(),
        ports.into(),
        v.age(),
    ]
}

fn ingress_class(v: &View<'_>) -> Vec<Value> {
    let parameters = at(v.object, "spec.parameters");
    let shown = match (parameters.is_null(), text(parameters, "apiGroup")) {
        (true, _) => "<none>".to_owned(),
        (_, "") => format!("{}/{}", text(parameters, "kind"), text(parameters, "name")),
        (_, group) => format!(
            "{}.{group}/{}",
            text(parameters, "kind"),
            text(parameters, "name")
        ),
    };
    vec![
        default_name(v, "ingressclass.kubernetes.io/is-default-class"),
        v.text("spec.controller"),
        shown.into(),
        v.age(),
    ]
}

/// The name, marked when an annotation makes the object the default of its kind.
pub(super) fn default_name(v: &View<'_>, annotation: &str) -> Value {
    let marked = at(v.object, "metadata.annotations")
        .get(annotation)
        .and_then(Value::as_str)
        == Some("true");
    let name = text(v.object, "metadata.name");
    if marked {
        format!("{name} (default)").into()
    } else {
        name.into()
    }
}

fn parent(object: &Value) -> String {
    let parent = at(object, "spec.parentRef");
    let parts = [
        text(parent, "resource"),
        text(parent, "namespace"),
        text(parent, "name"),
    ];
    let resource = match text(parent, "group") {
        "" => parts[0].to_owned(),
        group => format!("{}.{group}", parts[0]),
    };
    [resource.as_str(), parts[1], parts[2]]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}
