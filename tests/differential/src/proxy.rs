//! Who serves the services of a node: Skep's planner and programs, or the real kube-proxy.
use crate::place::{At, NODE_IPS, PODS, SERVICES};
use crate::probe::Changes;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tests_kube_proxy::{Api, Event, KubeProxy, Mode, Setup, path};
use tests_lab::{Lab, NODE};

/// Serves the services of a node as its objects say.
pub trait Proxy {
    /// Takes in what changed, and returns when packets are treated accordingly.
    ///
    /// # Errors
    /// It cannot, or does not in time.
    fn follow(&mut self, changes: &Changes) -> Result<()>;
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().filter_map(|ip| ip.parse().ok()).collect()
}

/// The objects themselves, read as an agent reads them, planned and written.
pub struct Skep {
    lab: Lab,
    uplink: Option<bool>,
}

impl Skep {
    /// On the devices of a place.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn start(mut lab: Lab) -> Result<Self> {
        lab.planner.set_node(node(None));
        for at in [At::Client, At::Ends] {
            lab.datapath.attach_pod_device(at.device())?;
        }
        lab.datapath
            .attach_uplink(At::Beyond.device(), agent_datapath::XdpChoice::Never)?;
        Ok(Self { lab, uplink: None })
    }

    fn take(&mut self, object: &Value) -> Result<()> {
        match object["kind"].as_str() {
            Some("Service") => {
                let service: Service = serde_json::from_value(object.clone())?;
                let view = agent_services::ServiceView::of(&service).context("a service without a name")?;
                self.lab.planner.service(view);
            }
            _ => {
                let slice: EndpointSlice = serde_json::from_value(object.clone())?;
                let view = agent_services::SliceView::of(&slice).context("a slice of no service")?;
                self.lab.planner.slice(view);
            }
        }
        Ok(())
    }
}

fn node(zone: Option<&str>) -> agent_services::Node {
    agent_services::Node {
        name: NODE.into(),
        zone: zone.map(Into::into),
        addresses: ips(&NODE_IPS),
        node_port_addresses: agent_services::node_port_addresses(&ips(&NODE_IPS), &[]),
        pod_ranges: PODS.iter().map(|r| tests_scenarios::parse_range(r)).collect(),
        dns: Vec::new(),
    }
}

impl Proxy for Skep {
    fn follow(&mut self, changes: &Changes) -> Result<()> {
        self.lab.planner.set_zone(changes.zone.as_deref().map(Into::into));
        changes.put.iter().try_for_each(|o| self.take(o))?;
        for (kind, name) in &changes.gone {
            let name = agent_services::ObjectName::new("ns", name);
            match kind.as_str() {
                "Service" => self.lab.planner.service_gone(&name),
                _ => self.lab.planner.slice_gone(&name),
            }
        }
        self.lab.program()?;
        let uplink = self.lab.planner.has_external_fronts();
        if self.uplink.replace(uplink) != Some(uplink) {
            let ranges = &self.lab.config.service_ranges;
            let cookie = agent_datapath::netns_cookie();
            let settings = self.lab.planner.node().settings(ranges, uplink, cookie);
            self.lab.datapath.set_settings(&settings)?;
        }
        Ok(())
    }
}

/// The real one, over an API of its own.
pub struct Real {
    api: Api,
    proxy: KubeProxy,
    zone: Option<String>,
    steps: u16,
}

/// For one sync.
const PATIENCE: Duration = Duration::from_secs(30);
/// Addresses of a service that tells what has been synced: its port, and that of its endpoints, change with each step.
const MARKS: [(&str, &str); 2] = [
    ("10.96.255.254", "10.244.1.2"),
    ("fd00:10:96::ffff", "fd00:10:244:1::2"),
];

impl Real {
    /// In the caller's namespaces.
    ///
    /// # Errors
    /// Its program is not built, or does not start.
    pub fn start(program: &Path) -> Result<Self> {
        if !program.is_file() {
            bail!(
                "{} is not built: run `cargo xtask peers kube-proxy`",
                program.display()
            );
        }
        let api = Api::serve(|kind| match kind {
            path::SERVICES => vec![mark(0)],
            path::SLICES => vec![mark_slice(0, 0), mark_slice(1, 0)],
            path::NODES => vec![node_object(None, 1)],
            _ => vec![ranges()],
        })?;
        let setup = Setup {
            node: NODE,
            pods: PODS.join(","),
            pause: Some(Duration::from_millis(1)),
        };
        let proxy = KubeProxy::start(program, Mode::Nftables, &setup)?;
        let mut real = Self {
            api,
            proxy,
            zone: None,
            steps: 0,
        };
        real.synced()?;
        Ok(real)
    }

