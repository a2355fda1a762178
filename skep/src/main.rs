//! The `skep` binary: command line and wiring, nothing else.
mod cgroup;
mod cli;
mod config;
mod containerd;
mod doctor;
mod down;
mod explain;
mod inspect;
mod keeper;
mod kernel;
mod layout;
mod leave;
mod node;
mod output;
mod parts;
mod prepare;
mod process;
mod ready;
mod registry;
mod services;
mod sockets;
mod standalone;
mod supervise;
mod tools;
mod traffic;
mod up;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use cli::{Cli, NodeArgs, Verb};
use output::{Progress, WithHint};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    if let Some(name) = plugin_name() {
        return agent_network::cni::main(&name);
    }
    let cli = Cli::parse_from(cli::arguments(std::env::args_os()));
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// The name this binary was started by, if it is one of a CNI plugin.
fn plugin_name() -> Option<String> {
    let first = std::env::args_os().next()?;
    let name = PathBuf::from(first).file_name()?.to_str()?.to_owned();
    [agent_network::cni::PLUGIN, agent_network::cni::LOOPBACK]
        .contains(&name.as_str())
        .then_some(name)
}

fn run(cli: Cli) -> Result<ExitCode> {
    let progress = Progress::new(cli.quiet);
    match cli.verb {
        Verb::Server(args) => return parts::server(&args).map(|()| ExitCode::SUCCESS),
        Verb::Agent(args) => return parts::agent(&args).map(|()| ExitCode::SUCCESS),
        Verb::Supervise(_) | Verb::NodeInit(_) => {
            machinery_lifecycle::logs::init("info", machinery_lifecycle::logs::Format::Text)
        }
        _ if cli.verbose => machinery_lifecycle::logs::init(
            "debug,hyper=info,tower=info",
            machinery_lifecycle::logs::Format::Text,
        ),
        _ => {}
    }
    match cli.verb {
        Verb::Up(args) => alone(up::run(&args, progress))??,
        Verb::Down(args) => alone(down::run(&args, progress))??,
        Verb::List { output } => output::print(output, &registry::clusters()?)?,
        Verb::Kubeconfig(which) => println!(
            "{}",
            registry::existing(&which.name)?.dirs().kubeconfig().display()
        ),
        Verb::Load { archive, which } => inspect::load(&which.name, &archive, progress)?,
        Verb::Kubectl { which, args } => return kubectl(&which.name, &args),
        Verb::Enter(args) => return inspect::enter(&args),
        Verb::Leave(args) => alone(leave::run(&args, progress))??,
        Verb::Services { service, maps } => inspect::services(service.as_deref(), &maps)?,
        Verb::Maps { map, maps } => inspect::maps(map.as_deref(), &maps)?,
        Verb::Top(cli::Top::Services(args)) => traffic::top(&args)?,
        Verb::Flows(args) => traffic::flows(&args)?,
        Verb::Explain(args) => explain::run(&args)?,
        Verb::Doctor { output } => return doctor::run(output),
        Verb::Version { output } => doctor::version(output)?,
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skep", &mut std::io::stdout())
        }
        Verb::Supervise(which) => supervise::run(&registry::existing(&which.name)?)?,
        Verb::NodeLaunch(args) => {
            let (cluster, node) = member(&args)?;
            return node::launch(&cluster, &node);
        }
        Verb::NodeInit(args) => {
            let (cluster, node) = member(&args)?;
            node::init(&cluster, &node)?;
        }
        Verb::Tether {
            parent,
            cgroup,
            socket,
            command,
        } => return tether(parent, cgroup.as_deref(), &socket, &command),
        Verb::Server(_) | Verb::Agent(_) => unreachable!("handled above"),
    }
    Ok(ExitCode::SUCCESS)
}

fn member(args: &NodeArgs) -> Result<(layout::Cluster, layout::Node)> {
    let cluster = registry::existing(&args.which.name)?;
    let node = cluster.nodes().into_iter().find(|n| n.name == args.node);
    let node = node.with_context(|| format!("cluster {} has no node {}", args.which.name, args.node))?;
    Ok((cluster, node))
}

/// Runs a command's future on a runtime of one thread.
fn alone<F: Future>(work: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    Ok(runtime.block_on(work))
}

/// This binary's path, also when it was replaced by a newer one while it ran.
pub fn binary() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from)
}

/// The beginning of a command that ends when this process ends, even by SIGKILL.
pub fn tethered() -> Command {
    tethered_in(None, &[])
}

/// The same, in a cgroup and with sockets (options of `tether`).
pub fn tethered_in(cgroup: Option<&str>, sockets: &[String]) -> Command {
    let mut command = Command::new(binary());
    command.args(["tether", "--parent", &std::process::id().to_string()]);
    command
        .args(cgroup.into_iter().flat_map(|group| ["--cgroup", group]))
        .args(sockets)
        .arg("--");
    command
}

fn tether(
    parent: i32,
    cgroup: Option<&str>,
    sockets: &[String],
    command: &[std::ffi::OsString],
) -> Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the parent process")?;
    let now = rustix::process::getppid().map(|p| p.as_raw_nonzero().get());
    anyhow::ensure!(now == Some(parent), "the parent process has gone");
    if let Some(group) = cgroup {
        let hierarchies = cgroup::Hierarchies::detect().context("cgroup2 is not mounted")?;
        hierarchies.enter(group).context("cannot enter the cgroups")?;
    }
    let (program, args) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    sockets::hand_on(parent, sockets, &mut command)?;
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

fn kubectl(name: &layout::ClusterName, args: &[String]) -> Result<ExitCode> {
    let cluster = registry::existing(name)?;
    let program = tools::require("kubectl").hint(
        "see https://kubernetes.io/docs/tasks/tools/ or, on Debian, `apt-get install kubernetes-client`",
    )?;
    let error = Command::new(program)
        .args(args)
        .env("KUBECONFIG", cluster.dirs().kubeconfig())
        .exec();
    Err(error).context("cannot start kubectl")
}
