//! Pod cgroups: made before the sandbox and removed after it, since no runtime removes the parent it is given.
//!
//! On a v1 or hybrid machine a pod's folder is made in every hierarchy, the unified one included: socket hooks that
//! are attached there to the node's folder then hold for its pods. On a v2 machine there is the one hierarchy.

use agent_pods::resources::{CPU_PERIOD, Limits};
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long the last processes of a folder may take to leave it.
const LEAVE: Duration = Duration::from_secs(1);

/// Between two attempts where the kernel tells nobody when to try.
const MOMENT: Duration = Duration::from_millis(5);

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// v1 controllers (`memory`, `cpu,cpuacct` …); empty for the unified hierarchy.
    pub controllers: Vec<String>,
    /// Whether it is the unified one.
    pub unified: bool,
}

/// The machine's hierarchies and this node's folder in them.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

/// A cgroup that could not be made, set or removed.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: {error}; check that the cgroup file systems are mounted writable")]
pub struct CgroupError {
    path: String,
    #[source]
    error: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.display().to_string();
    move |error| CgroupError { path, error }
}

/// Reads the cgroup mounts from the text of `/proc/self/mountinfo`; a hierarchy mounted twice counts once.
#[must_use]
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut out: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mount = left.split(' ').nth(4).unwrap_or_default();
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        let options = right.nth(1).unwrap_or_default();
        let unified = kind == "cgroup2";
        if !unified && kind != "cgroup" {
            continue;
        }
        let names = options
            .split(',')
            .filter(|o| !matches!(*o, "rw" | "ro" | "nsdelegate" | "xattr"));
        let controllers = if unified {
            Vec::new()
        } else {
            names.map(str::to_owned).collect()
        };
        let hierarchy = Hierarchy {
            mount: mount.into(),
            controllers,
            unified,
        };
        if !out
            .iter()
            .any(|h| h.unified == unified && h.controllers == hierarchy.controllers)
        {
            out.push(hierarchy);
        }
    }
    out
}

impl Cgroups {
    /// The machine's hierarchies, with everything of this node below `parent` (`skep/<node>`).
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn open(parent: &str) -> Result<Self, CgroupError> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(at(table))?;
        Ok(Self::new(hierarchies(&text), parent))
    }

    /// With known hierarchies.
    #[must_use]
    pub fn new(hierarchies: Vec<Hierarchy>, parent: &str) -> Self {
        Self {
            hierarchies,
            parent: parent.trim_matches('/').to_owned(),
        }
    }

    /// The folder of a pod in each hierarchy, as the runtime wants it (`cgroup_parent`, with a leading slash).
    #[must_use]
    pub fn pod(&self, uid: &str, qos_folder: Option<&str>) -> String {
        match qos_folder {
            Some(qos) => format!("/{}/kubepods/{qos}/pod{uid}", self.parent),
            None => format!("/{}/kubepods/pod{uid}", self.parent),
        }
    }

    /// Makes a pod's folders and sets its limits.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn make(&self, pod: &str, limits: &Limits) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.mount.join(pod.trim_start_matches('/'));
            if hierarchy.unified {
                delegate(&hierarchy.mount, pod)?;
            }
            fs::create_dir_all(&folder).map_err(at(&folder))?;
            if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                inherit_cpuset(&hierarchy.mount, pod)?;
            }
            set(hierarchy, &folder, limits)?;
        }
        Ok(())
    }

    /// Sets new limits in a pod's folders, which stand.
    ///
    /// # Errors
    /// [`CgroupError`]; a limit below what is in use is refused by the kernel.
    pub fn set(&self, pod: &str, limits: &Limits) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.mount.join(pod.trim_start_matches('/'));
            set(hierarchy, &folder, limits)?;
        }
        Ok(())
    }

    /// Removes a pod's folders with what is left in them. Fine when there are none.
    ///
    /// # Errors
    /// [`CgroupError`]; processes are left in it then.
    pub async fn remove(&self, pod: &str) -> Result<(), CgroupError> {
        let folder = |h: &Hierarchy| h.mount.join(pod.trim_start_matches('/'));
        let folders: Vec<PathBuf> = self.hierarchies.iter().map(folder).collect();
        let unified = self.hierarchies.iter().find(|h| h.unified).map(folder);
        let deadline = Instant::now() + LEAVE;
        while let Err((path, error)) = remove_trees(&folders) {
            let busy = error.raw_os_error() == Some(BUSY);
            if !busy || Instant::now() > deadline {
                return Err(at(path)(error));
            }
            // A process has ended and is still on its way out.
            emptied(unified.as_deref(), deadline).await;
        }
        Ok(())
    }
}

