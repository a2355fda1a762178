//! The ServiceCIDR object that tells everybody from which ranges services get their addresses.

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{ensure, failed, read, send};
use crate::cidr::Cidr;
use crate::{ApiServer, StartError};

const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs";
/// As upstream names it.
const NAME: &str = "kubernetes";

/// Makes the object `kubernetes` of the configured ranges if it is missing, and says that it can be used.
pub(super) async fn default(server: &ApiServer) -> Result<(), StartError> {
    let object = object(&server.inner.config.service_cidrs);
    ensure(server, PATH, object).await?;
    let path = format!("{PATH}/{NAME}");
    let mut now = read(server, &path).await;
    if now["status"]["conditions"].is_array() {
        return Ok(());
    }
    now["status"] = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}]});
    let response = send(server, Method::PUT, &format!("{path}/status"), &now).await;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(failed(&now, response).await)
    }
}

fn object(ranges: &[Cidr]) -> Value {
    let cidrs: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": NAME},
        "spec": {"cidrs": cidrs}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_all_ranges() {
        let ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(|c| c.parse().unwrap());
        assert_eq!(
            object(&ranges)["spec"]["cidrs"],
            json!(["10.96.0.0/16", "fd00:10:96::/112"])
        );
    }
}
