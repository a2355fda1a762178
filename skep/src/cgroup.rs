//! Control groups of a node, on machines with cgroup v1, v2, or both side by side.
use std::io;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// cgroup2: the only one, or beside v1 ones. Socket hooks are attached in it.
    pub unified: PathBuf,
    /// v1 hierarchies with the names of their controllers.
    pub legacy: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// What is mounted on this machine; `None` without cgroup2.
    pub fn detect() -> Option<Self> {
        parse(&std::fs::read_to_string("/proc/self/mounts").ok()?)
    }

    /// Moves the calling process into `group` of every hierarchy, making it where it is missing. All children follow.
    ///
    /// # Errors
    /// The error of the file, with its path.
    pub fn enter(&self, group: &str) -> io::Result<()> {
        if self.legacy.is_empty() {
            delegate(&self.unified, group)?;
        }
        for root in
            std::iter::once(&self.unified).chain(self.legacy.iter().filter(usable).map(|(_, path)| path))
        {
            let dir = root.join(group);
            std::fs::create_dir_all(&dir).map_err(|e| named(&dir, &e))?;
            // 0 is the writing process itself, whatever its number is here.
            write(&dir.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Removes `group` and its children everywhere; returns what cannot be removed since processes are in it.
    pub fn remove(&self, group: &str) -> Vec<PathBuf> {
        let roots = std::iter::once(&self.unified).chain(self.legacy.iter().map(|(_, path)| path));
        roots
            .filter_map(|root| remove_tree(&root.join(group)).err())
            .collect()
    }

    /// Removes the parent of all nodes' groups if no other node is left in it.
    pub fn remove_if_empty(&self, group: &str) {
        for root in std::iter::once(&self.unified).chain(self.legacy.iter().map(|(_, path)| path)) {
            let _ = std::fs::remove_dir(root.join(group));
        }
    }

    /// The processes in `group` and its children.
    pub fn processes(&self, group: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for root in std::iter::once(&self.unified).chain(self.legacy.iter().map(|(_, path)| path)) {
            collect(&root.join(group), &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// v1's cpuset refuses processes until its files are filled; the node needs no set of its own.
fn usable(hierarchy: &&(String, PathBuf)) -> bool {
    !hierarchy.0.split(',').any(|c| c == "cpuset")
}

fn parse(mounts: &str) -> Option<Hierarchies> {
    let (mut unified, mut legacy) = (None, Vec::new());
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        match kind {
            "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(path)),
            "cgroup" => {
                let controllers = options
                    .split(',')
                    .filter(|o| !matches!(*o, "rw" | "ro" | "relatime" | "nosuid" | "nodev" | "noexec"));
                legacy.push((controllers.collect::<Vec<_>>().join(","), PathBuf::from(path)));
            }
            _ => {}
        }
    }
    legacy.sort();
    legacy.dedup();
    Some(Hierarchies {
        unified: unified?,
        legacy,
    })
}

/// Hands the controllers down to the parents of `group`, as cgroup v2 wants: only groups without processes of their own
/// have children with controllers.
fn delegate(root: &Path, group: &str) -> io::Result<()> {
    let mut dir = root.to_owned();
    for part in Path::new(group) {
        let controllers = std::fs::read_to_string(dir.join("cgroup.controllers"))?;
        let wanted = controllers
            .split_whitespace()
            .filter(|c| ["cpu", "cpuset", "io", "memory", "pids"].contains(c));
        for controller in wanted {
            // One that the kernel keeps for itself (cpu with real-time tasks) must not keep the others back.
            if let Err(e) = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}")) {
                tracing::warn!("{e}");
            }
        }
        dir.push(part);
        std::fs::create_dir_all(&dir).map_err(|e| named(&dir, &e))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text).map_err(|e| named(path, &e))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Removes the groups from the leaves up.
fn remove_tree(dir: &Path) -> Result<(), PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        remove_tree(&entry.path())?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(dir.to_owned()),
        _ => Ok(()),
    }
}

fn collect(dir: &Path, found: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(
        text.lines()
            .filter_map(|l| l.parse::<u32>().ok())
            .filter(|pid| *pid != 0),
    );
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        collect(&entry.path(), found);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_generations_side_by_side_are_found() {
        let found = parse(
            "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n",
        )
        .unwrap();
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.legacy[0], ("cpu".to_owned(), "/sys/fs/cgroup/cpu".into()));
        assert_eq!(found.legacy[1].0, "name=systemd");
    }

    #[test]
    fn version_two_alone_is_found() {
        let found =
            parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n").unwrap();
        assert_eq!(
            found,
            Hierarchies {
                unified: "/sys/fs/cgroup".into(),
                legacy: vec![]
            }
        );
    }

    #[test]
    fn a_machine_without_cgroup2_is_told_apart() {
        assert_eq!(parse("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }
}
