//! `skep doctor`, `skep version`, and the checks that other commands share.
use crate::cgroup::Hierarchies;
use crate::cli::UpArgs;
use crate::layout::Cluster;
use crate::output::{self, Format, Row, WithHint};
use crate::{node, tools};
use anyhow::{Context, Result};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

/// Refuses to go on without root's rights.
///
/// # Errors
/// Says that root is needed for `what`.
pub fn require_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(anyhow::anyhow!("{what} needs root's rights")).hint("run it with sudo")
}

/// What a cluster that does not exist yet will be.
///
/// # Errors
/// With `--host`: when the machine has no address or name that a node can have.
pub async fn describe(args: &UpArgs, api_port: u16) -> Result<Cluster> {
    let (host_ips, host_name) = if args.host { host().await? } else { (vec![], None) };
    Ok(Cluster {
        name: args.which.name.clone(),
        nodes: args.nodes.unwrap_or(1),
        store: args.store.unwrap_or_default(),
        api_port,
        host: args.host,
        host_ips,
        host_name,
        lb_pools: args.lb_pool.clone().unwrap_or_default(),
        created: jiff::Timestamp::now().as_second(),
    })
}

/// The machine's addresses and its name as a node.
async fn host() -> Result<(Vec<IpAddr>, Option<String>)> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    let name = node_name(&name)?;
    Ok((addresses().await?, Some(name)))
}

/// The machine's first address of each family, IPv4 first; the loopback address where it has no network.
///
/// # Errors
/// When the kernel does not tell.
pub async fn addresses() -> Result<Vec<IpAddr>> {
    let netlink = agent_network::link::Netlink::connect()?;
    let mut ips = Vec::new();
    let named = |name: &str| name == "lo" || name.starts_with("skep-");
    for device in netlink
        .devices()
        .await?
        .into_iter()
        .filter(|d| d.up && !named(&d.name))
    {
        ips.extend(
            netlink
                .addresses(device.index)
                .await?
                .into_iter()
                .map(|(ip, _)| ip),
        );
    }
    let (first_v4, first_v6) = (
        ips.iter().find(|ip| ip.is_ipv4()).copied(),
        ips.iter().find(|ip| ip.is_ipv6()).copied(),
    );
    ips = first_v4.into_iter().chain(first_v6).collect();
    if ips.is_empty() {
        // A machine without a network can still be a cluster of one.
        ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Ok(ips)
}

/// The node's name that a machine's host name makes, as kubelets derive it: without spaces around it, in lower case.
///
/// # Errors
/// When the host name is not one that a node can have (an object's name: a DNS subdomain).
fn node_name(host_name: &str) -> Result<String> {
    let name = host_name.trim().to_lowercase();
    let wrong = api::names::dns_subdomain(&name);
    if wrong.is_empty() {
        return Ok(name);
    }
    Err(anyhow::anyhow!(
        "this machine's host name {:?} cannot be the name of a node",
        host_name.trim()
    ))
    .hint("give it one of letters, digits, - and . only: hostnamectl set-hostname NAME")
}

/// One look at the machine.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    /// `ok`, `warning` or `missing`.
    state: &'static str,
    found: String,
    /// The next step; empty when all is well.
    fix: String,
}

impl Row for Finding {
    const COLUMNS: &'static [&'static str] = &["CHECK", "STATE", "FOUND", "FIX"];
    const WIDE_FROM: usize = 4;

    fn cells(&self) -> Vec<String> {
        vec![
            self.check.to_owned(),
            self.state.to_owned(),
            self.found.clone(),
            self.fix.clone(),
        ]
    }

    fn name(&self) -> String {
        self.check.to_owned()
    }
}

impl Finding {
    fn new(check: &'static str, found: Result<String, (String, &str)>) -> Self {
        match found {
            Ok(found) => Self {
                check,
                state: "ok",
                found,
                fix: String::new(),
            },
            Err((found, fix)) => Self {
                check,
                state: "missing",
                found,
                fix: fix.to_owned(),
            },
        }
    }

    fn warns(mut self) -> Self {
        if self.state == "missing" {
            self.state = "warning";
        }
        self
    }
}

/// Looks at everything; fails if something that a cluster needs is missing.
///
/// # Errors
/// When the result cannot be printed.
pub fn run(format: Format) -> Result<ExitCode> {
    let findings = findings();
    output::print(format, &findings)?;
    let broken = findings.iter().any(|f| f.state == "missing");
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn findings() -> Vec<Finding> {
    let mut all = vec![
        Finding::new(
            "rights",
            if rustix::process::geteuid().is_root() {
                Ok("root".into())
            } else {
                Err(("an ordinary user".into(), "run skep with sudo"))
            },
        ),
        kernel(),
        Finding::new(
            "BTF",
            there("/sys/kernel/btf/vmlinux", "a kernel with CONFIG_DEBUG_INFO_BTF"),
        ),
        cgroups(),
        Finding::new("bpffs", file_system("bpf")),
        Finding::new("overlayfs", file_system("overlay")),
        Finding::new("IPv6", there("/proc/sys/net/ipv6", "boot without ipv6.disable=1")),
        host_name(),
        runtime(),
    ];
    let etcd = tools::find(tools::ETCD.program).map(|p| p.display().to_string());
    all.extend(["ctr", "runc"].map(|program| {
        let found = tools::find(program).map(|p| p.display().to_string());
        Finding::new(
            program,
            found.ok_or(("nothing".to_owned(), "apt-get install containerd runc")),
        )
    }));
    all.push(
        Finding::new(
            "etcd",
            etcd.ok_or((
                "nothing".to_owned(),
                "only for --store etcd: apt-get install etcd-server",
            )),
        )
        .warns(),
    );
    all.push(
        Finding::new(
            "kubectl",
            tools::find("kubectl")
                .map(|p| p.display().to_string())
                .ok_or(("nothing".to_owned(), "https://kubernetes.io/docs/tasks/tools/")),
        )
        .warns(),
    );
    let images = if node::has_images() {
        Ok("embedded".to_owned())
    } else {
        Err(("none".to_owned(), "build with: cargo xtask build"))
    };
    all.push(Finding::new("images", images));
    all.push(disk());
    all.push(port());
    all
}

fn there(path: &str, fix: &'static str) -> Result<String, (String, &'static str)> {
    if Path::new(path).exists() {
        Ok(path.to_owned())
    } else {
        Err((format!("no {path}"), fix))
    }
}

/// A file system that the kernel has, or gets by loading its module at the first mount.
fn file_system(name: &str) -> Result<String, (String, &'static str)> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|l| l.split_whitespace().last() == Some(name)) {
        Ok("known to the kernel".to_owned())
    } else if installed(name) {
        Ok("a module that is loaded when it is needed".to_owned())
    } else {
        Err((
            "not known to the kernel".to_owned(),
            "load its module, or take a kernel that has it",
        ))
    }
}

