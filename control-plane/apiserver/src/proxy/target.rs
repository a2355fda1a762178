//! Where a passed-on request goes: which address, which path.

use std::net::{IpAddr, SocketAddr};

use api::meta::Meta;
use api::status::{Cause, Status};
use serde_json::Value;

use crate::ApiServer;
use crate::error::{Failure, Result, fail};
use crate::object;
use crate::options::Query;
use crate::path::RequestInfo;

/// How a back end proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// No TLS.
    Plain,
    /// TLS with a certificate of the cluster's CA.
    Kubelet,
    /// TLS, whatever the certificate.
    Anyone,
}

/// A back end and the path to ask it for.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) address: SocketAddr,
    pub(super) trust: Trust,
    path: String,
    /// A query in place of the client's.
    query: Option<String>,
}

impl Target {
    /// Path and query; `sent` is the client's query.
    pub(super) fn path(&self, sent: Option<&str>) -> String {
        match self.query.as_deref().or(sent).filter(|q| !q.is_empty()) {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// The `Host` header.
    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }
}

/// Finds the back end of a request.
pub(super) fn find(server: &ApiServer, info: &RequestInfo, query: &Query) -> Result<Target> {
    let subresource = info.subresource.as_deref().unwrap_or_default();
    match (info.resource.as_str(), subresource) {
        ("nodes", "proxy") => {
            let (_, name, _) = scheme_name_port(info.name.as_deref().unwrap_or_default());
            kubelet(server, name, tail(info))
        }
        ("pods", "proxy") => pod(server, info),
        ("services", "proxy") => service(server, info),
        ("pods", _) => kubelet_of_pod(server, info, query, subresource),
        _ => fail(Status::no_such_resource()),
    }
}

fn tail(info: &RequestInfo) -> String {
    if info.tail.is_empty() {
        "/".into()
    } else {
        info.tail.clone()
    }
}

fn read(server: &ApiServer, key: &str, resource: &str, name: &str) -> Result<Value> {
    match server.inner.store.snapshot().get(key.as_bytes()) {
        Some(entry) => object::value(entry),
        None => fail(Status::not_found(("", resource), name)),
    }
}

/// The kubelet of a node: its first internal address and the port it reports.
fn kubelet(server: &ApiServer, node: &str, path: String) -> Result<Target> {
    let object = read(server, &format!("/registry/nodes/{node}"), "nodes", node)?;
    let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
    let of = |kind: &str| {
        let mut found = addresses.clone().filter(|a| a["type"] == kind);
        found.find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
    };
    let Some(ip) = of("InternalIP").or_else(|| of("ExternalIP")) else {
        return fail(Status::unavailable(format!("node {node} has no address yet")));
    };
    let port = object
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64);
    let port = port
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
        .unwrap_or(10250);
    Ok(Target {
        address: SocketAddr::new(ip, port),
        trust: Trust::Kubelet,
        path,
        query: None,
    })
}

/// Logs and streams of a container, as the kubelet's API has them.
fn kubelet_of_pod(server: &ApiServer, info: &RequestInfo, query: &Query, sub: &str) -> Result<Target> {
    let namespace = info.namespace.as_deref().unwrap_or_default();
    let name = info.name.as_deref().unwrap_or_default();
    let pod = read(
        server,
        &format!("/registry/pods/{namespace}/{name}"),
        "pods",
        name,
    )?;
    let container = match sub {
        "portforward" => String::new(),
        _ => container(&pod, query.get("container").unwrap_or_default())?,
    };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        let why = format!("pod {name} does not have a host assigned");
        return fail(Status::bad_request(why));
    }
    let uid = Meta::of(&pod).uid();
    let path = match sub {
        "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
        "portforward" => format!("/portForward/{namespace}/{name}/{uid}"),
        _ => format!("/{sub}/{namespace}/{name}/{uid}/{container}"),
    };
    let mut target = kubelet(server, node, path)?;
    target.query = Some(kubelet_query(query, sub));
    Ok(target)
}

/// The kubelet calls the switches of a stream `input`, `output`, `error`.
fn kubelet_query(query: &Query, sub: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let flag = |name: &str| query.flag(name).ok().flatten().unwrap_or(false);
    match sub {
        "log" => {
            let names = [
                "follow",
                "previous",
                "timestamps",
                "tailLines",
                "limitBytes",
                "sinceSeconds",
                "sinceTime",
                "stream",
            ];
            for name in names {
                out.extend(query.get(name).map(|value| format!("{name}={}", encode(value))));
            }
        }
        "portforward" => {
            out.extend(query.all("ports").map(|value| format!("port={}", encode(value))));
        }
        _ => {
            out.extend(
                query
                    .all("command")
                    .map(|value| format!("command={}", encode(value))),
            );
            for (name, kubelets) in [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ] {
                if flag(name) {
                    out.push(format!("{kubelets}=1"));
                }
            }
        }
    }
    out.join("&")
}

fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// The container that is meant: the named one, or the only one.
fn container(pod: &Value, wanted: &str) -> Result<String> {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str()).map(Into::into).collect()
    };
    let (normal, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let pod_name = Meta::of(pod).name();
    if wanted.is_empty() {
        let default = Meta::of(pod).annotation("kubectl.kubernetes.io/default-container");
        if let Some(name) = default.filter(|name| normal.iter().any(|n| n == name)) {
            return Ok(name.into());
        }
        if let [only] = normal.as_slice() {
            return Ok(only.clone());
        }
        let mut message = format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            normal.join(" ")
        );
        if !init.is_empty() {
            message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        return fail(Status::bad_request(message));
    }
    if normal.iter().chain(&init).chain(&ephemeral).any(|n| n == wanted) {
        return Ok(wanted.into());
    }
    fail(Status::bad_request(format!(
        "container {wanted} is not valid for pod {pod_name}"
    )))
}

