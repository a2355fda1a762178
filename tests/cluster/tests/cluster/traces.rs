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
        let hierarchies = entries(Path::new("/sys/fs/cgroup"));
        for hierarchy in hierarchies.iter().map(String::as_str).chain(["/sys/fs/cgroup"]) {
            all.extend(cgroups(&Path::new(hierarchy).join("skep")));
        }
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

    /// Fails with what is there now and was not before. What names another cluster of this machine is left to whoever runs that.
    pub fn assert_nothing_new(&self, cluster: &str) -> Result<()> {
        let now = Self::now();
        let others: BTreeSet<String> = self
            .clusters()
            .chain(now.clusters())
            .filter(|c| c != cluster)
            .collect();
        let left: Vec<_> = now
            .0
            .difference(&self.0)
            .filter(|trace| others.is_empty() || !is_shared(trace))
            .filter(|trace| names(trace, cluster) || !others.iter().any(|other| names(trace, other)))
            .collect();
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }

    /// The clusters whose folders are there.
    fn clusters(&self) -> impl Iterator<Item = String> {
        let folders = self.0.iter().filter_map(|t| t.strip_prefix("/var/lib/skep/"));
        folders.map(str::to_string)
    }
}

/// Whether the name stands there as a word of its own, or with a node's number behind it.
fn names(trace: &str, cluster: &str) -> bool {
    trace
        .split(|c: char| c.is_whitespace() || c == '/' || c == '\0')
        .any(|word| {
            word.strip_prefix(cluster)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
}

/// Whether it is there for all clusters of the machine.
fn is_shared(trace: &str) -> bool {
    let of_bpf = ["/sys/fs/bpf/skep", "mount /sys/fs/bpf"].contains(&trace);
    of_bpf || trace.starts_with("/sys/fs/cgroup") && trace.ends_with("/skep")
}

/// The cgroup that all clusters have together, and each one's.
fn cgroups(common: &Path) -> Vec<String> {
    if !common.is_dir() {
        return Vec::new();
    }
    let mut all = entries(common);
    all.retain(|entry| Path::new(entry).is_dir());
    all.push(common.display().to_string());
    all
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
            found.push(format!(
                "process {} {entry} {}",
                name.trim(),
                whose(Path::new(&entry))
            ));
        }
    }
    found
}

/// Where the clusters' names stand in what the kernel tells of a process: its arguments, its cgroup, the folders of its root.
fn whose(process: &Path) -> String {
    let read = |file| std::fs::read_to_string(process.join(file)).unwrap_or_default();
    let mounts = read("mountinfo");
    let of_skep = |text: &&str| text.contains("/skep/");
    let root = mounts
        .split(|c: char| c.is_whitespace() || c == ',' || c == '=')
        .find(of_skep);
    let cgroups = read("cgroup");
    let cgroup = cgroups.lines().find(of_skep);
    [
        &read("cmdline").replace('\0', " "),
        cgroup.unwrap_or_default(),
        root.unwrap_or_default(),
    ]
    .join(" ")
}
