//! Programs that are not ours: where they are, and what to do when they are not there.
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// A program that a cluster needs, what for, and how to get it.
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// What for.
    pub why: &'static str,
    /// How to get it on Debian.
    pub install: &'static str,
}

/// What every node needs.
pub const RUNTIME: &[Tool] = &[
    Tool {
        program: "containerd",
        why: "runs containers",
        install: "apt-get install containerd",
    },
    Tool {
        program: "ctr",
        why: "imports images",
        install: "apt-get install containerd",
    },
    Tool {
        program: "runc",
        why: "starts containers",
        install: "apt-get install runc",
    },
];
/// What `--store etcd` needs.
pub const ETCD: Tool = Tool {
    program: "etcd",
    why: "keeps the objects",
    install: "apt-get install etcd-server",
};

/// Finds a program on PATH and in the sbin folders, which root's PATH may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Like [`find`], as an error when it is not there.
///
/// # Errors
/// Names the program.
pub fn require(program: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("the program {program} is not there"))
}

/// The version of the installed containerd.
///
/// # Errors
/// When it is missing or does not say one.
pub fn containerd_version() -> Result<(u32, u32)> {
    let out = Command::new(require("containerd")?)
        .arg("--version")
        .output()
        .context("containerd cannot be started")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    crate::containerd::parse_version(&text)
        .with_context(|| format!("containerd does not say its version: {text:?}"))
}
