//! A pod's network as its worker sees it: addresses before the sandbox, the data path after it.

use agent_datapath::Datapath;
use agent_network::PodNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// What a sandbox is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Annotations by which the CNI plugin learns them.
    pub annotations: BTreeMap<String, String>,
}

/// Gives pods their addresses and connects them to the data path.
pub trait Network: Send + Sync {
    /// The addresses of the pod `uid`: new ones or those it has.
    ///
    /// # Errors
    /// A message for people.
    fn allocate(&self, uid: &str) -> Result<Addresses, String>;

    /// Gives them back.
    ///
    /// # Errors
    /// A message for people.
    fn release(&self, uid: &str) -> Result<(), String>;

    /// Puts the data path's programs on the node's end of the pod's device; fine when they are there.
    ///
    /// # Errors
    /// A message for people.
    fn attach(&self, uid: &str) -> Result<(), String>;
}

/// The node's own network and data path.
pub struct NodeNetwork {
    /// Addresses and routes.
    pub pods: Arc<PodNetwork>,
    /// Programs and maps.
    pub datapath: Arc<Datapath>,
}

impl Network for NodeNetwork {
    fn allocate(&self, uid: &str) -> Result<Addresses, String> {
        let given = self.pods.allocate(uid).map_err(|e| e.to_string())?;
        Ok(Addresses {
            annotations: PodNetwork::annotations(&given),
            ips: given.ips,
        })
    }

    fn release(&self, uid: &str) -> Result<(), String> {
        self.pods.release(uid).map_err(|e| e.to_string())
    }

    fn attach(&self, uid: &str) -> Result<(), String> {
        let device = self.pods.host_device(uid);
        self.datapath
            .attach_pod_device(&device)
            .map_err(|e| format!("{device}: {e}"))
    }
}