fn remove_trees(folders: &[PathBuf]) -> Result<(), (&Path, io::Error)> {
    for folder in folders {
        remove_tree(folder).map_err(|error| (folder.as_path(), error))?;
    }
    Ok(())
}

/// Waits until no process is left in a group, or for the deadline. `unified` is its folder in the unified hierarchy,
/// whose `cgroup.events` tells of the group and all below it:
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html#un-populated-notification>. The kernel updates all hierarchies of a
/// process together, so that this tells for the v1 folders of the same name too.
pub async fn emptied(unified: Option<&Path>, deadline: Instant) {
    let told = tokio::time::timeout_at(deadline.into(), left(unified)).await;
    if !matches!(told, Ok(Some(()))) {
        // Not in the unified hierarchy, or out of it already: version 1 tells nobody, so that all there is is to try again.
        tokio::time::sleep(MOMENT).await;
    }
}

/// Ready when the last process leaves; at once with nothing when there is none to wait for.
async fn left(unified: Option<&Path>) -> Option<()> {
    let file = fs::File::open(unified?.join("cgroup.events")).ok()?;
    #[allow(
        deprecated,
        reason = "safe for a file that is owned and never replaced, as here"
    )]
    let file = AsyncFd::with_interest(file, Interest::PRIORITY).ok()?;
    let mut waited = None;
    loop {
        let (mut text, mut from) = (String::new(), file.get_ref());
        // Reading is also what arms the notification.
        from.seek(SeekFrom::Start(0)).ok()?;
        from.read_to_string(&mut text).ok()?;
        if !text.contains("populated 1") {
            return waited;
        }
        file.ready(Interest::PRIORITY).await.ok()?.clear_ready();
        waited = Some(());
    }
}

const BUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();

/// Folders below first; cgroup files cannot and need not be removed.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// v2: hands the controllers down to the pod's folder. A controller that the parent does not have is left out.
fn delegate(mount: &Path, pod: &str) -> Result<(), CgroupError> {
    let mut folder = mount.to_owned();
    for part in pod.trim_matches('/').split('/') {
        let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let control = folder.join("cgroup.subtree_control");
        for controller in available
            .split_whitespace()
            .filter(|c| ["cpu", "memory", "pids", "cpuset", "io"].contains(c))
        {
            // The node's own folder may hold the agent's process, which forbids this; the limits then do not apply.
            if let Err(error) = fs::write(&control, format!("+{controller}")) {
                tracing::debug!(controller, folder = %folder.display(), %error, "controller not handed down");
            }
        }
        folder.push(part);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
    }
    Ok(())
}

/// v1: a new cpuset has neither processors nor memory nodes, and no process may enter it.
fn inherit_cpuset(mount: &Path, pod: &str) -> Result<(), CgroupError> {
    let mut folder = mount.to_owned();
    for part in pod.trim_matches('/').split('/') {
        let parent = folder.clone();
        folder.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = folder.join(file);
            if fs::read_to_string(&own).is_ok_and(|t| t.trim().is_empty()) {
                let from = parent.join(file);
                let value = fs::read_to_string(&from).map_err(at(&from))?;
                fs::write(&own, value.trim()).map_err(at(&own))?;
            }
        }
    }
    Ok(())
}

