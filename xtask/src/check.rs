//! `cargo xtask check`: what must hold at every commit, besides tests.

use crate::step;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {}

/// Packages that decide and never do: no runtime, no sockets, no kernel, no clock.
const DOMAIN: &[&str] = &[
    "api",
    "datapath-abi",
    "datapath-logic",
    "machinery-plan",
    "agent-names",
    "agent-pods",
    "agent-services",
    "agent-explain",
    "control-plane-scheduler",
    "control-plane-controllers",
];
const EDGE_ONLY: &[&str] = &[
    "tokio",
    "hyper",
    "tonic",
    "aya",
    "etcd-client",
    "redb",
    "kube",
    "rustix",
    "nix",
];

/// Who alone may use what, directly.
const ONLY: &[(&str, &[&str])] = &[
    ("aya", &["agent-datapath"]),
    ("redb", &["control-plane-store"]),
    ("etcd-client", &["control-plane-store"]),
    ("rtnetlink", &["agent-network"]),
    ("hickory-proto", &["agent-dns"]),
];

/// Ways to read a clock or to wait, which a domain crate is never given.
const CLOCKS: &[&str] = &[
    "Timestamp::now(",
    "Zoned::now(",
    "SystemTime::now(",
    "Instant::now(",
    "thread::sleep(",
];

pub fn run(_args: Args) -> Result<()> {
    step::quiet(
        "formatting",
        Command::new("cargo").args(["fmt", "--all", "--check"]),
    )?;
    layers()?;
    clocks()?;
    neutral_text()?;
    step::this_xtask(&["build-ebpf"])?;
    step::quiet(
        "lints",
        Command::new("cargo").args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    )?;
    step::quiet(
        "documentation",
        Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    step::this_xtask(&["codegen", "--check"])?;
    eprintln!("check: all good");
    Ok(())
}

/// Reads `cargo metadata` and fails on a dependency that crosses the line between domain and edge.
fn layers() -> Result<()> {
    eprintln!("==> layers");
    let out = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()?;
    if !out.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    let graph = Graph::read(&serde_json::from_slice(&out.stdout)?)?;
    let mut wrong = Vec::new();
    for &package in DOMAIN {
        for edge in graph
            .reach(package)
            .iter()
            .filter(|d| EDGE_ONLY.contains(&d.as_str()))
        {
            wrong.push(format!(
                "domain package `{package}` reaches `{edge}`: move that work to an edge crate"
            ));
        }
    }
    for (library, allowed) in ONLY {
        for member in graph
            .members
            .iter()
            .filter(|m| !allowed.contains(&m.as_str()) && !m.starts_with("tests-"))
        {
            if graph.direct(member).contains(*library) {
                wrong.push(format!("`{member}` uses `{library}`, which only {allowed:?} may"));
            }
        }
    }
    fail_if_any(wrong)
}

/// Package names and who depends on whom (normal dependencies only).
struct Graph {
    members: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Result<Self> {
        let name_of: BTreeMap<&str, &str> = list(&metadata["packages"])
            .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
            .collect();
        let members = list(&metadata["workspace_members"])
            .filter_map(|id| name_of.get(id.as_str()?).map(|n| n.to_string()))
            .collect();
        let mut edges = BTreeMap::<String, BTreeSet<String>>::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let from = name_of
                .get(node["id"].as_str().context("node without id")?)
                .context("unknown node")?;
            let to = list(&node["deps"])
                .filter(|d| list(&d["dep_kinds"]).any(|k| k["kind"].is_null()))
                .filter_map(|d| name_of.get(d["pkg"].as_str()?).map(|n| n.to_string()));
            edges.entry(from.to_string()).or_default().extend(to);
        }
        Ok(Self { members, edges })
    }

    fn direct(&self, package: &str) -> BTreeSet<String> {
        self.edges.get(package).cloned().unwrap_or_default()
    }

    fn reach(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![package.to_string()];
        while let Some(next) = todo.pop() {
            for dep in self.direct(&next) {
                if seen.insert(dep.clone()) {
                    todo.push(dep);
                }
            }
        }
        seen
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Domain crates are given the time: none may ask for it.
fn clocks() -> Result<()> {
    eprintln!("==> no clock in domain crates");
    let mut wrong = Vec::new();
    for package in DOMAIN {
        let dir = package_dir(package);
        for file in rust_files(&dir.join("src"))? {
            let text = std::fs::read_to_string(&file)?;
            let outside_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in outside_tests.lines().enumerate() {
                if !line.trim_start().starts_with("//") && CLOCKS.iter().any(|c| line.contains(c)) {
                    wrong.push(format!(
                        "{}:{}: a domain crate reads a clock: pass the time in",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    fail_if_any(wrong)
}

/// The project stands alone: no path of a build machine and no host of a package registry in what is committed.
fn neutral_text() -> Result<()> {
    eprintln!("==> neutral text");
    let out = Command::new("git").args(["ls-files"]).output()?;
    let files = String::from_utf8(out.stdout)?;
    // Spelled in two halves so that this file does not find itself.
    let foreign = [
        concat!("/work/", "main"),
        concat!("/work/", "shared"),
        concat!("deb.debian", ".org"),
        concat!("proxy.golang", ".org"),
    ];
    let mut wrong = Vec::new();
    for file in files
        .lines()
        .filter(|f| !f.ends_with(".lock") && !f.ends_with("go.sum"))
    {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        for word in foreign.iter().filter(|w| text.contains(**w)) {
            wrong.push(format!("{file}: names `{word}`"));
        }
    }
    fail_if_any(wrong)
}

/// `control-plane-store` lies in `control-plane/store`, `datapath-abi` in `datapath/abi`, `api` in `api`.
fn package_dir(package: &str) -> PathBuf {
    for root in ["control-plane", "datapath", "machinery", "agent"] {
        if let Some(rest) = package.strip_prefix(root).and_then(|r| r.strip_prefix('-')) {
            return Path::new(root).join(rest);
        }
    }
    PathBuf::from(package)
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let is_tests = path.file_name().is_some_and(|n| n == "tests" || n == "tests.rs");
        if path.is_dir() && !is_tests {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") && !is_tests {
            found.push(path);
        }
    }
    Ok(found)
}

fn fail_if_any(wrong: Vec<String>) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("\n"))
}
