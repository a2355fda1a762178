//! A pod's resolver configuration and hosts file.
//!
//! Kubernetes documentation, "DNS for Services and Pods" and "Adding entries to Pod /etc/hosts".

use crate::model::PodModel;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Most search domains a resolver reads (upstream's limit).
const MOST_SEARCHES: usize = 32;
/// Most name servers a resolver reads.
const MOST_SERVERS: usize = 3;

/// A `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, such as `ndots:5`.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads the text of a `resolv.conf`; the last `search` line counts.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next().unwrap_or_default();
            let rest = words.map(str::to_owned);
            match keyword {
                "nameserver" => out.servers.extend(rest.take(1)),
                "search" | "domain" => out.searches = rest.collect(),
                "options" => out.options.extend(rest),
                _ => {}
            }
        }
        out
    }
}

/// The cluster's resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// Addresses of the cluster's DNS service; empty when there is none.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
}

/// The resolver configuration of `pod` on a node with `host`'s.
#[must_use]
pub fn resolver(pod: &PodModel, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let policy = pod.spec().dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut out = match policy {
        "None" => Resolver::default(),
        _ if cluster_first && !cluster.servers.is_empty() => in_cluster(pod.namespace(), cluster, host),
        _ => host.clone(),
    };
    merge(pod, &mut out);
    out.servers.truncate(MOST_SERVERS);
    out.searches.truncate(MOST_SEARCHES);
    out
}

fn in_cluster(namespace: &str, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let domain = &cluster.domain;
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.clone(),
    ];
    push_new(&mut searches, &host.searches);
    let servers = cluster.servers.iter().map(ToString::to_string).collect();
    Resolver {
        servers,
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

/// Adds `spec.dnsConfig`; an option given there replaces one of the same name.
fn merge(pod: &PodModel, out: &mut Resolver) {
    let Some(config) = &pod.spec().dns_config else {
        return;
    };
    push_new(
        &mut out.servers,
        config.nameservers.as_deref().unwrap_or_default(),
    );
    push_new(&mut out.searches, config.searches.as_deref().unwrap_or_default());
    for option in config.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        out.options.retain(|o| o.split(':').next() != Some(name));
        out.options.push(match option.value.as_deref() {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
}

fn push_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The pod's `/etc/hosts`. A host-network pod gets the node's own with the aliases added.
#[must_use]
pub fn hosts(pod: &PodModel, ips: &[IpAddr], hostname: &str, domain: &str, node_hosts: &str) -> String {
    let mut out = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let mut out = String::from(LOOPBACK);
        let full = full_name(pod, hostname, domain);
        for ip in ips {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{ip}\t{}",
                full.as_deref()
                    .map_or(hostname.to_owned(), |f| format!("{f}\t{hostname}"))
            );
        }
        out
    };
    let aliases = pod.spec().host_aliases.iter().flatten();
    let mut aliases = aliases.peekable();
    if aliases.peek().is_some() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ = writeln!(
            out,
            "{}\t{}",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        );
    }
    out
}

const LOOPBACK: &str = "# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";

/// `hostname.subdomain.namespace.svc.domain` for pods with a subdomain.
fn full_name(pod: &PodModel, hostname: &str, domain: &str) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{}.svc.{domain}", pod.namespace()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::{Value, json};

    fn of(spec: Value) -> Resolver {
        let cluster = ClusterDns {
            servers: vec!["10.96.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
        };
        let host = Resolver::parse("nameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n");
        resolver(&pod(spec), &cluster, &host)
    }

    #[test]
    fn cluster_first_asks_the_cluster_and_searches_its_domains_before_the_hosts() {
        let got = of(json!({"containers": []}));
        assert_eq!(got.servers, ["10.96.0.10"]);
        assert_eq!(
            got.searches,
            [
                "default.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.org"
            ]
        );
        assert_eq!(got.options, ["ndots:5"]);
    }

    #[test]
    fn host_network_pods_fall_back_to_the_hosts_resolver() {
        let got = of(json!({"hostNetwork": true, "containers": []}));
        assert_eq!(
            (got.servers, got.options),
            (vec!["192.0.2.1".to_owned()], vec!["timeout:1".to_owned()])
        );
        let with = of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet", "containers": []}));
        assert_eq!(with.servers, ["10.96.0.10"]);
    }

    #[test]
    fn policy_none_takes_only_what_the_pod_says() {
        let config = json!({"nameservers": ["192.0.2.9"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        let got = of(json!({"dnsPolicy": "None", "dnsConfig": config, "containers": []}));
        assert_eq!(
            (got.servers, got.options),
            (
                vec!["192.0.2.9".to_owned()],
                vec!["ndots:2".to_owned(), "edns0".to_owned()]
            )
        );
    }

    #[test]
    fn an_option_of_the_pod_replaces_the_clusters() {
        let got = of(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}, "containers": []}));
        assert_eq!(got.options, ["ndots:1"]);
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod = pod(json!({"subdomain": "sub", "containers": [],
            "hostAliases": [{"ip": "192.0.2.5", "hostnames": ["foo", "bar"]}]}));
        let text = hosts(&pod, &["10.0.0.5".parse().unwrap()], "web", "cluster.local", "");
        assert!(
            text.contains("10.0.0.5\tweb.sub.default.svc.cluster.local\tweb\n"),
            "{text}"
        );
        assert!(text.ends_with("192.0.2.5\tfoo\tbar\n"), "{text}");
    }
}
