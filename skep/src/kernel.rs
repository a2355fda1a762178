//! The namespaces of a router and of a node, `namespaces(7)`, `mount_namespaces(7)`, waiting for a process that is not a
//! child, `pidfd_open(2)`, and handing descriptors on.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use rustix::io::{dup2, fcntl_dupfd_cloexec};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Moves this process into a network namespace of its own.
///
/// # Errors
/// The kernel's refusal.
pub fn own_network() -> Result<()> {
    // SAFETY: CLONE_FILES is not among the flags, so no thread loses sight of descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")
}

/// Gives this process namespaces of its own for network, mounts, host name and IPC, and its *next children* one for
/// process numbers: the first child is process 1 there.
///
/// # Errors
/// The kernel's refusal.
pub fn own_node() -> Result<()> {
    let flags = UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWPID;
    // SAFETY: CLONE_FILES is not among the flags, so no thread loses sight of descriptors.
    unsafe { unshare_unsafe(flags) }.context("cannot make the namespaces of a node")
}

/// Makes the mounts of a node, as its process 1: its own /proc, /sys (of its network) with the machine's cgroups, a
/// bpffs of its own for the pins, and a private /run in which only `run`, the cluster's run-time folder, is shared with
/// the machine. `hold` is an empty folder that is used on the way.
///
/// # Errors
/// The first mount that fails, by name.
pub fn node_mounts(run: &Path, hold: &Path) -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("make / private")?;
    std::fs::create_dir_all(hold).with_context(|| format!("make {}", hold.display()))?;
    keep_across(Path::new("/sys/fs/cgroup"), hold, || fresh("sysfs", "/sys"))?;
    fresh("bpf", BPFFS)?;
    fresh("proc", "/proc")?;
    keep_across(run, hold, || fresh("tmpfs", "/run"))?;
    // Last: pods' volumes with propagation need it, and earlier unmounts would have propagated.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("make / shared")
}

/// Mounts something over a parent of `path` and shows `path` there again.
fn keep_across(path: &Path, hold: &Path, cover: impl FnOnce() -> Result<()>) -> Result<()> {
    mount_bind_recursive(path, hold).with_context(|| format!("hold {}", path.display()))?;
    cover()?;
    // sysfs has the mount point; a fresh tmpfs has not.
    if !path.is_dir() {
        std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    }
    mount_bind_recursive(hold, path).with_context(|| format!("show {} again", path.display()))?;
    unmount(hold, UnmountFlags::DETACH).with_context(|| format!("let go of {}", path.display()))
}

fn fresh(kind: &str, at: &str) -> Result<()> {
    let options = (kind == "tmpfs").then_some(c"mode=755");
    mount(kind, at, kind, MountFlags::NOSUID | MountFlags::NODEV, options)
        .with_context(|| format!("mount {kind} on {at}"))
}

/// Mounts a tmpfs of this node alone on `dir`: what was in it is gone, as after a restart of a machine.
///
/// # Errors
/// The mount's error.
pub fn volatile(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // Pods' root file systems are mounted below: devices are allowed there or not by the runtime.
    mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(c"mode=711"))
        .with_context(|| format!("mount tmpfs on {}", dir.display()))
}

/// Ends when the process behind the descriptor has ended.
///
/// # Errors
/// When the runtime cannot watch it.
pub async fn ended(pidfd: OwnedFd) -> std::io::Result<()> {
    // SAFETY: an OwnedFd stays the same open descriptor for as long as the AsyncFd, which owns it, exists.
    let fd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    // A pidfd is readable once its process has ended.
    fd.readable().await.map(drop)
}

/// Puts these descriptors at the numbers 3, 4 … for the program that this process is about to become.
///
/// # Errors
/// The kernel's refusal.
pub fn place(descriptors: Vec<OwnedFd>) -> Result<()> {
    let end = FIRST_PLACE + i32::try_from(descriptors.len()).context("too many descriptors")?;
    // First out of the way: some of them may be at these very numbers.
    let aside = descriptors.iter().map(|d| fcntl_dupfd_cloexec(d, end));
    let aside = aside
        .collect::<rustix::io::Result<Vec<OwnedFd>>>()
        .context("copy a descriptor")?;
    drop(descriptors);
    for (number, descriptor) in (FIRST_PLACE..end).zip(&aside) {
        // SAFETY: `at` is only named to dup2, which closes what may be there and puts an open descriptor in its place, and
        // is never dropped. This process opened nothing else that it still uses: it ends by becoming another program.
        let mut at = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        dup2(descriptor, &mut at).context("place a descriptor")?;
    }
    Ok(())
}

/// The first descriptor that is handed on, sd_listen_fds(3).
const FIRST_PLACE: i32 = 3;

/// Takes away every mount below these folders, the innermost first: what containers of a node without namespaces left.
///
/// # Errors
/// The mount that stays.
pub fn unmount_below(dirs: &[&Path]) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let ours = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new);
    let ours: Vec<&Path> = ours
        .filter(|at| dirs.iter().any(|dir| at.starts_with(dir)))
        .collect();
    for at in ours.into_iter().rev() {
        unmount(at, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", at.display()))?;
    }
    Ok(())
}

/// Mounts a bpffs at the usual place if there is none; whether there was none.
///
/// # Errors
/// The mount's error.
pub fn bpffs() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(false);
    }
    fresh("bpf", BPFFS).map(|()| true)
}

/// Where a bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
