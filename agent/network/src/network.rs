//! The pod network of one node: who has which address, and what the node itself needs.
use crate::ipam::{Exhausted, Ipam};
use crate::link::{LinkError, Netlink};
use crate::routes::{self, PeerNode};
use crate::{Prefix, cni, sysctl};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the pod network of a node is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ranges this node's pods get their addresses from (`spec.podCIDRs`), IPv4 first.
    pub pod_cidrs: Vec<Prefix>,
    /// Where the given addresses are kept between two runs of the agent.
    pub state_file: PathBuf,
    /// The container runtime's CNI configuration folder.
    pub cni_conf_dir: PathBuf,
    /// The packet size of pod devices in bytes; the kernel's default (1500) when absent.
    pub mtu: Option<u32>,
}

/// Why the pod network cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No address left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The kernel refused a change.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A file of ours cannot be written or read.
    #[error("{path}: cannot be {verb}")]
    File {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// The file's error.
        source: std::io::Error,
    },
    /// The state file is not what we wrote.
    #[error(
        "{path}: is damaged; remove it and restart the agent, which rebuilds it from the running sandboxes"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// The addresses of one pod and the node-side device that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// One address per range of the node, IPv4 first (`status.podIPs` in this order).
    pub ips: Vec<IpAddr>,
    /// The node's end of the pod's veth pair.
    pub device: String,
}

/// Keeps the pods' addresses and the node's routes.
///
/// One owner per node; every change of the addresses is in the state file before the call returns.
pub struct PodNetwork {
    config: Config,
    ipam: Mutex<Ipam>,
}

impl PodNetwork {
    /// Reads the state of the last run, prepares the kernel's settings, and writes the CNI configuration: from then on
    /// the runtime reports its network as ready.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing was given to any pod then.
    pub fn open(config: Config) -> Result<Self, NetworkError> {
        let ipam = read_state(&config.state_file)?.with_ranges(config.pod_cidrs.clone());
        sysctl::forward()
            .and_then(|()| sysctl::no_address_probing())
            .map_err(LinkError::Setting)?;
        let conf = config.cni_conf_dir.join(cni::CONF_FILE);
        write_atomically(&conf, cni::configuration(config.mtu).as_bytes())?;
        Ok(Self {
            config,
            ipam: Mutex::new(ipam),
        })
    }

    /// The ranges this node's pods get their addresses from.
    pub fn pod_cidrs(&self) -> &[Prefix] {
        &self.config.pod_cidrs
    }

    /// The addresses of the pod with this uid: new ones, or the ones it has.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], or [`NetworkError::File`] when the state cannot be kept.
    pub fn allocate(&self, pod_uid: &str) -> Result<PodAddresses, NetworkError> {
        let mut ipam = self.lock();
        let known = ipam.pods().contains_key(pod_uid);
        let ips = ipam.allocate(pod_uid)?;
        if !known && let Err(e) = self.save(&ipam) {
            ipam.release(pod_uid);
            return Err(e);
        }
        Ok(PodAddresses {
            ips,
            device: host_device(pod_uid),
        })
    }

    /// Gives the addresses of a pod back: when its last sandbox is removed. Fine when it has none.
    ///
    /// # Errors
    /// [`NetworkError::File`]; the addresses are free all the same.
    pub fn release(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let mut ipam = self.lock();
        if ipam.release(pod_uid) {
            self.save(&ipam)
        } else {
            Ok(())
        }
    }

