//! Commands that look into, or load something into, the nodes of a running cluster.
use crate::cli::MapsArgs;
use crate::layout::{Cluster, ClusterName};
use crate::output::{self, Progress, Row, WithHint};
use crate::supervise::recorded;
use crate::{doctor, registry, tools};
use agent_datapath::{Dump, FlowRow, ServiceRow, Still};
use agent_explain::Snapshot;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Imports an image archive into every node.
///
/// # Errors
/// The node and the runtime's message.
pub fn load(name: &ClusterName, archive: &Path, progress: Progress) -> Result<()> {
    doctor::require_root("loading an image")?;
    let cluster = running(name)?;
    let archive = std::path::absolute(archive).context("no such path")?;
    anyhow::ensure!(archive.is_file(), "{} is not a file", archive.display());
    for node in cluster.nodes() {
        let step = progress.step(format!("import into {}", node.name));
        let out = Command::new(tools::require("ctr")?)
            .arg("--address")
            .arg(node.cri_socket())
            .args([
                "--connect-timeout",
                "10s",
                "--namespace",
                "k8s.io",
                "images",
                "import",
            ])
            .arg(&archive)
            .stdin(Stdio::null())
            .output()
            .context("cannot start ctr")?;
        let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        anyhow::ensure!(
            out.status.success(),
            "{} does not take the image: {why}",
            node.name
        );
        step.done();
    }
    Ok(())
}

pub(crate) fn running(name: &ClusterName) -> Result<Cluster> {
    let cluster = registry::existing(name)?;
    if registry::running(&cluster) {
        return Ok(cluster);
    }
    Err(anyhow::anyhow!("cluster {name} does not run")).hint(format!("start it: skep up --name {name}"))
}

/// The pins of each node, or of one, as this process can reach them: a node with namespaces has a bpffs of its own.
pub(crate) fn pins(name: &ClusterName, only: Option<&str>) -> Result<Vec<(String, PathBuf)>> {
    doctor::require_root("reading the maps")?;
    let cluster = running(name)?;
    let alive = recorded(&cluster.dirs().processes());
    let reach = |node: &crate::layout::Node| {
        if cluster.host {
            return Some(node.pins());
        }
        let init = alive.get(&node.name).filter(|p| p.alive())?.pid;
        Some(PathBuf::from(format!("/proc/{init}/root")).join(node.pins().strip_prefix("/").ok()?))
    };
    let nodes = cluster
        .nodes()
        .into_iter()
        .filter(|n| only.is_none_or(|only| only == n.name));
    let found: Vec<(String, PathBuf)> = nodes.filter_map(|n| Some((n.name.clone(), reach(&n)?))).collect();
    anyhow::ensure!(!found.is_empty(), "no such node runs in cluster {}", cluster.name);
    Ok(found)
}

/// One port of a service in one family, as a node's maps hold it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceLine {
    node: String,
    service: String,
    protocol: String,
    frontend: String,
    endpoints: Vec<String>,
    /// How many of the endpoints, the first ones, are on the node.
    local: u16,
    /// Whether only those are chosen.
    local_only: bool,
    generation: u16,
}

impl Row for ServiceLine {
    const COLUMNS: &'static [&'static str] = &[
        "SERVICE",
        "NODE",
        "PROTO",
        "FRONTEND",
        "ENDPOINTS",
        "LOCAL",
        "GENERATION",
    ];
    const WIDE_FROM: usize = 6;

    fn cells(&self) -> Vec<String> {
        let endpoints = match (self.endpoints.is_empty(), self.local_only) {
            (true, _) => "none: refused".to_owned(),
            (false, true) => format!("{} (local only)", self.endpoints.join(" ")),
            (false, false) => self.endpoints.join(" "),
        };
        let (local, generation) = (self.local.to_string(), self.generation.to_string());
        vec![
            self.service.clone(),
            self.node.clone(),
            self.protocol.clone(),
            self.frontend.clone(),
            endpoints,
            local,
            generation,
        ]
    }

    fn name(&self) -> String {
        self.service.clone()
    }
}

