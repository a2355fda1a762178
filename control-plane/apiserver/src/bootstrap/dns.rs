//! The Service of the cluster's DNS, which every node serves for itself.

use std::net::IpAddr;

use http::Method;
use serde_json::{Value, json};

use super::{failed, send};
use crate::cidr::Cidr;
use crate::{ApiServer, StartError};

/// Where in each service range the DNS is: as everywhere, so that nodes of any make can be told.
const PLACE: u64 = 10;
const PATH: &str = "/api/v1/namespaces/kube-system/services";

/// Makes the service `kube-dns` if it is missing. It has no selector and no endpoints: the agents answer at its
/// addresses. A cluster whose address was given to something else keeps running without it.
pub(super) async fn service(server: &ApiServer) -> Result<(), StartError> {
    let Some(object) = object(&server.inner.config.service_cidrs) else {
        return Ok(());
    };
    let response = send(server, Method::POST, PATH, &object).await;
    match response.status().as_u16() {
        201 | 409 => Ok(()),
        422 => {
            let why = failed(&object, response).await;
            tracing::warn!(error = %why, "the cluster has no service for its DNS");
            Ok(())
        }
        _ => Err(failed(&object, response).await),
    }
}

fn object(ranges: &[Cidr]) -> Option<Value> {
    let addresses: Vec<IpAddr> = ranges.iter().filter_map(|c| c.nth(PLACE)).collect();
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let families: Vec<&str> = addresses
        .iter()
        .map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let policy = if texts.len() > 1 {
        "PreferDualStack"
    } else {
        "SingleStack"
    };
    let labels =
        json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "skep"});
    Some(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": texts.first()?, "clusterIPs": texts,
            "ipFamilies": families, "ipFamilyPolicy": policy,
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}]}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_at_the_tenth_address_of_each_range() {
        let ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(|c| c.parse().unwrap());
        let made = object(&ranges).unwrap();
        assert_eq!(made["spec"]["clusterIPs"], json!(["10.96.0.10", "fd00:10:96::a"]));
        let small = ["10.96.0.0/29"].map(|c| c.parse().unwrap());
        assert_eq!(object(&small), None);
    }
}
