//! What `skep server` takes for itself where its configuration says nothing: the machine's addresses, and every name that
//! clients may reach it by.
use crate::config::ServerConfig;
use agent_network::Prefix;
use std::net::IpAddr;

/// Names by which pods and people on the machine reach a server, besides its addresses.
const NAMES: [&str; 7] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Fills in what was left out: the advertised addresses are `machine`'s, and the certificate is good for all names and
/// addresses of the server.
pub fn complete(mut config: ServerConfig, machine: &[IpAddr]) -> ServerConfig {
    if config.advertise.is_empty() {
        config.advertise = machine.to_vec();
    }
    let services = config.service_cidrs.iter().filter_map(|range| first_of(range));
    let addresses = config.advertise.iter().copied().chain(services);
    let names = NAMES
        .iter()
        .map(ToString::to_string)
        .chain(addresses.map(|ip| ip.to_string()));
    for name in names.collect::<Vec<_>>() {
        if !config.names.contains(&name) {
            config.names.push(name);
        }
    }
    config
}

/// The address of the service `kubernetes` in a range of services: its first one.
fn first_of(range: &str) -> Option<IpAddr> {
    let (base, length) = range.split_once('/')?;
    Prefix::containing(base.parse().ok()?, length.parse().ok()?)?.nth(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(text: &str) -> ServerConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, format!("apiVersion: skep/v1\nkind: ServerConfig\n{text}")).unwrap();
        crate::config::read(&path, "ServerConfig").unwrap()
    }

    #[test]
    fn a_server_that_was_told_nothing_is_reached_at_the_machines_addresses() {
        let got = complete(config(""), &["192.0.2.7".parse().unwrap()]);
        assert_eq!(got.advertise, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        for name in [
            "192.0.2.7",
            "kubernetes.default.svc",
            "10.96.0.1",
            "fd00:10:96::1",
            "127.0.0.1",
        ] {
            assert!(got.names.iter().any(|n| n == name), "{name}: {:?}", got.names);
        }
    }

    #[test]
    fn what_was_given_stays_and_comes_first() {
        let given = config("advertise: [198.51.100.1]\nnames: [api.example.org, localhost]\n");
        let got = complete(given, &["192.0.2.7".parse().unwrap()]);
        assert_eq!(got.advertise, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(got.names[..2], ["api.example.org", "localhost"]);
        assert_eq!(got.names.iter().filter(|n| *n == "localhost").count(), 1);
        assert!(!got.names.iter().any(|n| n == "192.0.2.7"));
    }

    #[test]
    fn the_configurations_that_are_shipped_are_read() {
        let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let server: ServerConfig =
            crate::config::read(&examples.join("server.yaml"), "ServerConfig").unwrap();
        assert_eq!(server, config(""));
        let agent: crate::config::AgentConfig =
            crate::config::read(&examples.join("agent.yaml"), "AgentConfig").unwrap();
        assert_eq!(agent.node_ips.len(), 2);
    }
}