/// `skep services`: what the data path of each node does for a service.
///
/// # Errors
/// When a node's maps cannot be read, or none holds the service that was asked for.
pub fn services(only: Option<&str>, args: &MapsArgs) -> Result<()> {
    let mut lines = Vec::new();
    for (node, dump) in dumps(args)? {
        let rows = dump
            .services
            .iter()
            .filter(|row| only.is_none_or(|name| is_of(&row.owner, name)));
        lines.extend(rows.map(|row| ServiceLine {
            node: node.clone(),
            service: row.owner.clone(),
            protocol: format!("{:?}", row.proto),
            frontend: row.frontend.to_string(),
            endpoints: row.backends.iter().map(ToString::to_string).collect(),
            local: row.local,
            local_only: row.local_only,
            generation: row.generation,
        }));
    }
    if let (true, Some(name)) = (lines.is_empty(), only) {
        return Err(anyhow::anyhow!("no node's maps hold the service {name}"))
            .hint("headless services and those of other proxies are never there: kubectl get service -A");
    }
    lines.sort_by(|a, b| (&a.service, &a.frontend, &a.node).cmp(&(&b.service, &b.frontend, &b.node)));
    output::print(args.output, &lines)
}

/// Whether `namespace/service:port` is the service NAME (in `default`) or NAMESPACE/NAME.
pub(crate) fn is_of(owner: &str, name: &str) -> bool {
    let service = owner.rsplit_once(':').map_or(owner, |(service, _)| service);
    let full = if name.contains('/') {
        name.to_owned()
    } else {
        format!("default/{name}")
    };
    service == full
}

/// One map, or one reason for which packets and sockets were counted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MapLine {
    node: String,
    map: String,
    entry: String,
    used: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<u32>,
}

impl Row for MapLine {
    const COLUMNS: &'static [&'static str] = &["NODE", "MAP", "ENTRY", "USED", "CAPACITY", "PRESSURE"];
    const WIDE_FROM: usize = 6;

    fn cells(&self) -> Vec<String> {
        let capacity = self.capacity.map_or_else(String::new, |c| c.to_string());
        let pressure = self
            .capacity
            .map(|c| format!("{:.1} %", 100.0 * self.used as f64 / f64::from(c.max(1))));
        let (node, map, entry) = (self.node.clone(), self.map.clone(), self.entry.clone());
        vec![
            node,
            map,
            entry,
            self.used.to_string(),
            capacity,
            pressure.unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        format!("{}/{}", self.map, self.entry)
    }
}

impl MapLine {
    fn new(node: &str, map: &str, entry: String, used: u64) -> Self {
        Self {
            node: node.to_owned(),
            map: map.to_lowercase(),
            entry,
            used,
            capacity: None,
        }
    }
}

/// The name under which `skep maps` shows the counters.
const COUNTERS: &str = "counters";

/// `skep maps`: how full each map is, or the entries of one.
///
/// # Errors
/// When a node's maps cannot be read, or there is no such map.
pub fn maps(only: Option<&str>, args: &MapsArgs) -> Result<()> {
    let dumps = dumps(args)?;
    let mut lines = Vec::new();
    for (node, dump) in &dumps {
        match only {
            None => lines.extend(dump.maps.iter().map(|m| MapLine {
                capacity: Some(m.capacity),
                ..MapLine::new(node, m.name, String::new(), m.entries as u64)
            })),
            Some(name) => lines.extend(entries(node, dump, &name.to_lowercase())?),
        }
    }
    output::print(args.output, &lines)
}

/// The maps whose entries can be shown.
const SHOWN: [&str; 4] = ["frontends", "backends", "flows", COUNTERS];

/// The entries of one map, in words.
fn entries(node: &str, dump: &Dump, map: &str) -> Result<Vec<MapLine>> {
    let line = |entry: String, used: u64| MapLine::new(node, map, entry, used);
    Ok(match map {
        COUNTERS => dump
            .counters
            .iter()
            .map(|c| line(c.reason.words().to_owned(), c.count))
            .collect(),
        "frontends" => {
            let text = |s: &ServiceRow| {
                format!(
                    "{:?} {} → generation {} of {}",
                    s.proto, s.frontend, s.generation, s.owner
                )
            };
            dump.services
                .iter()
                .map(|s| line(text(s), s.backends.len() as u64))
                .collect()
        }
        "backends" => {
            let of = |s: &ServiceRow, n: usize| {
                format!(
                    "{} slot {n} generation {}: {}",
                    s.owner, s.generation, s.backends[n]
                )
            };
            let all = dump
                .services
                .iter()
                .flat_map(|s| (0..s.backends.len()).map(move |n| of(s, n)));
            all.map(|entry| line(entry, 1)).collect()
        }
        "flows" => {
            let way = |f: &FlowRow| if f.reply { "reply" } else { "request" };
            let text = |f: &FlowRow| {
                format!(
                    "{:?} {} → {} becomes {} ({}, {})",
                    f.proto,
                    f.from,
                    f.to,
                    f.becomes,
                    f.owner,
                    way(f)
                )
            };
            dump.flows.iter().map(|f| line(text(f), f.packets)).collect()
        }
        other => {
            let error = anyhow::anyhow!("there is no map {other} whose entries can be shown");
            return Err(error).hint(format!("there are {}", SHOWN.join(", ")));
        }
    })
}

