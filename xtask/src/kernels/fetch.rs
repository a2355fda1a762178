//! Debian packages of other suites, from the mirror that this machine's apt uses, checked against their pins.

use super::{Kernel, Package};
use crate::step;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kept across clones, since a `.deb` never changes.
pub fn cache_dir() -> PathBuf {
    crate::setup::tool_dir().join("kernels")
}

/// The package as a file, downloaded if it is not cached.
pub fn package(kernel: &Kernel, package: &Package) -> Result<PathBuf> {
    let cached = cache_dir().join(format!("{}.deb", package.sha256));
    if cached.is_file() {
        return Ok(cached);
    }
    std::fs::create_dir_all(cache_dir())?;
    let part = cached.with_extension("part");
    let url = format!(
        "{}/{}",
        mirror(&kernel.archive)?,
        package.path.replace('+', "%2B")
    );
    let name = package.path.rsplit('/').next().unwrap_or_default();
    step::quiet(
        &format!("downloading {name}"),
        Command::new("/usr/lib/apt/apt-helper").arg("download-file").arg(&url).arg(&part),
    )
    .with_context(|| {
        format!(
            "kernel {}: {name} cannot be had: pin superseded?\nhint: look up the present version in {} and put it into tests/kernels.toml",
            kernel.label, kernel.suite
        )
    })?;
    let sum = hex(&Sha256::digest(std::fs::read(&part)?));
    if sum != package.sha256 {
        bail!(
            "{name}: its SHA-256 is {sum}, tests/kernels.toml pins {}",
            package.sha256
        );
    }
    std::fs::rename(&part, &cached)?;
    Ok(cached)
}

/// The address of `archive` ("debian", "debian-security") on the mirror that apt is configured for.
pub fn mirror(archive: &str) -> Result<String> {
    let addresses = configured_addresses()?;
    let find = |tail: &str| {
        addresses
            .iter()
            .find(|a| a.trim_end_matches('/').ends_with(tail))
            .cloned()
    };
    let exact = find(&format!("/{archive}"));
    // A mirror that carries the main archive usually carries the security one beside it.
    let beside = find("/debian").map(|a| {
        format!(
            "{}/{archive}",
            a.trim_end_matches('/').trim_end_matches("/debian")
        )
    });
    let found = exact.or(beside).map(|a| a.trim_end_matches('/').to_string());
    found.context("this machine's apt configuration names no Debian mirror\nhint: the kernel matrix needs one in /etc/apt/sources.list*")
}

/// Every address in apt's sources: `deb` lines and `URIs:` fields, comments left out.
fn configured_addresses() -> Result<Vec<String>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|e| e.path()).filter(|p| is_source(p)));
    }
    let text: String = files
        .iter()
        .filter_map(|f| std::fs::read_to_string(f).ok())
        .collect::<Vec<_>>()
        .join("\n");
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|l| l.starts_with("deb ") || l.starts_with("URIs:"));
    Ok(lines
        .flat_map(str::split_whitespace)
        .filter(|w| w.starts_with("http"))
        .map(str::to_string)
        .collect())
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "list" || e == "sources")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
