//! kill -9 of each part, under load: connections go on, the cluster heals by itself.

use crate::support::Cluster;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Requests over one connection that outlives the kill, and over new ones beside it.
const CALLS: &str = "150";
const PAUSE_MS: &str = "40";

pub fn server(cluster: &Cluster) -> Result<()> {
    // Exec streams end with the server: this load runs as a pod of its own, and its log is read afterwards.
    let url = cluster.urls("http")?.remove(0);
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: load}}, spec: {{restartPolicy: Never, containers: [{{name: c, \
         image: 'skep.local/echo:1', args: [client, '{url}', -n, '{CALLS}', --interval, '{PAUSE_MS}', --keep-alive]}}]}}}}"
    ))?;
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Running",
        "pod/load",
        "--timeout=60s",
    ])?;
    kill(cluster, "server")?;
    // Its successor answers, and knows what its predecessor knew.
    cluster
        .kubectl(&[
            "--request-timeout=60s",
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod/load",
            "--timeout=60s",
        ])
        .or_else(|_| {
            cluster.kubectl(&[
                "wait",
                "--for=jsonpath={.status.phase}=Succeeded",
                "pod/load",
                "--timeout=60s",
            ])
        })?;
    let said = cluster.kubectl(&["logs", "load"])?;
    ensure!(said.contains(&format!("{CALLS} answered, 0 failed")), "{said}");
    cluster.kubectl(&["delete", "pod", "load"])?;
    still_works(cluster)
}

pub fn agent(cluster: &Cluster) -> Result<()> {
    with_load(cluster, || kill(cluster, "agent"))?;
    still_works(cluster)
}

pub fn containerd(cluster: &Cluster) -> Result<()> {
    let url = cluster.urls("http")?.remove(0);
    let load = cluster.ask_meanwhile(
        "client-1",
        &[&url, "-n", CALLS, "--interval", PAUSE_MS, "--keep-alive"],
    )?;
    kill(cluster, "containerd")?;
    load.all_answered()?;
    still_works(cluster)
}

fn with_load(cluster: &Cluster, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let url = cluster.urls("http")?.remove(0);
    let established = cluster.ask_meanwhile(
        "client-1",
        &[&url, "-n", CALLS, "--interval", PAUSE_MS, "--keep-alive"],
    )?;
    let fresh = cluster.ask_meanwhile("client-1", &[&url, "-n", CALLS, "--interval", PAUSE_MS])?;
    what()?;
    established.all_answered().context("the established connection")?;
    fresh.all_answered().context("new connections").map(drop)
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

/// Ends one process of this cluster, on the first node where it has one per node.
fn kill(cluster: &Cluster, part: &str) -> Result<()> {
    let pid =
        find(cluster, part)?.with_context(|| format!("no process `{part}` of cluster {}", cluster.name))?;
    let pid = Pid::from_raw(pid).context("not a pid")?;
    kill_process(pid, Signal::KILL).with_context(|| format!("kill -9 of {part}"))
}

/// By its command line: `skep server … <cluster> …`, `skep agent …`, `containerd … <cluster> …`.
fn find(cluster: &Cluster, part: &str) -> Result<Option<i32>> {
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
    Ok(found.first().copied())
}
