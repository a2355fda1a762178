//! The cluster that every peer serves: services with one TCP port and two endpoints each, and one UDP service.
//!
//! All endpoints are alive: the server pod answers for the whole range they are in, so a client may choose any service.
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};
use tests_kube_proxy::path;

/// The only node.
pub const NODE: &str = "bench";
/// Its address, as the peers are told it.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 131, 255, 1);
/// Client, server and all endpoints.
pub const POD_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 14);
/// Where the server pod answers for every address.
pub const ENDPOINT_RANGE: &str = "10.128.0.0/15";
/// Cluster addresses.
pub const SERVICE_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 16);
pub const CLIENT: &str = "10.131.0.2";
/// The server pod's own addresses: the endpoints of the UDP service.
pub const UDP_ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 131, 1, 2), Ipv4Addr::new(10, 131, 1, 3)];
pub const UDP_PORT: u16 = 8053;
pub const TCP_PORT: u16 = 8080;

/// A range as it is written.
pub fn cidr((address, bits): (Ipv4Addr, u8)) -> String {
    format!("{address}/{bits}")
}

/// The address of service `i`.
pub fn vip(i: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a60_0100 + i), 80)
}

/// The address of the UDP service.
pub fn udp_vip() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 53), 53)
}

/// One of the two endpoints (`which` is 0 or 1) of service `i`.
pub fn endpoint(i: u32, which: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a80_0002 + 2 * i + which), TCP_PORT)
}

/// An endpoint that no service has at first; `n` counts the updates.
pub fn replacement(n: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a81_c800 + n % 4096), TCP_PORT)
}

fn name(i: u32) -> String {
    format!("service-{i:05}")
}

/// Service `i`, as the API returns it.
pub fn service(i: u32) -> Value {
    service_object(&name(i), *vip(i).ip(), ("http", "TCP", 80, TCP_PORT))
}

/// The UDP service.
pub fn udp_service() -> Value {
    service_object("udp", *udp_vip().ip(), ("dns", "UDP", 53, UDP_PORT))
}

fn service_object(
    name: &str,
    ip: Ipv4Addr,
    (port_name, proto, port, target): (&str, &str, u16, u16),
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, 1, json!({"app": name})),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": port_name, "protocol": proto, "port": port, "targetPort": target}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The slice of service `i` with these endpoints, at a resource version.
pub fn slice(i: u32, endpoints: &[Ipv4Addr], version: u64) -> Value {
    slice_object(&name(i), endpoints, ("http", "TCP", TCP_PORT), version)
}

/// The slice of service `i` as it is at first.
pub fn first_slice(i: u32) -> Value {
    slice(i, &[*endpoint(i, 0).ip(), *endpoint(i, 1).ip()], 1)
}

/// The slice of the UDP service.
pub fn udp_slice(endpoints: &[Ipv4Addr], version: u64) -> Value {
    slice_object("udp", endpoints, ("dns", "UDP", UDP_PORT), version)
}

fn slice_object(
    service: &str,
    endpoints: &[Ipv4Addr],
    (port_name, proto, port): (&str, &str, u16),
    version: u64,
) -> Value {
    let labels = json!({
        "kubernetes.io/service-name": service,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| {
            json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": NODE,
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{ip}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&format!("{service}-x"), version, labels),
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": port_name, "protocol": proto, "port": port}],
    })
}

/// The node.
pub fn node() -> Value {
    let mut metadata = metadata(NODE, 1, json!({"kubernetes.io/hostname": NODE}));
    if let Some(map) = metadata.as_object_mut() {
        map.remove("namespace");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": {"podCIDR": cidr(POD_RANGE), "podCIDRs": [cidr(POD_RANGE)]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": NODE_ADDRESS},
            {"type": "Hostname", "address": NODE},
        ]},
    })
}

/// The range of cluster addresses.
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "uid": "kubernetes", "resourceVersion": "1"},
        "spec": {"cidrs": [cidr(SERVICE_RANGE)]},
    })
}

/// What the API has at a path, of a cluster with this many services.
pub fn of_cluster(path: &str, services: u32) -> Vec<Value> {
    match path {
        path::SERVICES => (0..services).map(service).chain([udp_service()]).collect(),
        path::SLICES => (0..services)
            .map(first_slice)
            .chain([udp_slice(&UDP_ENDPOINTS, 1)])
            .collect(),
        path::NODES => vec![node()],
        _ => vec![service_cidr()],
    }
}

fn metadata(name: &str, version: u64, labels: Value) -> Value {
    json!({
        "name": name,
        "namespace": "default",
        "uid": format!("uid-{name}"),
        "resourceVersion": version.to_string(),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
    })
}
