//! Skep's agent as it is installed, in kube-proxy's place: `skep agent --only services` against [`Api`].
use crate::memory;
use crate::net::sh;
use crate::objects::{self, NODE, NODE_ADDRESS};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use tests_kube_proxy::{Api, write_kubeconfig};

/// What is measured: the agent in a place of its own.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    services: u32,
    /// The program
    #[arg(long)]
    skep: PathBuf,
    /// Whose sockets it may serve: nobody's
    #[arg(long)]
    cgroup: PathBuf,
}

/// For everything to be written.
const LIMIT: Duration = Duration::from_secs(120);
/// What the agent says then.
const WRITTEN: &str = "all services of this node are written";

/// Starts the agent, waits until everything is written, and prints its memory in MiB, then that of its maps. In a process and namespaces
/// of its own, so that nothing else is counted.
///
/// # Errors
/// The agent did not come so far.
pub fn hold(args: &Args) -> Result<()> {
    sh("mount -t tmpfs tmpfs /run")?;
    fs::create_dir_all("/run/bpf")?;
    sh("mount -t bpf bpf /run/bpf")?;
    sh("ip link set lo up")?;
    sh(&format!("ip addr add {NODE_ADDRESS}/32 dev lo"))?;
    fs::create_dir_all(&args.cgroup)?;
    let _api = Api::serve(|path| objects::of_cluster(path, args.services))?;
    let mut agent = start(args)?;
    let measured = written(&mut agent).and_then(|()| {
        println!("{}", memory::resident(agent.id())?);
        println!("{}", memory::maps(agent.id())?);
        Ok(())
    });
    agent.kill()?;
    agent.wait()?;
    measured
}

fn start(args: &Args) -> Result<Child> {
    let kubeconfig = Path::new("/run/kubeconfig");
    write_kubeconfig(kubeconfig)?;
    // setpriv lets it end with this process, whatever happens to that.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&args.skep)
        .args(["agent", "--only", "services", "--node-name", NODE])
        .args(["--pin-dir", "/run/bpf/agent", "--state-dir", "/run/agent"])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--cgroup")
        .arg(&args.cgroup)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", args.skep.display()))
}

/// Until the agent says so.
fn written(agent: &mut Child) -> Result<()> {
    let log = agent.stderr.take().context("the agent has no log")?;
    let (sender, said) = sync_channel(1);
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if line.contains("ERROR") || line.starts_with("error") {
                eprintln!("skep agent: {line}");
            }
            if line.contains(WRITTEN) {
                // Later ones are nobody's to hear.
                let _ = sender.try_send(());
            }
        }
    });
    match said.recv_timeout(LIMIT) {
        Ok(()) => Ok(()),
        Err(RecvTimeoutError::Timeout) => bail!("the agent has not written all services within {LIMIT:?}"),
        Err(RecvTimeoutError::Disconnected) => bail!("the agent ended"),
    }
}