/// The files and values that set `limits` in a hierarchy.
fn settings(hierarchy: &Hierarchy, limits: &Limits) -> Vec<(&'static str, String)> {
    let has = |name: &str| hierarchy.controllers.iter().any(|c| c == name);
    let mut out = Vec::new();
    if hierarchy.unified {
        let quota = if limits.cpu_quota > 0 {
            limits.cpu_quota.to_string()
        } else {
            "max".into()
        };
        out.push(("cpu.weight", weight(limits.cpu_shares).to_string()));
        out.push(("cpu.max", format!("{quota} {CPU_PERIOD}")));
        out.push((
            "memory.max",
            if limits.memory > 0 {
                limits.memory.to_string()
            } else {
                "max".into()
            },
        ));
    }
    if has("cpu") {
        let quota = if limits.cpu_quota > 0 {
            limits.cpu_quota
        } else {
            -1
        };
        out.push(("cpu.shares", limits.cpu_shares.to_string()));
        out.push(("cpu.cfs_period_us", CPU_PERIOD.to_string()));
        out.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    if has("memory") {
        let memory = if limits.memory > 0 { limits.memory } else { -1 };
        out.push(("memory.limit_in_bytes", memory.to_string()));
    }
    out
}

/// `cpu.shares` 2…262144 on the scale of `cpu.weight` 1…10000, as runc converts it.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn set(hierarchy: &Hierarchy, folder: &Path, limits: &Limits) -> Result<(), CgroupError> {
    for (file, value) in settings(hierarchy, limits) {
        let path = folder.join(file);
        // A unified hierarchy without the controller (hybrid machines) has no such file.
        if path.exists() {
            fs::write(&path, value).map_err(at(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the unified hierarchy of this machine; tests of this crate that make containers need root as well.
    #[tokio::test]
    async fn a_folder_goes_as_soon_as_its_last_process_has_left() {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(unified) = hierarchies(&table).into_iter().find(|h| h.unified) else {
            panic!("no cgroup2 is mounted; `cargo xtask setup` says how to have it");
        };
        let name = format!("agent-cri-test-{}", std::process::id());
        let folder = unified.mount.join(&name);
        fs::create_dir(&folder).expect("this test needs root");
        let mut child = std::process::Command::new("sleep").arg("0.2").spawn().unwrap();
        fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        let cgroups = Cgroups::new(vec![unified], "unused");
        let (begun, removed) = (Instant::now(), cgroups.remove(&name).await);
        child.wait().unwrap();
        let _ = fs::remove_dir(&folder);
        removed.unwrap();
        assert!(
            (100..900).contains(&begun.elapsed().as_millis()),
            "{:?}",
            begun.elapsed()
        );
    }

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 30 0:28 / /mnt/again rw - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_machine_has_its_v1_hierarchies_and_the_unified_one_once_each() {
        let found = hierarchies(HYBRID);
        let print = |h: &Hierarchy| (h.mount.display().to_string(), h.controllers.join("+"), h.unified);
        let expected = [
            ("/sys/fs/cgroup/cpu".to_owned(), "cpu+cpuacct".to_owned(), false),
            ("/sys/fs/cgroup/memory".to_owned(), "memory".to_owned(), false),
            ("/sys/fs/cgroup/unified".to_owned(), String::new(), true),
        ];
        assert_eq!(found.iter().map(print).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_pods_folder_is_below_its_class_and_guaranteed_pods_have_none() {
        let cgroups = Cgroups::new(Vec::new(), "skep/n1");
        assert_eq!(
            cgroups.pod("u", Some("burstable")),
            "/skep/n1/kubepods/burstable/podu"
        );
        assert_eq!(cgroups.pod("u", None), "/skep/n1/kubepods/podu");
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        let limits = Limits {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            memory: 0,
        };
        let found = hierarchies(HYBRID);
        let v1 = settings(&found[0], &limits);
        assert!(v1.contains(&("cpu.cfs_quota_us", "50000".to_owned())));
        assert_eq!(
            settings(&found[1], &limits),
            [("memory.limit_in_bytes", "-1".to_owned())]
        );
        let v2 = settings(&found[2], &limits);
        assert!(
            v2.contains(&("cpu.max", "50000 100000".to_owned()))
                && v2.contains(&("memory.max", "max".to_owned()))
        );
        assert_eq!(v2[0], ("cpu.weight", "39".to_owned()));
    }
}
