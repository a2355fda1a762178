//! What is known of this node where services are concerned: from its Node object, its devices and the other nodes.

use super::ranges::cover;
use super::settings::EdgeSettings;
use agent_network::Prefix;
use agent_network::interfaces::Interface;
use k8s_openapi::api::core::v1::Node;
use machinery_client::Cache;
use machinery_plan::Key;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint by which the cluster autoscaler says that a node is about to go.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What is known of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Whether there is a Node object of its name.
    pub exists: bool,
    /// Its uid, for events.
    pub uid: String,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether the cluster autoscaler is about to delete it.
    pub to_be_deleted: bool,
    /// The primary address of each family, IPv4 first; from the Node object, else the first address of an uplink.
    pub primary: Vec<IpAddr>,
    /// Every address that the node has, the primary ones first.
    pub addresses: Vec<IpAddr>,
    /// Those that serve node ports.
    pub node_ports: Vec<IpAddr>,
    /// Where health-check ports listen.
    pub health_listen: Vec<IpAddr>,
    /// The ranges of the cluster's pods.
    pub pod_ranges: Vec<Prefix>,
    /// Devices that packets from outside arrive at, by name, with the kernel's index.
    pub uplinks: BTreeMap<String, u32>,
    /// Devices that look like pods' (of use where another network plugin made them).
    pub pod_devices: BTreeMap<String, u32>,
}

impl NodeFacts {
    /// Whether load balancers outside should send traffic here (kube-proxy's `/healthz`).
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.exists && !self.deleting && !self.to_be_deleted
    }

    /// Puts together what is known.
    #[must_use]
    pub fn gather(own: &str, nodes: &[Arc<Node>], devices: &[Interface], settings: &EdgeSettings) -> Self {
        let object = nodes.iter().find(|n| n.metadata.name.as_deref() == Some(own));
        let mut facts = object.map(|n| Self::of(n)).unwrap_or_default();
        let up: Vec<IpAddr> = devices
            .iter()
            .filter(|d| d.is_uplink())
            .flat_map(|d| d.addresses.iter().map(|(ip, _)| *ip))
            .collect();
        for v4 in [true, false] {
            if !facts.primary.iter().any(|ip| ip.is_ipv4() == v4) {
                facts
                    .primary
                    .extend(up.iter().find(|ip| ip.is_ipv4() == v4).copied());
            }
        }
        let held = devices.iter().flat_map(|d| d.addresses.iter().map(|(ip, _)| *ip));
        facts.addresses = unique(facts.primary.iter().copied().chain(held));
        facts.node_ports = settings
            .node_port_addresses
            .choose(&facts.addresses, &facts.primary);
        facts.health_listen = settings.node_port_addresses.listen(&facts.node_ports);
        facts.pod_ranges = if settings.cluster_cidrs.is_empty() {
            cover(
                &nodes
                    .iter()
                    .flat_map(|n| crate::peers::pod_cidrs(n))
                    .collect::<Vec<_>>(),
            )
        } else {
            settings.cluster_cidrs.clone()
        };
        facts.uplinks = names(devices, Interface::is_uplink);
        facts.pod_devices = names(devices, Interface::is_pod_device);
        facts
    }

    /// Addresses that a device has for a service's sake (the cluster's DNS) are none of the node's.
    fn leave_out(&mut self, services: &[IpAddr]) {
        for list in [&mut self.addresses, &mut self.node_ports, &mut self.health_listen] {
            list.retain(|ip| !services.contains(ip));
        }
    }

    fn of(node: &Node) -> Self {
        let meta = &node.metadata;
        let internal = internal_addresses(node);
        let first = |v4| internal.iter().find(move |ip| ip.is_ipv4() == v4).copied();
        Self {
            exists: true,
            uid: meta.uid.clone().unwrap_or_default(),
            zone: meta
                .labels
                .as_ref()
                .and_then(|l| l.get(ZONE))
                .map(|z| z.as_str().into()),
            deleting: meta.deletion_timestamp.is_some(),
            to_be_deleted: is_marked(node),
            primary: first(true).into_iter().chain(first(false)).collect(),
            ..Self::default()
        }
    }
}

/// The addresses at which other nodes reach a node.
pub(super) fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|a| a.type_ == "InternalIP");
    internal.filter_map(|a| a.address.parse().ok()).collect()
}

/// Whether the cluster autoscaler is about to delete it.
fn is_marked(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().any(|t| t.key == TO_BE_DELETED)
}

/// Whether a node is being deleted, or about to be.
pub(super) fn is_leaving(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_some() || is_marked(node)
}

