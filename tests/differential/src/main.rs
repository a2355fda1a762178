//! One of the nodes that are compared: makes its place, then does what its parent says, a line at a time.
use anyhow::{Context, Result, bail};
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use tests_differential::ask::Asker;
use tests_differential::place::Place;
use tests_differential::probe::{Command, Reply};
use tests_differential::proxy::{Proxy, Real, Skep};
use tests_lab::Lab;

fn main() -> Result<()> {
    let mut node = None;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?)?;
        let reply = answer(&mut node, command).unwrap_or_else(|e| Reply::Failed(format!("{e:#}")));
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    drop(node);
    // The parent does this too, unless it was killed.
    if let Some(cgroup) = std::env::var_os("SKEP_TEST_CGROUP") {
        let _ = std::fs::remove_dir(cgroup);
    }
    Ok(())
}

struct Node {
    proxy: Box<dyn Proxy>,
    asker: Asker,
}

fn answer(node: &mut Option<Node>, command: Command) -> Result<Reply> {
    let node = match node {
        Some(node) => node,
        None => node.insert(build()?),
    };
    match command {
        Command::State(changes) => {
            node.proxy.follow(&changes)?;
            Ok(Reply::Ready)
        }
        Command::Ask(probes, tries) => {
            let outcomes = probes.iter().map(|p| node.asker.ask(p, tries));
            Ok(Reply::Outcomes(outcomes.collect::<Result<_>>()?))
        }
    }
}

/// By the program's arguments: `kube-proxy PROGRAM`, `skep`, or `skep-packets` for one without socket hooks.
fn build() -> Result<Node> {
    let mut args = std::env::args().skip(1);
    let who = args.next().context("which proxy?")?;
    let place = Place::build()?;
    let proxy: Box<dyn Proxy> = match who.as_str() {
        "kube-proxy" => {
            let program: PathBuf = args.next().context("which program?")?.into();
            Box::new(Real::start(&program)?)
        }
        "skep" | "skep-packets" => Box::new(Skep::start(Lab::enter(&who, who == "skep")?)?),
        other => bail!("an unknown proxy {other}"),
    };
    // Last, so that only what asks is bound to one processor.
    tests_differential::node::one_processor()?;
    Ok(Node {
        proxy,
        asker: Asker::new(place),
    })
}