/// `[https:]NAME[:PORT]`.
fn scheme_name_port(text: &str) -> (&str, &str, &str) {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [scheme @ ("http" | "https"), name, port] => (scheme, name, port),
        [scheme @ ("http" | "https"), name] => (scheme, name, ""),
        [name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

fn trust(scheme: &str) -> Trust {
    if scheme == "https" {
        Trust::Anyone
    } else {
        Trust::Plain
    }
}

fn pod(server: &ApiServer, info: &RequestInfo) -> Result<Target> {
    let namespace = info.namespace.as_deref().unwrap_or_default();
    let (scheme, name, port) = scheme_name_port(info.name.as_deref().unwrap_or_default());
    let pod = read(
        server,
        &format!("/registry/pods/{namespace}/{name}"),
        "pods",
        name,
    )?;
    let ip: Option<IpAddr> = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    let Some(ip) = ip else {
        return fail(Status::bad_request("address not allowed: the pod has no IP"));
    };
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = ports.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let port = match (port.parse::<u16>(), port.is_empty()) {
        (Ok(number), _) => Some(number),
        (Err(_), true) => Some(ports.next().and_then(container_port).unwrap_or(80)),
        (Err(_), false) => ports.find(|p| p["name"] == port).and_then(container_port),
    };
    let Some(port) = port else {
        return fail(Status::bad_request("no such port in the pod"));
    };
    Ok(Target {
        address: SocketAddr::new(ip, port),
        trust: trust(scheme),
        path: tail(info),
        query: None,
    })
}

fn container_port(port: &Value) -> Option<u16> {
    port["containerPort"].as_u64().and_then(|p| u16::try_from(p).ok())
}

fn service(server: &ApiServer, info: &RequestInfo) -> Result<Target> {
    let namespace = info.namespace.as_deref().unwrap_or_default();
    let (scheme, name, wanted) = scheme_name_port(info.name.as_deref().unwrap_or_default());
    let service = read(
        server,
        &format!("/registry/services/{namespace}/{name}"),
        "services",
        name,
    )?;
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let matches =
        |p: &&Value| p["name"] == wanted || p["port"].as_u64().is_some_and(|n| n.to_string() == wanted);
    let port = match (wanted.is_empty(), ports) {
        (true, [only]) => Some(only),
        (true, _) => ports
            .iter()
            .find(|p| p["name"].as_str().unwrap_or_default().is_empty()),
        (false, _) => ports.iter().find(matches),
    };
    let Some(port) = port else {
        return fail(Status::unavailable(format!(
            "no service port \"{wanted}\" found for service \"{name}\""
        )));
    };
    let address = endpoint(server, namespace, name, port["name"].as_str().unwrap_or_default())?;
    Ok(Target {
        address,
        trust: trust(scheme),
        path: tail(info),
        query: None,
    })
}

/// A ready endpoint of the service, any of them.
fn endpoint(server: &ApiServer, namespace: &str, service: &str, port: &str) -> Result<SocketAddr> {
    let snapshot = server.inner.store.snapshot();
    let prefix = format!("/registry/discovery.k8s.io/endpointslices/{namespace}/");
    let mut found: Vec<SocketAddr> = Vec::new();
    for (_, entry) in snapshot.range(prefix.as_bytes(), b"") {
        let slice = object::value(entry)?;
        if Meta::of(&slice).label("kubernetes.io/service-name") != Some(service) {
            continue;
        }
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports.find(|p| p["name"].as_str().unwrap_or_default() == port);
        let number = number
            .and_then(|p| p["port"].as_u64())
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        let ready = slice["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e["conditions"]["ready"] != false);
        let ips = ready
            .flat_map(|e| e["addresses"].as_array().into_iter().flatten())
            .filter_map(Value::as_str);
        found.extend(ips.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, number))));
    }
    let pick = usize::try_from(crate::random::number() % found.len().max(1) as u64).unwrap_or(0);
    found.get(pick).copied().ok_or_else(|| {
        let message = format!("no endpoints available for service \"{service}\"");
        let cause = Cause {
            reason: "",
            message: message.clone(),
            field: String::new(),
        };
        Failure::from(Status::unavailable(message).with_causes(vec![cause]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_may_carry_a_scheme_and_a_port() {
        assert_eq!(scheme_name_port("web"), ("", "web", ""));
        assert_eq!(scheme_name_port("web:80"), ("", "web", "80"));
        assert_eq!(scheme_name_port("https:web:443"), ("https", "web", "443"));
        assert_eq!(scheme_name_port("https:web:"), ("https", "web", ""));
    }

    #[test]
    fn stream_switches_are_renamed_for_the_kubelet() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false&container=c",
        );
        assert_eq!(
            kubelet_query(&query, "exec"),
            "command=sh&command=-c&command=echo%20a%26b&input=1&output=1"
        );
        let query = Query::parse("follow=true&tailLines=5&container=c");
        assert_eq!(kubelet_query(&query, "log"), "follow=true&tailLines=5");
    }

    #[test]
    fn the_container_is_named_unless_there_is_one() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let failure = container(&pod, "").unwrap_err();
        assert_eq!(
            failure.status.message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(container(&pod, "b").unwrap(), "b");
        assert_eq!(
            container(&pod, "c").unwrap_err().status.message,
            "container c is not valid for pod p"
        );
    }
}
