//! kill -9 of each part, under load: connections go on, the cluster heals by itself.

use crate::support::Cluster;
use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Six seconds of requests: longer than any part takes to come back.
const CALLS: &str = "150";
const PAUSE_MS: &str = "40";

pub fn server(cluster: &Cluster) -> Result<()> {
    under_load(cluster, "server")
}

pub fn agent(cluster: &Cluster) -> Result<()> {
    under_load(cluster, "agent")
}

pub fn containerd(cluster: &Cluster) -> Result<()> {
    under_load(cluster, "containerd")
}

/// Kills a part while one pod asks over a connection of long standing and another over new ones. The loads are pods of their own:
/// what `kubectl exec` starts hangs on the very processes that are killed.
fn under_load(cluster: &Cluster, part: &str) -> Result<()> {
    let loads = [("established", ", --keep-alive"), ("fresh", "")];
    for (name, how) in loads {
        start_load(cluster, name, how)?;
    }
    kill(cluster, part)?;
    answers_again(cluster)?;
    for (name, _) in loads {
        finish_load(cluster, name).with_context(|| format!("{name} connections over kill -9 of {part}"))?;
    }
    still_works(cluster)
}

fn start_load(cluster: &Cluster, name: &str, how: &str) -> Result<()> {
    let url = cluster.urls("http")?.remove(0);
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, containers: [{{name: c, \
         image: 'skep.local/echo:1', args: [client, '{url}', -n, '{CALLS}', --interval, '{PAUSE_MS}'{how}]}}]}}}}"
    ))?;
    let pod = format!("pod/{name}");
    cluster
        .kubectl(&[
            "wait",
            "--for=jsonpath={.status.phase}=Running",
            &pod,
            "--timeout=60s",
        ])
        .map(drop)
}

fn finish_load(cluster: &Cluster, name: &str) -> Result<()> {
    let pod = format!("pod/{name}");
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        &pod,
        "--timeout=60s",
    ])?;
    let said = cluster.kubectl(&["logs", name])?;
    ensure!(said.contains(&format!("{CALLS} answered, 0 failed")), "{said}");
    cluster.kubectl(&["delete", &pod]).map(drop)
}

/// The API answers: its socket is held open while a server is started again, so that one request waits for it there.
fn answers_again(cluster: &Cluster) -> Result<()> {
    let answer = cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout=30s"]);
    answer.map(drop).context("the API does not come back")
}

/// The whole chain from the API to a running container, on both nodes.
fn still_works(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])?;
    cluster.kubectl(&["rollout", "restart", "deployment/hello"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    for url in cluster.urls("http")? {
        cluster.ask("client-0", &[&url, "-n", "20"])?;
    }
    Ok(())
}

/// Ends one process of this cluster, on the first node where it has one per node, and sees it end.
pub fn kill(cluster: &Cluster, part: &str) -> Result<()> {
    let pid =
        find(cluster, part)?.with_context(|| format!("no process `{part}` of cluster {}", cluster.name))?;
    let pid = Pid::from_raw(pid).context("not a pid")?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("no handle of the process")?;
    pidfd_send_signal(&handle, Signal::KILL).with_context(|| format!("kill -9 of {part}"))?;
    let mut ends = [PollFd::new(&handle, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    ensure!(poll(&mut ends, Some(&deadline))? == 1, "{part} does not end");
    Ok(())
}

/// By its command line: `skep server … <cluster> …`, `skep agent …`, `containerd … <cluster> …`.
pub fn find(cluster: &Cluster, part: &str) -> Result<Option<i32>> {
    Ok(find_all(cluster, part)?.first().copied())
}

/// All of them, one for each node of what nodes have.
pub fn find_all(cluster: &Cluster, part: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<String> = line
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        let program = words
            .first()
            .map(|w| w.rsplit('/').next().unwrap_or_default().to_string())
            .unwrap_or_default();
        let is_part = program == part || (program == "skep" && words.get(1).is_some_and(|w| w == part));
        if is_part && words.iter().any(|w| w.contains(&cluster.name)) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}