fn names(devices: &[Interface], choose: impl Fn(&Interface) -> bool) -> BTreeMap<String, u32> {
    let chosen = devices.iter().filter(|d| choose(d));
    chosen.map(|d| (d.name.clone(), d.index)).collect()
}

fn unique<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    all.fold(Vec::new(), |mut list, one| {
        if !list.contains(&one) {
            list.push(one);
        }
        list
    })
}

/// Publishes the facts whenever they change, from the first complete list of nodes on, until dropped. Of the addresses that
/// the devices have, those of services are left out.
pub async fn watch(
    own: String,
    nodes: Cache<Node>,
    mut devices: watch::Receiver<Vec<Interface>>,
    (settings, services): (EdgeSettings, Vec<IpAddr>),
    facts: watch::Sender<Option<NodeFacts>>,
) {
    nodes.synced().await;
    let mut changes = nodes.changes();
    let key = Key::new("", &own);
    loop {
        changes.mark_unchanged();
        let all = if settings.cluster_cidrs.is_empty() {
            nodes.list()
        } else {
            nodes.get(&key).into_iter().collect()
        };
        let mut now = NodeFacts::gather(&own, &all, &devices.borrow_and_update(), &settings);
        now.leave_out(&services);
        facts.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&now);
            *known = Some(now);
            changed
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            changed = devices.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, body: serde_json::Value) -> Arc<Node> {
        let mut object = json!({"metadata": {"name": name}});
        for part in ["spec", "status"] {
            object[part] = body[part].clone();
        }
        for (key, value) in body["metadata"].as_object().into_iter().flatten() {
            object["metadata"][key.as_str()] = value.clone();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn device(name: &str, addresses: &[&str], pod: bool) -> Interface {
        Interface {
            index: 1,
            name: name.to_owned(),
            up: true,
            loopback: false,
            mac: None,
            leads_elsewhere: pod,
            has_master: false,
            addresses: addresses.iter().map(|a| (a.parse().unwrap(), 24)).collect(),
            default_route: false,
        }
    }

    #[test]
    fn the_node_object_names_the_primary_addresses_and_devices_the_rest() {
        let addresses = json!([
            {"type": "Hostname", "address": "a"},
            {"type": "InternalIP", "address": "192.0.2.9"},
            {"type": "InternalIP", "address": "2001:db8::9"}]);
        let node = node(
            "a",
            json!({"status": {"addresses": addresses}, "metadata": {"labels": {ZONE: "z1"}}}),
        );
        let devices = [
            device("eth0", &["192.0.2.1", "192.0.2.9", "2001:db8::9"], false),
            device("cali1", &[], true),
        ];
        let facts = NodeFacts::gather("a", &[node], &devices, &EdgeSettings::default());
        assert!(facts.is_eligible());
        assert_eq!(facts.zone.as_deref(), Some("z1"));
        assert_eq!(facts.primary, facts.node_ports);
        assert_eq!(facts.addresses.len(), 3);
        assert_eq!(facts.addresses[0], "192.0.2.9".parse::<IpAddr>().unwrap());
        assert_eq!(facts.uplinks, BTreeMap::from([("eth0".to_owned(), 1)]));
        assert_eq!(facts.pod_devices, BTreeMap::from([("cali1".to_owned(), 1)]));
    }

    #[test]
    fn without_a_node_object_the_devices_tell_the_addresses_and_nobody_should_send_traffic() {
        let devices = [device("eth0", &["192.0.2.1"], false)];
        let facts = NodeFacts::gather("a", &[], &devices, &EdgeSettings::default());
        assert!(!facts.is_eligible());
        assert_eq!(facts.node_ports, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn pods_have_the_ranges_of_all_nodes_or_the_configured_ones() {
        let nodes = [
            node("a", json!({"spec": {"podCIDRs": ["10.244.0.0/24", "fd00::/64"]}})),
            node("b", json!({"spec": {"podCIDRs": ["10.244.1.0/24"]}})),
        ];
        let facts = NodeFacts::gather("a", &nodes, &[], &EdgeSettings::default());
        assert_eq!(facts.pod_ranges.len(), 3);
        let settings = EdgeSettings {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            ..EdgeSettings::default()
        };
        let facts = NodeFacts::gather("a", &nodes, &[], &settings);
        assert_eq!(facts.pod_ranges, settings.cluster_cidrs);
    }

    #[test]
    fn a_node_on_its_way_out_is_not_eligible() {
        let taint = json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}});
        let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for body in [taint, deleting] {
            let facts = NodeFacts::gather("a", &[node("a", body)], &[], &EdgeSettings::default());
            assert!(facts.exists && !facts.is_eligible());
        }
    }
}
