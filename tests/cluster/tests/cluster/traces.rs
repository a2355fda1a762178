//! What a cluster may leave on a machine, listed before and after.

use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

/// Everything of a kind that Skep makes.
pub struct Traces(BTreeSet<String>);

impl Traces {
    pub fn now() -> Self {
        let mut all = BTreeSet::new();
        for folder in [
            "/run/netns",
            "/run/skep",
            "/var/lib/skep",
            "/sys/fs/bpf/skep",
            "/sys/fs/bpf",
        ] {
            all.extend(entries(Path::new(folder)));
        }
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            all.extend(entries(&Path::new(&hierarchy).join("skep")));
        }
        all.extend(entries(Path::new("/sys/fs/cgroup/skep")));
        all.extend(entries(Path::new("/sys/class/net")));
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        all.extend(
            mounts
                .lines()
                .filter_map(|l| l.split(' ').nth(1))
                .map(|m| format!("mount {m}")),
        );
        all.extend(processes());
        Self(all)
    }

    /// Fails with what is there now and was not before.
    pub fn assert_nothing_new(&self) -> Result<()> {
        let left: Vec<String> = Self::now().0.difference(&self.0).cloned().collect();
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let list = std::fs::read_dir(folder).into_iter().flatten().flatten();
    list.map(|e| e.path().to_string_lossy().into_owned()).collect()
}

/// Programs that a cluster starts, as they are named in /proc.
fn processes() -> Vec<String> {
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let name = std::fs::read_to_string(Path::new(&entry).join("comm")).unwrap_or_default();
        let status = std::fs::read_to_string(Path::new(&entry).join("status")).unwrap_or_default();
        if status.contains("State:\tZ") {
            // Ended: only the machine's own process 1 has not looked yet.
            continue;
        }
        let ours = ["skep", "containerd", "etcd", "pause", "echo"]
            .iter()
            .any(|p| name.trim().starts_with(p));
        if ours {
            found.push(format!("process {} {entry}", name.trim()));
        }
    }
    found
}
