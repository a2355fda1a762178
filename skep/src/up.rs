//! `skep up`.
use crate::cgroup::Hierarchies;
use crate::cli::UpArgs;
use crate::layout::{API_PORT, Cluster, StoreKind};
use crate::output::{Progress, WithHint};
use crate::process::Process;
use crate::supervise::SUPERVISOR;
use crate::{config, doctor, down, node, prepare, ready, registry, supervise, tools};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

/// `kind: ClusterConfig`: what the flags of `skep up` say, in a file. Flags win.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterConfig {
    #[allow(dead_code, reason = "checked by config::read")]
    api_version: String,
    #[allow(dead_code, reason = "checked by config::read")]
    kind: String,
    nodes: Option<u8>,
    store: Option<StoreKind>,
    api_port: Option<u16>,
    lb_pool: Option<Vec<agent_network::Prefix>>,
}

/// Starts the cluster and waits for its nodes.
///
/// # Errors
/// Says what is missing; nothing but logs is left of a cluster that did not exist before.
pub async fn run(args: &UpArgs, progress: Progress) -> Result<()> {
    let begun = Instant::now();
    doctor::require_root("starting a cluster")?;
    let args = with_file(args.clone())?;
    let before = registry::find(&args.which.name)?;
    if let Some(cluster) = before.as_ref().filter(|c| registry::running(c)) {
        return already(cluster, &args, progress);
    }
    preflight(&args)?;
    let api = listen(args.api_port.or(before.as_ref().map(|c| c.api_port)))?;
    let wanted = match before.clone() {
        Some(cluster) => Cluster {
            api_port: api.local_addr()?.port(),
            ..cluster
        },
        None => doctor::describe(&args, api.local_addr()?.port()).await?,
    };
    if before.is_none() {
        // Of a cluster of this name that did not come up.
        let _ = std::fs::remove_dir_all(wanted.dirs().logs());
    }
    let outcome = tokio::select! {
        outcome = start(&wanted, api, &args, progress) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = outcome {
        clean_up(&wanted, before.is_some(), progress).await;
        return Err(error);
    }
    tell(&wanted, begun, progress);
    Ok(())
}

fn with_file(mut args: UpArgs) -> Result<UpArgs> {
    if let Some(path) = &args.config {
        let file: ClusterConfig = config::read(path, "ClusterConfig")?;
        args.nodes = args.nodes.or(file.nodes);
        args.store = args.store.or(file.store);
        args.api_port = args.api_port.or(file.api_port);
        args.lb_pool = args.lb_pool.or(file.lb_pool);
    }
    Ok(args)
}

fn already(cluster: &Cluster, args: &UpArgs, progress: Progress) -> Result<()> {
    let name = &cluster.name;
    let differs =
        args.nodes.is_some_and(|n| n != cluster.nodes) || args.store.is_some_and(|s| s != cluster.store);
    if differs {
        let store = format!("{:?}", cluster.store).to_lowercase();
        let error = anyhow::anyhow!(
            "cluster {name} runs with {} nodes on the {store} store",
            cluster.nodes
        );
        return Err(error).hint(format!(
            "start another one with --name, or remove this one: skep down --name {name}"
        ));
    }
    progress.say(&format!("cluster {name} is running already; nothing was changed"));
    usage(cluster, progress);
    Ok(())
}

/// Everything that is missing, at once, before anything is changed.
fn preflight(args: &UpArgs) -> Result<()> {
    let mut missing = Vec::new();
    let etcd = (args.store == Some(StoreKind::Etcd)).then_some(&tools::ETCD);
    for tool in tools::RUNTIME.iter().chain(etcd) {
        if tools::find(tool.program).is_none() {
            missing.push(format!("{} ({}): {}", tool.program, tool.why, tool.install));
        }
    }
    if Hierarchies::detect().is_none() {
        missing.push("cgroup2: mount -t cgroup2 none /sys/fs/cgroup/unified".to_owned());
    }
    if !node::has_images() {
        missing
            .push("the container images, which this binary was built without: cargo xtask build".to_owned());
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!("this machine lacks\n  {}", missing.join("\n  ")))
        .hint("`skep doctor` looks at everything")
}

/// The socket on which the machine reaches the API.
fn listen(port: Option<u16>) -> Result<TcpListener> {
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    match port {
        Some(port) => at(port)
            .with_context(|| format!("cannot listen on 127.0.0.1:{port}"))
            .hint("choose another port with --api-port"),
        None => at(API_PORT)
            .or_else(|_| at(0))
            .context("no free port on 127.0.0.1"),
    }
}

async fn start(cluster: &Cluster, api: TcpListener, args: &UpArgs, progress: Progress) -> Result<()> {
    let step = progress.step(format!("prepare cluster {}", cluster.name));
    prepare::cluster(cluster)?;
    step.done();
    let step = progress.step(format!(
        "start {} {}",
        cluster.nodes,
        if cluster.nodes == 1 { "node" } else { "nodes" }
    ));
    let child = supervise::spawn(cluster, api)?;
    let supervisor = Process::of(child.id()).context("the supervisor ended at once")?;
    let mut seen = ready::Nodes::new();
    let outcome = tokio::select! {
        outcome = ready::all_ready(cluster, &mut seen, &step) => outcome,
        _ = supervisor.gone(Duration::MAX) => Err(failure(cluster, &[SUPERVISOR.to_owned()], "the supervisor ended")),
        () = tokio::time::sleep(Duration::from_secs(args.timeout)) => Err(anyhow::Error::msg("")),
    };
    match outcome {
        Ok(()) => step.done(),
        Err(e) if e.to_string().is_empty() => return Err(late(cluster, &seen, args.timeout)),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// What is missing when the time is up, with the log that should tell why.
fn late(cluster: &Cluster, seen: &ready::Nodes, seconds: u64) -> anyhow::Error {
    let missing = ready::missing(cluster, seen);
    let list: Vec<String> = missing
        .iter()
        .map(|(name, why)| format!("{name} {why}"))
        .collect();
    let what = format!("not every node was Ready after {seconds} s: {}", list.join(", "));
    let mut logs = Vec::new();
    if seen.is_empty() {
        logs.push("server".to_owned());
    }
    if let Some((name, _)) = missing.first() {
        // In the order in which one waits for the other; a node of namespaces has a log of its own, too.
        logs.push(name.clone());
        logs.extend(["containerd", "images", "agent"].map(|process| format!("{name}-{process}")));
    }
    failure(cluster, &logs, &what)
}

/// The error with the ends of those logs that say something.
fn failure(cluster: &Cluster, processes: &[String], what: &str) -> anyhow::Error {
    let dirs = cluster.dirs();
    let ends = processes.iter().filter_map(|process| {
        let end = tail(&dirs.log(process), 10);
        (!end.is_empty()).then(|| format!("\nlast lines of {process}.log:\n{end}"))
    });
    anyhow::anyhow!("{what}{}", ends.collect::<String>())
}

/// The last lines of a log, without repetitions of the same message, each cut to a readable length.
fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // Log lines begin with the time.
    let message = |line: &str| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned();
    let mut all: Vec<&str> = text.lines().collect();
    all.dedup_by_key(|line| message(line));
    let cut = |line: &&str| format!("  {}\n", line.chars().take(240).collect::<String>());
    let last: String = all
        .iter()
        .skip(all.len().saturating_sub(lines))
        .map(cut)
        .collect();
    last.trim_end().to_owned()
}

/// After a failure: a cluster that was new goes away again but for its logs, one that existed is stopped and keeps its state.
async fn clean_up(cluster: &Cluster, existed: bool, progress: Progress) {
    progress.say("cleaning up; Ctrl-C again leaves it as it is");
    let removed = async {
        down::stop(cluster, progress).await?;
        if existed {
            Ok(())
        } else {
            down::remove_but_logs(cluster).await
        }
    };
    let left = tokio::select! {
        outcome = removed => outcome.err().map(|e| format!("{e:#}")),
        _ = tokio::signal::ctrl_c() => Some("interrupted".to_owned()),
    };
    let logs = cluster.dirs().logs();
    if logs.is_dir() {
        progress.say(&format!(
            "its logs are kept until the next start, or `skep down --name {}`: {}",
            cluster.name,
            logs.display()
        ));
    }
    if let Some(why) = left {
        progress.say(&format!(
            "something is left ({why}); remove it: skep down --name {}",
            cluster.name
        ));
    }
}

fn tell(cluster: &Cluster, begun: Instant, progress: Progress) {
    let nodes = if cluster.nodes == 1 {
        "its node is"
    } else {
        "all nodes are"
    };
    progress.say(&format!(
        "cluster {} runs, {nodes} Ready after {:.1} s\n",
        cluster.name,
        begun.elapsed().as_secs_f32()
    ));
    usage(cluster, progress);
}

fn usage(cluster: &Cluster, progress: Progress) {
    let binary = crate::binary();
    let binary = binary.display();
    let name = match cluster.name.to_string() {
        name if name == crate::layout::DEFAULT_NAME => String::new(),
        name => format!(" --name {name}"),
    };
    progress.say(&format!("  export KUBECONFIG=$({binary} kubeconfig{name})"));
    if tools::find("kubectl").is_none() {
        progress.say("  # kubectl is not there: https://kubernetes.io/docs/tasks/tools/");
    }
    progress.say("  kubectl get nodes");
    progress.say(&format!(
        "  {binary} down{name}        # stops it and removes every trace"
    ));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&path, 2), "  b\n  c");
        assert_eq!(tail(&dir.path().join("none"), 2), "");
    }
}
