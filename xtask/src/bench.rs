//! `cargo xtask bench`: builds what is measured, and measures it in namespaces of its own (root).
use crate::{build, ebpf, peers, step};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The service data plane against direct pod addresses and the real kube-proxy
    Dataplane(Dataplane),
}

#[derive(clap::Args)]
struct Dataplane {
    /// The main ratios, within five minutes
    #[arg(long)]
    quick: bool,
    /// Write the rows to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only this, such as connect, crr, program_cold, update, agent_rss; may be repeated. Writes no page
    #[arg(long, value_name = "NAME")]
    measure: Vec<String>,
    /// Only this peer, beside direct; may be repeated. Writes no page
    #[arg(long, value_name = "NAME")]
    peer: Vec<String>,
    /// Only this number of services; may be repeated. Writes no page
    #[arg(long, value_name = "N")]
    services: Vec<u32>,
}

/// Where the page, the plots and the rows of a whole run go.
const REPORT: &str = "docs/benchmarks";

pub fn run(args: Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the bench makes namespaces and loads eBPF programs, which needs root");
    }
    match args.what {
        What::Dataplane(a) => dataplane(&a),
    }
}

fn dataplane(args: &Dataplane) -> Result<()> {
    // Before the folder is looked at from elsewhere.
    let json = args.json.as_ref().map(std::path::absolute).transpose()?;
    ebpf::build(&step::workspace_root()?, false)?;
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--release",
        "--package",
        "tests-bench",
        "--package",
        "skep",
    ]);
    step::shown("build the bench and the agent", &mut cargo)?;
    match peers::usable_go() {
        Ok(()) => peers::ensure(&[peers::Peer::KubeProxy])?,
        // The bench reports every row of it as skipped.
        Err(reason) => eprintln!("    kube-proxy cannot be built: {reason}"),
    }
    let mut bench = Command::new(build::target_dir()?.join("release/skep-bench"));
    bench.args(["dataplane", "--commit", &commit()]);
    bench.arg("--kube-proxy").arg(peers::Peer::KubeProxy.path());
    bench.arg("--skep").arg(build::target_dir()?.join("release/skep"));
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(file) = json {
        bench.arg("--json").arg(file);
    }
    for (flag, values) in [("--measure", &args.measure), ("--peer", &args.peer)] {
        values.iter().for_each(|v| {
            bench.args([flag, v]);
        });
    }
    for n in &args.services {
        bench.args(["--services", &n.to_string()]);
    }
    if args.measure.is_empty() && args.peer.is_empty() && args.services.is_empty() {
        bench.args(["--report", REPORT]);
    }
    step::shown("measure", &mut bench)
}

/// The commit that is checked out, with a mark if something is changed.
fn commit() -> String {
    Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()
        .filter(|o| o.status.success())
        .map_or_else(
            || "unknown".to_string(),
            |o| String::from_utf8_lossy(&o.stdout).trim().to_string(),
        )
}
