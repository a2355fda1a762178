//! What every machine of the matrix carries besides its modules: init, the test binaries, `ip`, and their libraries.

use super::initramfs::Archive;
use crate::step;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The levels that run on every kernel of the matrix.
const PACKAGES: &[&str] = &["tests-packets", "tests-sockets", "tests-verifier"];

/// Files for the guest: path in the guest, content.
pub struct Payload {
    files: Vec<(String, Vec<u8>)>,
}

/// Commands that tests call and busybox has.
const APPLETS: &[&str] = &[
    "mount", "umount", "sh", "cat", "ls", "sleep", "true", "false", "kill", "timeout",
];

impl Payload {
    /// Adds everything to an archive, with the list of test binaries that init reads.
    pub fn add_to(&self, archive: &mut Archive) {
        for (path, content) in &self.files {
            archive.file(path, content);
        }
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
    }
}

/// The data path's tests.
pub fn build() -> Result<Payload> {
    assemble(PACKAGES, &["ip", "tc", "nsenter", "unshare", "sysctl"], &[])
}

/// A whole node: the binary as it is installed, a container runtime, kubectl, and the test that uses them.
pub fn whole_node(kubectl: PathBuf) -> Result<Payload> {
    let tools = [
        "ip",
        "nsenter",
        "unshare",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
    ];
    let mut payload = assemble(
        &["tests-node"],
        &tools,
        &[crate::build::target_dir()?.join("release/skep"), kubectl],
    )?;
    let text = |path: &str, content: &str| (path.to_string(), content.as_bytes().to_vec());
    payload.files.extend([
        text("etc/whole-node", ""),
        text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        text("etc/hostname", "whole\n"),
        ("etc/hello.yaml".into(), std::fs::read("examples/hello.yaml")?),
        ("etc/client.yaml".into(), std::fs::read("examples/client.yaml")?),
    ]);
    Ok(payload)
}

fn assemble(packages: &[&str], tools: &[&str], more: &[PathBuf]) -> Result<Payload> {
    let mut binaries = Vec::new();
    for package in packages {
        binaries.extend(test_binaries(package)?);
    }
    let init = guest_init()?;
    let found = |tool: &&str| {
        step::find(tool).with_context(|| format!("{tool} is missing\nhint: run `cargo xtask setup`"))
    };
    let mut programs: Vec<PathBuf> = tools.iter().map(found).collect::<Result<_>>()?;
    programs.extend_from_slice(more);
    let mut files = vec![("init".to_string(), stripped(&init)?)];
    for (name, path) in &binaries {
        files.push((format!("tests/{name}"), stripped(path)?));
    }
    for program in &programs {
        let name = program
            .file_name()
            .and_then(|n| n.to_str())
            .context("a program without a name")?;
        files.push((format!("bin/{name}"), std::fs::read(program)?));
    }
    let busybox = step::find("busybox").context("busybox is missing\nhint: run `cargo xtask setup`")?;
    files.push(("bin/busybox".to_string(), std::fs::read(busybox)?));
    let everything = binaries.iter().map(|(_, p)| p).chain(&programs).chain([&init]);
    for library in libraries(everything)? {
        let inside = library
            .to_str()
            .context("a library path is not text")?
            .trim_start_matches('/')
            .to_string();
        files.push((inside, std::fs::read(&library)?));
    }
    Ok(Payload { files })
}

/// Builds the tests of a package and returns its test binaries, named `package::binary`.
fn test_binaries(package: &str) -> Result<Vec<(String, PathBuf)>> {
    let artifacts = cargo_artifacts(&["test", "--no-run", "-p", package])?;
    let tests = artifacts
        .into_iter()
        .filter(|a| a["profile"]["test"] == Value::Bool(true));
    Ok(tests
        .filter_map(|a| {
            Some((
                a["target"]["name"].as_str()?.to_string(),
                PathBuf::from(a["executable"].as_str()?),
            ))
        })
        .map(|(name, path)| (format!("{package}::{name}"), path))
        .collect())
}

fn guest_init() -> Result<PathBuf> {
    let artifacts = cargo_artifacts(&["build", "-p", "tests-guest"])?;
    let built = artifacts
        .iter()
        .find(|a| a["target"]["name"] == "guest-init")
        .and_then(|a| a["executable"].as_str());
    Ok(PathBuf::from(built.context("cargo built no guest-init")?))
}

fn cargo_artifacts(args: &[&str]) -> Result<Vec<Value>> {
    eprintln!("==> cargo {}", args.join(" "));
    let out = Command::new("cargo")
        .args(args)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !out.status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    let messages = serde_json::Deserializer::from_slice(&out.stdout).into_iter::<Value>();
    Ok(messages
        .filter_map(Result::ok)
        .filter(|m| m["reason"] == "compiler-artifact")
        .collect())
}

/// The binary without its debug information: an initramfs lives in memory.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let copy = std::env::temp_dir().join(format!("skep-strip-{}", std::process::id()));
    let status = Command::new("strip")
        .arg("-o")
        .arg(&copy)
        .arg(path)
        .status()
        .context("`strip` cannot be started")?;
    if !status.success() {
        bail!("strip of {} failed", path.display());
    }
    let bytes = std::fs::read(&copy)?;
    std::fs::remove_file(&copy)?;
    Ok(bytes)
}

/// The shared libraries and loaders that these programs need, as the dynamic loader itself lists them.
fn libraries<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let out = Command::new("ldd").arg(program).output()?;
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let word = line
                .split("=>")
                .last()
                .unwrap_or_default()
                .split_whitespace()
                .next()
                .unwrap_or_default();
            if word.starts_with('/') {
                found.insert(PathBuf::from(word));
            }
        }
    }
    Ok(found)
}
