//! `skep down`: stops a cluster and removes every trace.
use crate::cgroup::Hierarchies;
use crate::cli::DownArgs;
use crate::layout::{Cluster, ClusterName, Dirs, run_root, state_root};
use crate::output::Progress;
use crate::process::Process;
use crate::supervise::{SUPERVISOR, recorded};
use crate::{doctor, kernel, registry};
use agent_network::link::{LinkError, Netlink};
use agent_network::routes;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the supervisor gets to stop everything in order.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stops and removes one cluster, or all.
///
/// # Errors
/// What could not be stopped or removed.
pub async fn run(args: &DownArgs, progress: Progress) -> Result<()> {
    doctor::require_root("stopping a cluster")?;
    let names = if args.all {
        registry::names()
    } else {
        vec![args.which.name.clone()]
    };
    let mut found = false;
    for name in names {
        found |= one(&name, progress).await?;
    }
    if !found {
        progress.say("there is nothing to stop");
    }
    Ok(())
}

async fn one(name: &ClusterName, progress: Progress) -> Result<bool> {
    let dirs = Dirs::of(name);
    if !dirs.state.exists() && !dirs.run.exists() {
        return Ok(false);
    }
    // A damaged description must not keep the rest from being removed.
    let cluster = registry::find(name).ok().flatten();
    let step = progress.step(format!("stop cluster {name}"));
    stop_processes(&dirs).await?;
    step.done();
    let step = progress.step(format!("remove cluster {name}"));
    match cluster {
        Some(cluster) => remove(&cluster).await?,
        None => remove_folders(&dirs)?,
    }
    step.done();
    Ok(true)
}

/// Ends all processes of the cluster; its state stays.
///
/// # Errors
/// Names the process that does not end.
pub async fn stop(cluster: &Cluster, progress: Progress) -> Result<()> {
    let step = progress.step(format!("stop cluster {}", cluster.name));
    stop_processes(&cluster.dirs()).await?;
    step.done();
    Ok(())
}

async fn stop_processes(dirs: &Dirs) -> Result<()> {
    let mut all = recorded(&dirs.processes());
    if let Some(supervisor) = all.remove(SUPERVISOR) {
        supervisor.signal(Signal::TERM);
        if !supervisor.gone(PATIENCE).await {
            // All others follow it: they asked the kernel for that.
            end("the supervisor", supervisor).await?;
        }
    }
    for (name, process) in all {
        end(&name, process).await?;
    }
    Ok(())
}

async fn end(name: &str, process: Process) -> Result<()> {
    process.signal(Signal::KILL);
    anyhow::ensure!(
        process.gone(Duration::from_secs(10)).await,
        "{name} (process {}) does not end",
        process.pid
    );
    Ok(())
}

/// Removes what a stopped cluster left: cgroups, pins, folders.
///
/// # Errors
/// Names what stays.
pub async fn remove(cluster: &Cluster) -> Result<()> {
    remove_from_machine(cluster).await?;
    remove_folders(&cluster.dirs())
}

/// Removes what a stopped cluster left but its logs, for a cluster that did not come up: they tell why.
///
/// # Errors
/// Names what stays.
pub async fn remove_but_logs(cluster: &Cluster) -> Result<()> {
    remove_from_machine(cluster).await?;
    let dirs = cluster.dirs();
    remove_dir(&dirs.state)?;
    let entries = std::fs::read_dir(&dirs.run).into_iter().flatten().flatten();
    for path in entries.map(|e| e.path()).filter(|p| *p != dirs.logs()) {
        if path.is_dir() {
            remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Removes what lies outside of the cluster's folders.
async fn remove_from_machine(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        if let Some(hierarchies) = Hierarchies::detect() {
            empty(&hierarchies, &node.cgroup()).await?;
            hierarchies.remove_if_empty("skep");
        }
        remove_dir(&node.pins())?;
    }
    // Nodes with namespaces had pins in a bpffs of their own; on the machine itself the parent is left.
    let _ = std::fs::remove_dir("/sys/fs/bpf/skep");
    let dirs = cluster.dirs();
    if cluster.host {
        kernel::unmount_below(&[&dirs.run, &dirs.state])?;
        host_network()
            .await
            .context("cannot remove the pods' routes and devices")?;
        if dirs.own_bpffs().exists() {
            kernel::unmount_below(&[Path::new(kernel::BPFFS)])?;
        }
    }
    Ok(())
}

/// Removes routes and devices of pods from the machine's own network, where the machine was the node.
async fn host_network() -> Result<(), LinkError> {
    let netlink = Netlink::connect()?;
    for protocol in [routes::NODE_ROUTES, routes::POD_ROUTES] {
        for route in netlink.routes(protocol).await? {
            netlink.delete_route(&route, protocol).await?;
        }
    }
    for device in netlink
        .devices()
        .await?
        .iter()
        .filter(|d| d.name.starts_with("skep-"))
    {
        netlink.delete(&device.name).await?;
    }
    Ok(())
}

/// Ends what is left in a node's cgroups and removes them. Where the node has no namespaces, its pods outlived it.
async fn empty(hierarchies: &Hierarchies, group: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        for process in hierarchies.processes(group).into_iter().filter_map(Process::of) {
            end("a container's process", process).await?;
        }
        let left = hierarchies.remove(group);
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "cannot remove the cgroups {left:?}");
        // A process leaves its group a moment after it has ended.
        agent_cri::cgroups::emptied(Some(&hierarchies.unified.join(group)), deadline).await;
    }
}

fn remove_folders(dirs: &Dirs) -> Result<()> {
    remove_dir(&dirs.run)?;
    remove_dir(&dirs.state)?;
    for root in [run_root(), state_root()] {
        // Other clusters keep it.
        let _ = std::fs::remove_dir(root);
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
