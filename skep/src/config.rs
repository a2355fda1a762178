//! Configuration files of `skep server` and `skep agent`: what `skep up` writes, and what people write on real machines.
use crate::output::WithHint;
use agent::dns::DnsSettings;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The version of these files.
pub const API_VERSION: &str = "skep/v1";

/// Where objects are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreConfig {
    /// etcd's addresses; the embedded store when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub etcd_endpoints: Vec<String>,
}

/// `kind: ServerConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfig {
    /// `skep/v1`.
    pub api_version: String,
    /// `ServerConfig`.
    pub kind: String,
    /// The embedded store and everything else that must be kept.
    #[serde(default = "default_data")]
    pub data_dir: PathBuf,
    /// Keys and certificates; made when missing.
    #[serde(default = "default_pki")]
    pub pki_dir: PathBuf,
    /// Where the API listens.
    #[serde(default = "default_listen")]
    pub listen: Vec<SocketAddr>,
    /// Whether standard input is one more listening socket.
    #[serde(default)]
    pub listen_on_stdin: bool,
    /// The addresses pods and nodes reach the API at: endpoints of the service `kubernetes`. The machine's own when empty.
    #[serde(default)]
    pub advertise: Vec<IpAddr>,
    /// The port that goes with them.
    #[serde(default = "default_port")]
    pub advertise_port: u16,
    /// More names and addresses for the server's certificate than those that every server has.
    #[serde(default)]
    pub names: Vec<String>,
    /// Where objects are kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// Pods' addresses, one range per family.
    #[serde(default = "default_pods")]
    pub pod_cidrs: Vec<String>,
    /// Services' addresses, one range per family.
    #[serde(default = "default_services")]
    pub service_cidrs: Vec<String>,
    /// Where services of type LoadBalancer get their addresses; nobody gives them any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_pools: Vec<String>,
}

/// `kind: AgentConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// `skep/v1`.
    pub api_version: String,
    /// `AgentConfig`.
    pub kind: String,
    /// The node's name in the cluster.
    pub node_name: String,
    /// The cluster's name, for messages.
    #[serde(default)]
    pub cluster: String,
    /// Access to the API.
    pub kubeconfig: PathBuf,
    /// The container runtime's socket.
    #[serde(default = "default_cri")]
    pub cri_socket: PathBuf,
    /// Pods' volumes, logs and the agent's own state.
    pub state_dir: PathBuf,
    /// Under this many per cent of that disk free the node reports `DiskPressure` and takes no new pods.
    #[serde(default = "default_disk_short")]
    pub disk_pressure_percent: u8,
    /// The agent's sockets.
    pub run_dir: PathBuf,
    /// Where eBPF programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The node's group below each cgroup hierarchy.
    pub cgroup_parent: String,
    /// The cgroup2 folder whose processes' sockets reach services; all of the machine when empty.
    #[serde(default)]
    pub socket_cgroup: String,
    /// The node's addresses, IPv4 first.
    pub node_ips: Vec<IpAddr>,
    /// Certificate of the kubelet's port.
    pub kubelet_cert: PathBuf,
    /// Its key.
    pub kubelet_key: PathBuf,
    /// The CA whose client certificates may use the kubelet's port.
    pub client_ca: PathBuf,
    /// The runtime's CNI folders.
    pub cni_conf_dir: PathBuf,
    /// See there.
    pub cni_bin_dir: PathBuf,
    /// The addresses of the cluster's DNS, which this agent serves on its node and names in pods' `resolv.conf`: those of
    /// the service `kube-system/kube-dns`. No DNS where empty.
    #[serde(default)]
    pub cluster_dns: Vec<IpAddr>,
    /// About names outside the cluster.
    #[serde(default)]
    pub dns: DnsSection,
    /// How services are served.
    #[serde(default)]
    pub services: ServicesSection,
}

/// How a node's DNS answers about names outside the cluster. A server is an address, with or without a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsSection {
    /// The servers to ask; those of the node's `resolv.conf` when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream: Vec<String>,
    /// The servers to ask about the names in a domain.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stub_domains: BTreeMap<String, Vec<String>>,
}

impl DnsSection {
    /// The settings with their addresses read.
    ///
    /// # Errors
    /// Names the server that is none.
    pub fn settings(&self) -> Result<DnsSettings> {
        let all = |list: &[String]| list.iter().map(|s| server(s)).collect::<Result<Vec<_>>>();
        let stubs = self.stub_domains.iter();
        Ok(DnsSettings {
            upstream: all(&self.upstream)?,
            stub_domains: stubs
                .map(|(domain, list)| Ok((domain.clone(), all(list)?)))
                .collect::<Result<_>>()?,
        })
    }
}

fn server(text: &str) -> Result<SocketAddr> {
    let plain = |text: &str| text.parse().map(|ip| SocketAddr::new(ip, agent::dns::PORT));
    text.parse()
        .or_else(|_| plain(text))
        .with_context(|| format!("`{text}` is no DNS server"))
        .hint("write an address such as 192.0.2.53, or with a port: 192.0.2.53:5353, [2001:db8::53]:5353")
}

