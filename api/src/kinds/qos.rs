//! The quality-of-service class of a pod, by the published rules.

use super::access::{at, list};
use crate::quantity::Quantity;
use serde_json::Value;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort` for a Pod object, from the requests and limits of its containers (or of
/// the pod itself where it has its own).
pub fn qos_class(pod: &Value) -> &'static str {
    let whole = at(pod, "spec.resources");
    let parts: Vec<&Value> = if amounts(whole).next().is_some() {
        vec![whole]
    } else {
        let containers = list(pod, "spec.containers")
            .iter()
            .chain(list(pod, "spec.initContainers"));
        containers.map(|container| at(container, "resources")).collect()
    };
    if parts.iter().all(|part| amounts(part).next().is_none()) {
        "BestEffort"
    } else if parts.iter().all(|part| is_guaranteed(part)) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// All non-zero requests and limits of CPU and memory.
fn amounts(resources: &Value) -> impl Iterator<Item = Quantity> + use<'_> {
    let sides = ["requests", "limits"].into_iter();
    let each = sides.flat_map(move |side| {
        COMPUTE
            .into_iter()
            .filter_map(move |name| amount(resources, side, name))
    });
    each.filter(|quantity| !quantity.is_zero())
}

fn amount(resources: &Value, side: &str, name: &str) -> Option<Quantity> {
    Quantity::from_json(resources.get(side)?.get(name)?).ok()
}

fn is_guaranteed(resources: &Value) -> bool {
    COMPUTE.into_iter().all(|name| {
        let limit = amount(resources, "limits", name).filter(|limit| !limit.is_zero());
        limit.is_some() && limit == amount(resources, "requests", name).or(limit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_follow_requests_and_limits() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(
            qos_class(&pod(
                json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1Gi"}})
            )),
            "Guaranteed"
        );
        assert_eq!(
            qos_class(&pod(
                json!({"limits": both, "requests": {"cpu": "1", "memory": "1Mi"}})
            )),
            "Burstable"
        );
        let two = json!({"spec": {"containers": [{"resources": {"limits": both}}, {"resources": {}}]}});
        assert_eq!(qos_class(&two), "Burstable");
    }
}