    fn put(&self, path: &'static str, mut object: Value) {
        object["metadata"]["resourceVersion"] = self.api.next_version().to_string().into();
        object["metadata"]["uid"] = object["metadata"]["name"].clone();
        self.api.put(path, &object);
    }

    /// Both families know of the new labels.
    fn label(&mut self, zone: &Option<String>) -> Result<()> {
        if self.zone == *zone {
            return Ok(());
        }
        self.zone.clone_from(zone);
        self.put(path::NODES, node_object(zone.as_deref(), self.api.next_version()));
        let mut left = 2;
        while left > 0 {
            left -= u32::from(matches!(self.proxy.next_event(PATIENCE)?, Event::Labels));
        }
        Ok(())
    }

    /// Waits until rules stand that were made after the last mark. Each watch tells of its changes in order, so that they stand too.
    fn synced(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while let Some(missing) = self.missing()? {
            let left = end.saturating_duration_since(Instant::now());
            self.proxy
                .next_event(left)
                .with_context(|| format!("the last change is not in the rules yet: {missing}"))?;
        }
        Ok(())
    }

    /// A mark that the rules do not have yet.
    fn missing(&self) -> Result<Option<String>> {
        let port = 1000 + self.steps;
        for ((vip, end), family) in MARKS.iter().zip(["ip", "ip6"]) {
            let out = Command::new("nft")
                .args(["list", "table", family, "kube-proxy"])
                .output()?;
            let rules = String::from_utf8_lossy(&out.stdout);
            for mark in [format!("{vip} . tcp . {port} :"), format!("{end} . {port} }}")] {
                if !rules.contains(&mark) {
                    return Ok(Some(format!("{mark} in {rules}")));
                }
            }
        }
        Ok(None)
    }
}

impl Proxy for Real {
    fn follow(&mut self, changes: &Changes) -> Result<()> {
        self.label(&changes.zone)?;
        for object in &changes.put {
            let path = match object["kind"].as_str() {
                Some("Service") => path::SERVICES,
                _ => path::SLICES,
            };
            self.put(path, object.clone());
        }
        for (kind, name) in &changes.gone {
            let path = if kind == "Service" {
                path::SERVICES
            } else {
                path::SLICES
            };
            self.api.delete(path, "ns", name);
        }
        self.steps += 1;
        self.put(path::SERVICES, mark(self.steps));
        for family in 0..2 {
            self.put(path::SLICES, mark_slice(family, self.steps));
        }
        self.synced()
    }
}

fn mark(step: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "mark", "name": "mark", "resourceVersion": "1", "uid": "mark"},
        "spec": {
            "type": "ClusterIP", "clusterIP": MARKS[0].0, "clusterIPs": [MARKS[0].0, MARKS[1].0],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "p", "protocol": "TCP", "port": 1000 + step}],
        },
        "status": {"loadBalancer": {}},
    })
}

fn mark_slice(family: usize, step: u16) -> Value {
    let name = format!("mark-{family}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "mark", "name": name, "resourceVersion": "1", "uid": name, "labels": {"kubernetes.io/service-name": "mark"},
        },
        "addressType": if family == 0 { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [MARKS[family].1], "nodeName": "there"}],
        "ports": [{"name": "p", "protocol": "TCP", "port": 1000 + step}],
    })
}

fn node_object(zone: Option<&str>, version: u64) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": NODE});
    if let Some(zone) = zone {
        labels["topology.kubernetes.io/zone"] = zone.into();
    }
    let addresses: Vec<_> = NODE_IPS[..2]
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "uid": NODE, "resourceVersion": version.to_string(), "labels": labels},
        "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"]},
        "status": {"addresses": addresses},
    })
}

fn ranges() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "uid": "kubernetes", "resourceVersion": "1"},
        "spec": {"cidrs": SERVICES},
    })
}