/// How a node serves services; each as the flag of `skep agent` says that has its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicesSection {
    /// `primary`, or ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodeport_addresses: Option<String>,
    /// The ranges of all pods of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_cidr: Option<Vec<String>>,
    /// An address and port, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthz_bind_address: Option<String>,
    /// An address and port, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_bind_address: Option<String>,
    /// Whether metrics have rows for each endpoint too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_metrics: Option<bool>,
    /// Whether LoadBalancer addresses are announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
}

/// `kind: ServicesConfig`: an agent that only serves services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicesConfig {
    /// `skep/v1`.
    pub api_version: String,
    /// `ServicesConfig`.
    pub kind: String,
    /// The kubeconfig; that of the pod's service account if absent.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// An address in place of the kubeconfig's.
    #[serde(default)]
    pub api_server: Option<String>,
    /// The node's name in the cluster; the host name if absent.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Where eBPF programs and maps are pinned.
    #[serde(default)]
    pub pin_dir: Option<PathBuf>,
    /// The cgroup2 folder whose processes' sockets reach services.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// What is kept over restarts.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// How services are served.
    #[serde(default)]
    pub services: ServicesSection,
}

fn default_data() -> PathBuf {
    // Beside the folders of clusters, which `skep down --all` removes.
    "/var/lib/skep-server/data".into()
}
fn default_pki() -> PathBuf {
    "/var/lib/skep-server/pki".into()
}
fn default_disk_short() -> u8 {
    agent::DISK_SHORT
}

fn default_cri() -> PathBuf {
    "/run/containerd/containerd.sock".into()
}
fn default_listen() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([0u16; 8], crate::layout::API_PORT))]
}
fn default_port() -> u16 {
    crate::layout::API_PORT
}
fn default_pods() -> Vec<String> {
    crate::layout::POD_RANGES.map(str::to_owned).to_vec()
}
fn default_services() -> Vec<String> {
    crate::layout::SERVICE_RANGES.map(str::to_owned).to_vec()
}

/// Reads a configuration file, strictly.
///
/// # Errors
/// Says where the file is wrong.
pub fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<T> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        api_version: String,
        kind: String,
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))
        .hint(format!(
            "write it with `apiVersion: {API_VERSION}` and `kind: {kind}`, or name another file with --config"
        ))?;
    let head: Head = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a configuration", path.display()))?;
    anyhow::ensure!(
        head.api_version == API_VERSION && head.kind == kind,
        "{} is {} {}, wanted is {API_VERSION} {kind}",
        path.display(),
        head.api_version,
        head.kind
    );
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
}

/// Writes a configuration file, readable by its owner alone.
///
/// # Errors
/// The file's error.
pub fn write<T: Serialize>(path: &Path, config: &T) -> Result<()> {
    write_private(path, serde_saphyr::to_string(config)?.as_bytes())
}

/// Writes a file with mode 0600, never half.
///
/// # Errors
/// The file's error, with its path.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let draft = path.with_extension("new");
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(content)?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_text(text: &str) -> Result<ServerConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        read(&path, "ServerConfig")
    }

    #[test]
    fn everything_but_version_and_kind_has_a_default() {
        let config = read_text("apiVersion: skep/v1\nkind: ServerConfig\n").unwrap();
        assert_eq!(config.advertise_port, 6443);
        assert_eq!(config.service_cidrs.len(), 2);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config =
            read_text("apiVersion: skep/v1\nkind: ServerConfig\nadvertise: [10.89.0.1, 'fd89::1']\n")
                .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        write(&path, &config).unwrap();
        assert_eq!(read::<ServerConfig>(&path, "ServerConfig").unwrap(), config);
    }

    #[test]
    fn dns_servers_have_a_port_or_get_the_usual_one() {
        let section = |server: &str| DnsSection {
            upstream: vec![server.to_owned()],
            stub_domains: BTreeMap::from([("corp.example".to_owned(), vec![server.to_owned()])]),
        };
        for (text, address) in [
            ("192.0.2.53", "192.0.2.53:53"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("192.0.2.53:5353", "192.0.2.53:5353"),
        ] {
            let settings = section(text).settings().unwrap();
            let wanted: SocketAddr = address.parse().unwrap();
            assert_eq!(settings.upstream, [wanted]);
            assert_eq!(settings.stub_domains["corp.example"], [wanted]);
        }
        assert!(format!("{:#}", section("dns.example").settings().unwrap_err()).contains("dns.example"));
    }

    #[test]
    fn a_misspelt_field_and_another_kind_are_refused() {
        assert!(read_text("apiVersion: skep/v1\nkind: ServerConfig\ndatadir: /x\n").is_err());
        let error = read_text("apiVersion: skep/v1\nkind: AgentConfig\n").unwrap_err();
        assert!(format!("{error:#}").contains("wanted is skep/v1 ServerConfig"));
    }
}