fn dumps(args: &MapsArgs) -> Result<Vec<(String, Dump)>> {
    let read = |(node, pins): (String, PathBuf)| {
        let dump = Dump::read(&pins).with_context(|| format!("cannot read the maps of {node}"))?;
        Ok((node, dump))
    };
    let pins = pins(&args.which.name, args.node.as_deref())?;
    pins.into_iter().map(read).collect()
}

/// Where one node's data path can be reached from here.
pub(crate) struct Place {
    /// The folder of its pins.
    pub pins: PathBuf,
    /// Its network namespace; `None` if that is our own.
    pub network: Option<PathBuf>,
}

/// Finds a node that runs.
///
/// # Errors
/// The node does not run, or we are not root.
pub(crate) fn place(name: &ClusterName, node: &str) -> Result<Place> {
    let (_, folder) = pins(name, Some(node))?.swap_remove(0);
    let cluster = running(name)?;
    let alive = recorded(&cluster.dirs().processes());
    let init = alive.get(node).filter(|p| p.alive() && !cluster.host);
    Ok(Place {
        network: init.map(|p| PathBuf::from(format!("/proc/{}/ns/net", p.pid))),
        pins: folder,
    })
}

/// The tables of one node as they stand, for whoever explains.
///
/// # Errors
/// When its maps cannot be read.
pub(crate) fn tables(pins: &Path) -> Result<Snapshot> {
    let still = Still::read(pins)?;
    let tables = Snapshot::new(still.settings, still.maps);
    tables.affinity.borrow_mut().extend(still.affinity);
    tables.clock.set(still.now);
    Ok(tables)
}

/// Runs a command on a node: in its namespaces and cgroup, as its own processes are.
///
/// # Errors
/// When the node does not run or the command cannot be started.
pub fn enter(args: &crate::cli::EnterArgs) -> Result<std::process::ExitCode> {
    use std::os::unix::process::CommandExt;
    doctor::require_root("entering a node")?;
    let cluster = running(&args.which.name)?;
    let node = cluster.nodes().into_iter().find(|n| n.name == args.node);
    let node = node.with_context(|| format!("cluster {} has no node {}", cluster.name, args.node))?;
    let shell = [std::ffi::OsString::from("sh")];
    let (program, rest) = if args.command.is_empty() {
        &shell[..]
    } else {
        &args.command[..]
    }
    .split_first()
    .context("no command")?;
    let mut command = if cluster.host {
        Command::new(program)
    } else {
        let init = recorded(&cluster.dirs().processes())
            .get(&node.name)
            .filter(|p| p.alive())
            .map(|p| p.pid);
        let init = init.with_context(|| format!("node {} does not run", node.name))?;
        let hierarchies = crate::cgroup::Hierarchies::detect().context("cgroup2 is not mounted")?;
        hierarchies
            .enter(&format!("{}/system", node.cgroup()))
            .context("cannot enter the node's cgroup")?;
        let mut command = Command::new(tools::require("nsenter")?);
        command
            .args([
                "--target",
                &init.to_string(),
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--pid",
                "--",
            ])
            .arg(program);
        command
    };
    Err(command.args(rest).exec()).with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_its_name_alone_or_with_its_namespace() {
        assert!(is_of("default/hello:http", "hello"));
        assert!(is_of("kube-system/dns:dns", "kube-system/dns"));
        assert!(!is_of("other/hello:http", "hello"));
        assert!(!is_of("default/hello-2:http", "hello"));
    }
}