    /// Replaces what is remembered by what the runtime's sandboxes hold: their pods' uids and annotations.
    ///
    /// # Errors
    /// [`NetworkError::File`].
    pub fn restore<'a, I>(&self, sandboxes: I) -> Result<(), NetworkError>
    where
        I: IntoIterator<Item = (&'a str, Vec<IpAddr>)>,
    {
        let mut ipam = self.lock();
        let held = sandboxes.into_iter().filter(|(_, ips)| !ips.is_empty());
        ipam.restore(held.map(|(uid, ips)| (uid.to_owned(), ips)).collect());
        self.save(&ipam)
    }

    /// The annotations a sandbox must carry so that the plugin gives it these addresses.
    pub fn annotations(addresses: &PodAddresses) -> BTreeMap<String, String> {
        let ips: Vec<String> = addresses.ips.iter().map(IpAddr::to_string).collect();
        [
            (cni::ADDRESSES_ANNOTATION.to_owned(), ips.join(",")),
            (cni::DEVICE_ANNOTATION.to_owned(), addresses.device.clone()),
        ]
        .into()
    }

    /// The addresses that a sandbox's annotations name; empty when it is none of ours.
    pub fn addresses_in(annotations: &BTreeMap<String, String>) -> Vec<IpAddr> {
        let text = annotations
            .get(cni::ADDRESSES_ANNOTATION)
            .map_or("", String::as_str);
        text.split(',').filter_map(|ip| ip.parse().ok()).collect()
    }

    /// The node's end of the veth pair of the pod with this uid.
    pub fn host_device(&self, pod_uid: &str) -> String {
        host_device(pod_uid)
    }

    /// Makes the node's routes lead to these peers' pods, and to no other's.
    ///
    /// # Errors
    /// [`NetworkError::Link`]: the routes that could be written are written.
    pub async fn sync_node_routes(&self, peers: &[PeerNode]) -> Result<(), NetworkError> {
        let wanted = routes::wanted(&self.config.pod_cidrs, peers);
        let diff = routes::sync(&Netlink::connect()?, &wanted).await?;
        if diff != routes::Diff::default() {
            tracing::info!(
                added = diff.add.len(),
                removed = diff.remove.len(),
                "node routes changed"
            );
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Ipam> {
        // A panic elsewhere cannot leave it half changed: every change is one call.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, ipam: &Ipam) -> Result<(), NetworkError> {
        let text = serde_json::to_vec(ipam).expect("addresses and texts always serialise");
        write_atomically(&self.config.state_file, &text)
    }
}

/// The node's end of the veth pair of the pod with this uid: `skep-` and ten hexadecimal digits (device names have at
/// most 15 bytes).
pub fn host_device(pod_uid: &str) -> String {
    format!("skep-{:010x}", hash(pod_uid) >> 24)
}

/// A locally administered hardware address made from a name; `end` tells the two ends of a pair apart.
pub(crate) fn mac(name: &str, end: u8) -> [u8; 6] {
    let h = hash(name).to_be_bytes();
    [0x02, h[0], h[1], h[2], h[3], (h[4] & 0xfe) | (end & 1)]
}

/// FNV-1a with a final mix: stable across versions, unlike the standard library's hasher.
fn hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn read_state(path: &Path) -> Result<Ipam, NetworkError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| NetworkError::Damaged {
            path: path.to_owned(),
            source,
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Ipam::default()),
        Err(source) => Err(NetworkError::File {
            path: path.to_owned(),
            verb: "read",
            source,
        }),
    }
}

fn write_atomically(path: &Path, text: &[u8]) -> Result<(), NetworkError> {
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // The runtime reads only *.conf, *.conflist and *.json of the folder: the dot file is never seen half written.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = path.with_file_name(format!(".{name}.new"));
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|source| NetworkError::File {
        path: path.to_owned(),
        verb: "written",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_fits_and_depends_on_the_pod() {
        let a = host_device("7f0c5a0e-7d2f-4f7b-9d8e-0c1f2a3b4c5d");
        assert_eq!(a.len(), 15);
        assert_ne!(a, host_device("7f0c5a0e-7d2f-4f7b-9d8e-0c1f2a3b4c5e"));
        assert_eq!(a, host_device("7f0c5a0e-7d2f-4f7b-9d8e-0c1f2a3b4c5d"));
    }

    #[test]
    fn the_two_ends_of_a_pair_have_different_local_unicast_addresses() {
        let (a, b) = (mac("skep-0123456789", 0), mac("skep-0123456789", 1));
        assert_ne!(a, b);
        assert_eq!(a[0], 0x02);
    }

    #[test]
    fn annotations_carry_the_addresses_there_and_back() {
        let addresses = PodAddresses {
            ips: vec!["10.244.1.5".parse().unwrap(), "fd00:10:244:1::5".parse().unwrap()],
            device: host_device("x"),
        };
        assert_eq!(
            PodNetwork::addresses_in(&PodNetwork::annotations(&addresses)),
            addresses.ips
        );
    }

    #[test]
    fn a_damaged_state_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.json");
        std::fs::write(&path, "{").unwrap();
        assert!(
            read_state(&path)
                .unwrap_err()
                .to_string()
                .contains("ipam.json: is damaged")
        );
    }
}
