//! Settings of services on a node: flags and environment over the file over defaults.
use crate::cli::{AgentArgs, ServicesArgs};
use crate::config::{self, ServicesConfig, ServicesSection};
use crate::output::WithHint;
use agent::ServicesAgentConfig;
use agent::edge::api::ApiAccess;
use agent::edge::settings::EdgeSettings;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where programs and maps are pinned: apart from the nodes of `skep up`.
pub const PINS: &str = "/sys/fs/bpf/skep/services";
/// What is kept over restarts.
const STATE: &str = "/var/lib/skep/services";

/// The configuration of `skep agent --only services`.
///
/// # Errors
/// Names the setting that cannot be used.
pub fn config(args: &AgentArgs) -> Result<ServicesAgentConfig> {
    let file: ServicesConfig = match &args.config {
        Some(path) => config::read(path, "ServicesConfig")?,
        None => ServicesConfig::default(),
    };
    let flags = args.services.clone();
    let node_name = match flags.node_name.or(file.node_name) {
        Some(name) => name,
        None => host_name()?,
    };
    let path = |flag: Option<PathBuf>, file: Option<PathBuf>| flag.or(file);
    Ok(ServicesAgentConfig {
        node_name,
        api: ApiAccess {
            kubeconfig: path(flags.kubeconfig, file.kubeconfig),
            server: flags.api_server.or(file.api_server),
        },
        pin_dir: path(flags.pin_dir, file.pin_dir).unwrap_or_else(|| PINS.into()),
        cgroup: path(flags.cgroup, file.cgroup),
        state_dir: path(flags.state_dir, file.state_dir).unwrap_or_else(|| STATE.into()),
        edge: EdgeSettings {
            // In a cluster that is not ours somebody else may announce them.
            announce: args.services.announce.or(file.services.announce).unwrap_or(false),
            ..settings(&args.services, &file.services)?
        },
    })
}

/// How services are served.
///
/// # Errors
/// Names the setting that cannot be used.
pub fn settings(flags: &ServicesArgs, file: &ServicesSection) -> Result<EdgeSettings> {
    let mut settings = EdgeSettings::default();
    if let Some(text) = flags
        .nodeport_addresses
        .as_ref()
        .or(file.nodeport_addresses.as_ref())
    {
        settings.node_port_addresses = text.parse().context("--nodeport-addresses cannot be used")?;
    }
    if let Some(ranges) = flags.cluster_cidr.as_ref().or(file.cluster_cidr.as_ref()) {
        let ranges = ranges.iter().map(|range| range.parse());
        settings.cluster_cidrs = ranges
            .collect::<Result<_, _>>()
            .context("--cluster-cidr cannot be used")?;
    }
    let health = flags
        .healthz_bind_address
        .as_ref()
        .or(file.healthz_bind_address.as_ref());
    if let Some(text) = health {
        settings.health = address(text).context("--healthz-bind-address cannot be used")?;
    }
    let metrics = flags
        .metrics_bind_address
        .as_ref()
        .or(file.metrics_bind_address.as_ref());
    if let Some(text) = metrics {
        settings.metrics = address(text).context("--metrics-bind-address cannot be used")?;
    }
    settings.endpoint_metrics = flags
        .endpoint_metrics
        .or(file.endpoint_metrics)
        .unwrap_or(settings.endpoint_metrics);
    settings.announce = flags.announce.or(file.announce).unwrap_or(settings.announce);
    Ok(settings)
}

fn address(text: &str) -> Result<Option<SocketAddr>> {
    if matches!(text, "" | "off") {
        return Ok(None);
    }
    let parsed = text.parse().with_context(|| format!("`{text}` is no address"));
    parsed
        .map(Some)
        .hint("write an address and a port, such as 0.0.0.0:10256 or [::]:10256, or `off`")
}

/// The host name in lower case: what a kubelet calls its node when it is told nothing else.
fn host_name() -> Result<String> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    anyhow::ensure!(
        !name.is_empty(),
        "this machine has no host name: name the node with --node-name"
    );
    Ok(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    fn args(line: &str) -> AgentArgs {
        let words = ["skep", "agent", "--only", "services"].into_iter();
        let cli = Cli::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        let Verb::Agent(args) = cli.verb else {
            panic!("not the agent")
        };
        args
    }

    #[test]
    fn without_flags_everything_but_the_way_to_the_api_has_a_default() {
        let config = config(&args("")).unwrap();
        assert_eq!(
            config.edge,
            EdgeSettings {
                announce: false,
                ..EdgeSettings::default()
            }
        );
        assert!(config.api.kubeconfig.is_none() && !config.node_name.is_empty());
    }

    #[test]
    fn flags_count_more_than_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.yaml");
        std::fs::write(
            &path,
            "apiVersion: skep/v1\nkind: ServicesConfig\nnodeName: file\nkubeconfig: /k\nservices: {clusterCidr: [10.0.0.0/8], announce: false}\n",
        )
        .unwrap();
        let line = format!(
            "--config {} --node-name flag --metrics-bind-address off --nodeport-addresses 192.0.2.0/24",
            path.display()
        );
        let config = config(&args(&line)).unwrap();
        assert_eq!(config.node_name, "flag");
        assert_eq!(config.api.kubeconfig, Some("/k".into()));
        assert_eq!(config.edge.cluster_cidrs.len(), 1);
        assert_eq!(config.edge.metrics, None);
        assert!(!config.edge.announce);
        assert_ne!(
            config.edge.node_port_addresses,
            EdgeSettings::default().node_port_addresses
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (line, flag) in [
            ("--nodeport-addresses nowhere", "--nodeport-addresses"),
            ("--cluster-cidr 10.0.0.0", "--cluster-cidr"),
            ("--healthz-bind-address 10256", "--healthz-bind-address"),
        ] {
            let error = config(&args(line)).unwrap_err();
            assert!(format!("{error:#}").contains(flag), "{error:#}");
        }
    }

    #[test]
    fn the_way_to_the_api_is_a_flag_of_services_alone() {
        assert!(Cli::try_parse_from(["skep", "agent", "--kubeconfig", "/k"]).is_err());
    }
}