/// Whether the running kernel's modules hold this one (modules.dep(5): a line for each, `path/name.ko[.xz]: …`).
fn installed(module: &str) -> bool {
    let path = format!("/lib/modules/{}/modules.dep", release());
    let list = std::fs::read_to_string(path).unwrap_or_default();
    let file = format!("/{module}.ko");
    list.lines()
        .filter_map(|line| line.split(':').next())
        .any(|path| path.contains(&file))
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Only the machine as a node needs it: nodes with namespaces have names of their own.
fn host_name() -> Finding {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let found = node_name(&name).map_err(|_| {
        let found = format!("{:?} cannot be the name of a node", name.trim());
        (found, "for `skep up --host`: hostnamectl set-hostname NAME")
    });
    Finding::new("host name", found).warns()
}

fn kernel() -> Finding {
    let release = release();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Finding::new(
        "kernel",
        if version >= (5, 10) {
            Ok(release)
        } else {
            Err((release, "Skep needs 5.10 or newer"))
        },
    )
}

fn cgroups() -> Finding {
    let found = Hierarchies::detect().map(|h| match h.legacy.len() {
        0 => format!("version 2 at {}", h.unified.display()),
        n => format!(
            "version 2 at {}, {n} hierarchies of version 1",
            h.unified.display()
        ),
    });
    Finding::new(
        "cgroups",
        found.ok_or((
            "no cgroup2".into(),
            "mount -t cgroup2 none /sys/fs/cgroup/unified",
        )),
    )
}

fn runtime() -> Finding {
    let found = tools::containerd_version().map(|(major, minor)| format!("containerd {major}.{minor}"));
    let fine = match found {
        Ok(text) if tools::containerd_version().is_ok_and(|v| v >= (1, 6)) => Ok(text),
        Ok(text) => Err((text, "Skep needs containerd 1.6 or newer")),
        Err(e) => Err((format!("{e:#}"), "apt-get install containerd")),
    };
    Finding::new("runtime", fine)
}

fn disk() -> Finding {
    let at = ["/var/lib/skep", "/var/lib", "/"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("/");
    let free = rustix::fs::statvfs(at)
        .map(|s| s.f_bavail.saturating_mul(s.f_frsize) >> 20)
        .unwrap_or(0);
    let text = format!("{free} MiB free in {at}");
    Finding::new(
        "disk",
        if free >= 2048 {
            Ok(text)
        } else {
            Err((text, "free some space: nodes need 2 GiB"))
        },
    )
    .warns()
}

fn port() -> Finding {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::layout::API_PORT)).is_ok();
    let found = if free {
        Ok("127.0.0.1:6443 is free".to_owned())
    } else {
        Err(("127.0.0.1:6443 is in use".to_owned(), "skep up takes another one"))
    };
    Finding::new("API port", found).warns()
}

/// `skep version`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    skep: &'static str,
    kubernetes: &'static str,
    architecture: &'static str,
}

impl Row for Version {
    const COLUMNS: &'static [&'static str] = &["SKEP", "KUBERNETES", "ARCHITECTURE"];
    const WIDE_FROM: usize = 3;

    fn cells(&self) -> Vec<String> {
        [self.skep, self.kubernetes, self.architecture]
            .map(str::to_owned)
            .to_vec()
    }

    fn name(&self) -> String {
        self.skep.to_owned()
    }
}

/// Prints the version of this binary and of the API it serves.
///
/// # Errors
/// When it cannot be printed.
pub fn version(format: Format) -> Result<()> {
    let version = Version {
        skep: env!("CARGO_PKG_VERSION"),
        kubernetes: "v1.36",
        architecture: std::env::consts::ARCH,
    };
    output::print(format, &[version])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_host_name_becomes_a_node_name_as_kubelets_derive_it() {
        assert_eq!(node_name("Build-7.Example.org\n").unwrap(), "build-7.example.org");
    }

    #[test]
    fn a_host_name_that_no_node_can_have_is_refused_before_anything_starts() {
        // The first is what the kernel says before anybody has set one.
        for bad in ["(none)", "", "my_host", "-a", "a..b"] {
            let error = node_name(bad).unwrap_err();
            assert!(error.to_string().contains("host name"), "{error}");
        }
    }
}
