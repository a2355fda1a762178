//! Registers the node, renews its lease, keeps its status up to date.
//!
//! Upstream's contract (`kubelet` and node lifecycle controller): a lease in `kube-node-lease` renewed every 10 s for
//! 40 s, the status patched when it changed and otherwise every five minutes.

use crate::machine::{Machine, Pressure};
use crate::node::{self, Facts, Health};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const REPORT: Duration = Duration::from_secs(300);
/// Pause after the API refused or did not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// What the node is.
#[derive(Clone, Debug)]
pub struct HeartbeatConfig {
    /// Its name.
    pub name: String,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Port of the kubelet API.
    pub port: u16,
    /// The runtime as `containerd://1.6.20`.
    pub runtime: String,
    /// The machine.
    pub machine: Machine,
    /// The agent's state folder, whose disk is watched.
    pub state: PathBuf,
    /// Under this many per cent free the node reports `DiskPressure`.
    pub disk_short: u8,
}

/// The task that speaks for the node.
pub struct Heartbeat {
    config: HeartbeatConfig,
    client: Client,
    health: watch::Receiver<Health>,
    /// The object as registered.
    node: Node,
    reported: Option<(NodeStatus, Instant)>,
    lease: Option<Lease>,
}

impl Heartbeat {
    /// Registers the node, however long the API takes to answer, and reports its first status.
    pub async fn register(config: HeartbeatConfig, client: Client, health: watch::Receiver<Health>) -> Self {
        let mut heartbeat = Self {
            config,
            client,
            health,
            node: Node::default(),
            reported: None,
            lease: None,
        };
        loop {
            match heartbeat.try_register().await {
                Ok(node) => {
                    heartbeat.node = node;
                    break;
                }
                Err(error) => tracing::warn!(%error, "node not registered, will be tried again"),
            }
            sleep(AGAIN).await;
        }
        heartbeat.report().await;
        heartbeat
    }

    /// The node as the API has it.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: &self.config.name,
            ips: &self.config.ips,
            machine: &self.config.machine,
            runtime: &self.config.runtime,
            port: self.config.port,
            disk_short: self.config.disk_short,
        }
    }

    fn status(&self) -> NodeStatus {
        let old = self
            .reported
            .as_ref()
            .map(|(s, _)| s)
            .or(self.node.status.as_ref());
        let pressure = Pressure::read(&self.config.state);
        node::status(
            &self.facts(),
            &self.health.borrow(),
            pressure,
            old,
            Timestamp::now(),
        )
    }

    async fn try_register(&self) -> kube::Result<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut object = node::object(&self.facts());
        object.status = Some(self.status());
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let known = api.get(&self.config.name).await?;
                let metadata = serde_json::json!({
                    "labels": object.metadata.labels, "annotations": object.metadata.annotations});
                let patch = serde_json::json!({"metadata": metadata});
                // An agent that comes back leaves alone what people set meanwhile: taints, other labels.
                if missing(&known, &object) {
                    return api
                        .patch(&self.config.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await;
                }
                Ok(known)
            }
            other => other,
        }
    }

    /// Renews, reports, until dropped.
    pub async fn run(mut self) {
        let mut renew = interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = renew.tick() => {
                    self.renew().await;
                    self.report().await;
                }
                changed = self.health.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    while !self.report().await {
                        sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    /// Patches the status when it changed or is old. False when the API did not take it.
    async fn report(&mut self) -> bool {
        let status = self.status();
        let fresh = self
            .reported
            .as_ref()
            .is_some_and(|(old, at)| !node::differs(old, &status) && at.elapsed() < REPORT);
        if fresh {
            return true;
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(serde_json::json!({"status": body(&status)}));
        match api
            .patch_status(&self.config.name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => {
                self.reported = Some((status, Instant::now()));
                true
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                // Someone deleted the node while it lives: it comes back, as upstream's does after a restart.
                if let Ok(node) = self.try_register().await {
                    self.node = node;
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, "node status not reported, will be tried again");
                false
            }
        }
    }

    async fn renew(&mut self) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let renewed = match self.lease.take() {
            Some(mut lease) => {
                lease.spec = Some(self.lease_spec());
                api.replace(&self.config.name, &PostParams::default(), &lease)
                    .await
            }
            None => self.take_lease(&api).await,
        };
        match renewed {
            Ok(lease) => self.lease = Some(lease),
            Err(error) => tracing::warn!(%error, "node lease not renewed, will be tried again"),
        }
    }

    async fn take_lease(&self, api: &Api<Lease>) -> kube::Result<Lease> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.config.name.clone(),
            uid: self.node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(self.config.name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let lease = Lease {
            metadata,
            spec: Some(self.lease_spec()),
        };
        match api.create(&PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let mut known = api.get(&self.config.name).await?;
                known.spec = Some(self.lease_spec());
                api.replace(&self.config.name, &PostParams::default(), &known)
                    .await
            }
            other => other,
        }
    }

    fn lease_spec(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.config.name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }
    }
}

/// The status as a strategic patch: addresses are replaced, or old ones would stay.
fn body(status: &NodeStatus) -> serde_json::Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    if let Some(list) = body
        .get_mut("addresses")
        .and_then(serde_json::Value::as_array_mut)
    {
        list.insert(0, serde_json::json!({"$patch": "replace"}));
    }
    body
}

/// Whether `known` lacks a label or annotation of `wanted`.
fn missing(known: &Node, wanted: &Node) -> bool {
    let lacks = |known: &Option<std::collections::BTreeMap<String, String>>,
                 wanted: &Option<std::collections::BTreeMap<String, String>>| {
        let has = |name: &String, value: &String| known.as_ref().and_then(|m| m.get(name)) == Some(value);
        wanted.iter().flatten().any(|(name, value)| !has(name, value))
    };
    lacks(&known.metadata.labels, &wanted.metadata.labels)
        || lacks(&known.metadata.annotations, &wanted.metadata.annotations)
}
