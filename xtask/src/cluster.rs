//! `cargo xtask up`, `down` and `demo`: the built binary, as a user runs it.

use crate::{build, setup, step};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// The cluster's name
    #[arg(long)]
    name: Option<String>,
    /// Where the objects are kept: embedded or etcd
    #[arg(long)]
    store: Option<String>,
    /// More arguments for `skep up`
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(clap::Args)]
pub struct DownArgs {
    /// The cluster's name
    #[arg(long)]
    name: Option<String>,
    /// Every cluster on this machine
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(clap::Args)]
pub struct DemoArgs {
    /// The cluster's name
    #[arg(long, default_value = "skep")]
    name: String,
    /// How many requests of each kind
    #[arg(short = 'n', long, default_value_t = 100)]
    count: u32,
}

pub fn up(args: UpArgs) -> Result<()> {
    setup::run(setup::Args {
        r#for: setup::Purpose::Up,
        check: false,
    })?;
    let mut skep = Command::new(build::binary()?);
    skep.args(["up", "--nodes", &args.nodes.to_string()]);
    for (flag, value) in [("--name", &args.name), ("--store", &args.store)] {
        skep.args(value.iter().flat_map(|v| [flag, v]));
    }
    pass(skep.args(&args.more))
}

pub fn down(args: DownArgs) -> Result<()> {
    let mut skep = Command::new(built()?);
    skep.arg("down")
        .args(args.name.iter().flat_map(|n| ["--name", n]));
    pass(skep.args(args.all.then_some("--all")))
}

/// The binary as it was built last.
fn built() -> Result<PathBuf> {
    let path = build::target_dir()?.join("release/skep");
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo xtask build`",
        path.display()
    );
    Ok(path)
}

/// Runs a command with our own input and output.
fn pass(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(
        status.success(),
        "{:?} ended with {status}",
        command.get_program()
    );
    Ok(())
}

/// The cluster of the demonstration.
struct Demo {
    skep: PathBuf,
    name: String,
    count: String,
}

pub fn demo(args: DemoArgs) -> Result<()> {
    let demo = Demo {
        skep: built()?,
        name: args.name,
        count: args.count.to_string(),
    };
    let node = demo.node()?;
    demo.apply()?;
    let addresses = demo.addresses()?;
    let before = demo.counters()?;
    let ask: Vec<String> = addresses.iter().map(|ip| format!("http://{ip}:80/")).collect();
    let datagrams = addresses.iter().map(|ip| format!("udp://{ip}:80"));
    let urls: Vec<String> = ask.into_iter().chain(datagrams).collect();

    println!(
        "\n== a client pod asks the service {} times at each address",
        demo.count
    );
    let mut from_pod = demo.kubectl();
    from_pod
        .args(["exec", "client", "--", "/echo", "client"])
        .args(&urls)
        .args(["-n", &demo.count]);
    pass(&mut from_pod)?;

    println!("\n== the node {node} asks");
    let echo = echo_program()?;
    let mut from_node = demo.skep();
    from_node
        .args(["enter", &node, "--"])
        .arg(echo)
        .arg("client")
        .args(&urls)
        .args(["-n", &demo.count]);
    pass(&mut from_node)?;

    println!("\n== the service as the eBPF maps of the nodes hold it");
    pass(demo.skep().args(["services", "hello"]))?;

    println!("\n== what these requests counted");
    print_moved(&before, &demo.counters()?)
}

impl Demo {
    fn skep(&self) -> Command {
        let mut command = Command::new(&self.skep);
        command.env("SKEP_NAME", &self.name);
        command
    }

    fn kubectl(&self) -> Command {
        let mut command = self.skep();
        command.arg("kubectl");
        command
    }

    /// The name of the cluster's first node; also tells whether the cluster runs.
    fn node(&self) -> Result<String> {
        let list = output(self.kubectl().args(["get", "nodes", "--output", "name"]))
            .context("the cluster does not answer: `cargo xtask up` starts it")?;
        let first = list.lines().next().context("the cluster has no nodes")?;
        Ok(first.trim_start_matches("node/").to_owned())
    }

    fn apply(&self) -> Result<()> {
        let mut apply = self.kubectl();
        apply.args(["apply", "-f", "examples/hello.yaml", "-f", "examples/client.yaml"]);
        step::shown("apply examples/hello.yaml and examples/client.yaml", &mut apply)?;
        let mut rollout = self.kubectl();
        rollout.args(["rollout", "status", "deployment/hello", "--timeout=60s"]);
        step::shown("three replicas", &mut rollout)?;
        let mut wait = self.kubectl();
        wait.args(["wait", "pod/client", "--for=condition=Ready", "--timeout=60s"]);
        step::shown("the client pod", &mut wait)?;
        pass(self.kubectl().args(["get", "pods", "--output", "wide"]))
    }

    /// The service's addresses, IPv6 in brackets.
    fn addresses(&self) -> Result<Vec<String>> {
        let service: Value = serde_json::from_str(&output(
            self.kubectl()
                .args(["get", "service", "hello", "--output", "json"]),
        )?)?;
        let ips = service["spec"]["clusterIPs"]
            .as_array()
            .context("the service has no addresses")?;
        let text = ips.iter().filter_map(Value::as_str);
        Ok(text
            .map(|ip| {
                if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip.to_owned()
                }
            })
            .collect())
    }

    /// The data path's counters by node and name.
    fn counters(&self) -> Result<BTreeMap<(String, String), u64>> {
        let rows: Vec<Value> = serde_json::from_str(&output(
            self.skep().args(["maps", "counters", "--output", "json"]),
        )?)?;
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let count = |row: &Value| row["used"].as_u64().unwrap_or_default();
        Ok(rows
            .iter()
            .map(|row| ((text(row, "node"), text(row, "entry")), count(row)))
            .collect())
    }
}

/// The echo program outside of its image: nodes see the machine's files.
fn echo_program() -> Result<PathBuf> {
    let built = Path::new("target/images/build");
    let triples = std::fs::read_dir(built).with_context(|| format!("{} is not there", built.display()))?;
    let programs = triples.flatten().map(|e| e.path().join("release/echo"));
    let found = programs.into_iter().find(|p| p.is_file());
    Ok(std::path::absolute(found.context(
        "the echo program was not built: run `cargo xtask build`",
    )?)?)
}

fn print_moved(
    before: &BTreeMap<(String, String), u64>,
    after: &BTreeMap<(String, String), u64>,
) -> Result<()> {
    let mut moved = 0;
    for ((node, what), count) in after {
        let more = count
            - before
                .get(&(node.clone(), what.clone()))
                .copied()
                .unwrap_or_default()
                .min(*count);
        if more > 0 {
            println!("{more:>8}  {node}  {what}");
            moved += more;
        }
    }
    if moved == 0 {
        bail!("the requests were answered, but no counter moved: they did not go through the data path");
    }
    Ok(())
}

/// What a command prints; its errors pass through.
fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start skep")?;
    ensure!(
        out.status.success(),
        "{:?} ended with {}",
        command.get_program(),
        out.status
    );
    Ok(String::from_utf8(out.stdout)?)
}
