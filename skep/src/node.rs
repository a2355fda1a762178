//! One node: its namespaces, its process 1, and what runs in it.
use crate::cgroup::Hierarchies;
use crate::containerd::{self, Facts};
use crate::keeper::{Keeper, Kind, Step, logged};
use crate::layout::{Cluster, Node};
use crate::process::Process;
use crate::{kernel, sockets, tools};
use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The images that come with the binary: name and archive.
const IMAGES: [(&str, &[u8]); 2] = [
    ("pause", include_bytes!(concat!(env!("OUT_DIR"), "/pause.tar"))),
    ("echo", include_bytes!(concat!(env!("OUT_DIR"), "/echo.tar"))),
];

/// Whether this binary was built with its images.
pub fn has_images() -> bool {
    IMAGES.iter().all(|(_, archive)| !archive.is_empty())
}

/// Writes the images where every node of the cluster can import them.
///
/// # Errors
/// The file's error.
pub fn write_images(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, archive) in IMAGES {
        let path = dir.join(format!("{name}.tar"));
        std::fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Writes what the node's runtime needs: its configuration and the CNI plugins (this binary under two names).
///
/// # Errors
/// The file's error, or a runtime that does not say its version.
pub fn prepare(node: &Node) -> Result<()> {
    let facts = Facts {
        version: tools::containerd_version()?,
        runc: tools::require("runc")?.display().to_string(),
    };
    let make =
        |dir: &Path| std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()));
    for dir in [
        node.cni_bin(),
        node.cni_conf(),
        node.state.join("containerd/tmp"),
        node.run.join("containerd"),
    ] {
        make(&dir)?;
    }
    std::fs::write(node.containerd_config(), containerd::configuration(node, &facts))
        .with_context(|| format!("cannot write {}", node.containerd_config().display()))?;
    let binary = std::env::current_exe().context("cannot find this binary")?;
    for name in [agent_network::cni::PLUGIN, agent_network::cni::LOOPBACK] {
        let link = node.cni_bin().join(name);
        let draft = node.cni_bin().join(format!(".{name}"));
        let _ = std::fs::remove_file(&draft);
        std::os::unix::fs::symlink(&binary, &draft)
            .and_then(|()| std::fs::rename(&draft, &link))
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// What runs on the node, in order: the runtime, the import of the images (which also waits for the runtime), the agent.
pub fn steps(cluster: &Cluster, node: &Node) -> Vec<Step> {
    let logs = |process: &str| cluster.dirs().log(&format!("{}-{process}", node.name));
    // In namespaces of its own, everything is in the node's group from the start and ends with process 1.
    let group = cluster.host.then(|| format!("{}/system", node.cgroup()));
    let begin = move |sockets: &[String]| crate::tethered_in(group.as_deref(), sockets);
    let (config, log, start) = (node.containerd_config(), logs("containerd"), begin.clone());
    let runtime = Step::keep("containerd", move || {
        let mut command = start(&[]);
        command.arg("containerd").arg("--config").arg(&config);
        logged(command, &log)
    });
    let (socket, images, log) = (node.cri_socket(), cluster.dirs().images(), logs("images"));
    let import = Step::once("images", move || {
        // ctr waits for the socket by itself, so this is also the test whether the runtime answers.
        let script = "set -e; for i in \"$2\"/*.tar; do ctr --address \"$1\" --connect-timeout 30s --namespace k8s.io images import \"$i\"; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "import"]).arg(&socket).arg(&images);
        logged(command, &log)
    });
    let (config, log) = (node.run.join("agent.yaml"), logs("agent"));
    // Held here, they outlive the agent: no question is lost while it is started again.
    let dns = sockets::dns(&crate::layout::DNS_ADDRESSES);
    let agent = Step::keep("agent", move || {
        let mut command = begin(&dns.options());
        command
            .arg(crate::binary())
            .arg("agent")
            .arg("--config")
            .arg(&config);
        logged(command, &log)
    });
    vec![runtime, import, agent]
}

/// `skep node-launch`: enters the node's cgroups, makes its namespaces and starts its process 1. Prints that process's
/// number, then waits for its end.
///
/// # Errors
/// The step that fails.
pub fn launch(cluster: &Cluster, node: &Node) -> Result<ExitCode> {
    let hierarchies = Hierarchies::detect().context("cgroup2 is not mounted")?;
    hierarchies
        .enter(&format!("{}/system", node.cgroup()))
        .context("cannot enter the node's cgroups")?;
    kernel::own_node()?;
    let log = crate::keeper::open_log(&cluster.dirs().log(&node.name))?;
    let mut init = Command::new(crate::binary());
    init.args([
        "node-init",
        "--name",
        &cluster.name.to_string(),
        "--node",
        &node.name,
    ]);
    let mut child = init
        .stdin(Stdio::inherit())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the node")?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", child.id())
        .and_then(|()| stdout.flush())
        .context("cannot report the node's process")?;
    let status = child.wait().context("cannot wait for the node")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `skep node-init`: process 1 of a node. Makes its mounts, waits for its network (a line on standard input), then keeps
/// the node's processes running.
///
/// # Errors
/// The step that fails.
pub fn init(cluster: &Cluster, node: &Node) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the supervisor")?;
    rustix::system::sethostname(node.name.as_bytes()).context("cannot set the host name")?;
    kernel::node_mounts(&cluster.dirs().run, &node.state.join("hold"))?;
    kernel::volatile(&node.run.join("containerd"))?;
    agent_network::sysctl::forward().context("cannot prepare the node's network")?;
    agent_network::sysctl::no_address_probing().context("cannot prepare the node's network")?;
    for stale in [node.cri_socket(), node.run.join("containerd.sock.ttrpc")] {
        // Of the node's last life: whoever connects to it is refused instead of waiting. Mostly there is none.
        let _ = std::fs::remove_file(stale);
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("the supervisor has gone")?;
    anyhow::ensure!(line == "go\n", "the supervisor has gone");
    let keeper = Keeper::new(steps(cluster, node), |_| {}).context("cannot watch the node's processes")?;
    keeper.run();
    Ok(())
}

/// The step that keeps a node with namespaces running; `connect` joins its network once its process 1 is there.
pub fn step(cluster: &Cluster, node: &Node, mut connect: impl FnMut(u32) -> Result<()> + 'static) -> Step {
    let (name, log) = (cluster.name.to_string(), cluster.dirs().log(&node.name));
    let node_name = node.name.clone();
    let command = move || {
        let mut command = crate::tethered();
        command
            .arg(crate::binary())
            .args(["node-launch", "--name", &name, "--node", &node_name]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(crate::keeper::open_log(&log)?);
        Ok(command)
    };
    let started = move |child: &mut std::process::Child| {
        let mut line = String::new();
        let stdout = child.stdout.take().context("the node's output is a pipe")?;
        std::io::BufReader::new(stdout).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .context("the node did not start: see its log")?;
        connect(pid)?;
        let mut stdin = child.stdin.take().context("the node's input is a pipe")?;
        stdin
            .write_all(b"go\n")
            .context("the node ended at once: see its log")?;
        Ok(Process::of(pid))
    };
    Step {
        name: node.name.clone(),
        kind: Kind::Keep,
        // Nothing in a node needs a farewell: what it must keep is on disk at any time.
        stop: (Signal::KILL, Duration::from_secs(5)),
        command: Box::new(command),
        started: Some(Box::new(started)),
    }
}
