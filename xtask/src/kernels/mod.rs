//! `cargo xtask test-kernel [versions]`: the data path's tests on other kernels, each in a virtual machine.
//!
//! A machine has no disk and no network: everything is in its initramfs (the modules of the kernel, our init, the very
//! test binaries of `tests/packets`, `tests/sockets` and `tests/verifier`). Results come line by line over a second
//! serial port; only the END line with this run's id and matching counts is a verdict.

pub mod fetch;
mod initramfs;
mod machine;
mod payload;
mod unpack;

use crate::peers::{self, Peer};
use crate::step;
use crate::test::Outcome;
use anyhow::{Context, Result, bail};
use machine::{Report, Size};
use payload::Payload;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use unpack::Bootable;

/// Machines at a time: each emulates one processor, and test machines have two.
const AT_ONCE: usize = 2;

#[derive(clap::Args)]
pub struct Args {
    /// Which kernels, by label of tests/kernels.toml; all if none is named
    pub kernels: Vec<String>,
    /// Only tests whose name contains this
    #[arg(long)]
    pub filter: Option<String>,
    /// Write the instruction counts that the verifiers report into tests/verifier/budget.toml
    #[arg(long)]
    pub bless: bool,
    /// Boot the newest kernel as a whole real node instead: cgroup v2, containerd, `skep up --host`, a service
    #[arg(long)]
    pub node: bool,
}

#[derive(Deserialize)]
struct Pins {
    kernel: Vec<Kernel>,
}

/// One kernel of the matrix, as tests/kernels.toml pins it.
#[derive(Deserialize)]
pub struct Kernel {
    pub label: String,
    pub archive: String,
    pub suite: String,
    /// The emulated processor, where the usual one will not do.
    pub cpu: Option<String>,
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub path: String,
    pub sha256: String,
}

pub fn run(args: Args) -> Result<()> {
    step::this_xtask(&["build-ebpf"])?;
    let outcome = if args.node {
        whole_node()?
    } else {
        matrix_of(&args.kernels, args.filter.as_deref(), args.bless)?
    };
    for (name, reason) in &outcome.skipped {
        println!("skipped: {name}: {reason}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        outcome.passed,
        outcome.failed,
        outcome.skipped.len()
    );
    if outcome.failed > 0 {
        bail!("the kernel matrix failed");
    }
    Ok(())
}

/// The whole matrix and the machine that is a node, as a level of `cargo xtask test`.
pub fn matrix() -> Result<Outcome> {
    let mut outcome = matrix_of(&[], None, false)?;
    outcome.add(whole_node()?);
    Ok(outcome)
}

/// Most machines have one cgroup hierarchy and a new kernel, and Skep for themselves: so has this one.
fn whole_node() -> Result<Outcome> {
    let pins = pins()?;
    let newest = pins.kernel.last().context("tests/kernels.toml names no kernel")?;
    let Some(kubectl) = kubectl()? else {
        return Ok(Outcome::skip(
            "kernel-node",
            "neither a kubectl nor the Go that builds one is there",
        ));
    };
    step::this_xtask(&["build"])?;
    let booted = unpack::ensure(newest)?;
    let size = Size {
        name: "node".into(),
        memory_mib: 3072,
    };
    let payload = payload::whole_node(kubectl)?;
    Ok(machine::boot(newest, &size, &booted, &payload, None)?.outcome)
}

/// Upstream's kubectl: the one that is built from its pin, else the machine's.
fn kubectl() -> Result<Option<PathBuf>> {
    let built = Peer::Kubectl.path();
    if !built.is_file() && peers::usable_go().is_ok() {
        peers::ensure(&[Peer::Kubectl])?;
    }
    Ok(built.is_file().then_some(built).or_else(|| step::find("kubectl")))
}

fn pins() -> Result<Pins> {
    toml::from_str(&std::fs::read_to_string("tests/kernels.toml")?).context("tests/kernels.toml")
}

fn matrix_of(labels: &[String], filter: Option<&str>, bless: bool) -> Result<Outcome> {
    let pins = pins()?;
    let known: Vec<&str> = pins.kernel.iter().map(|k| k.label.as_str()).collect();
    if let Some(unknown) = labels.iter().find(|l| !known.contains(&l.as_str())) {
        bail!(
            "no kernel `{unknown}` in the matrix\nhint: there are {}",
            known.join(", ")
        );
    }
    let payload = payload::build()?;
    let chosen: Vec<&Kernel> = pins
        .kernel
        .iter()
        .filter(|k| labels.is_empty() || labels.contains(&k.label))
        .collect();
    let mut total = Outcome::default();
    let mut budget = Vec::new();
    for some in chosen.chunks(AT_ONCE) {
        for (kernel, report) in some.iter().zip(side_by_side(some, &payload, filter)?) {
            let counts = report.budget.into_iter();
            budget.extend(counts.map(|(program, n)| (kernel.label.clone(), program, n)));
            total.add(report.outcome);
        }
    }
    if bless {
        write_budget(&budget)?;
    }
    Ok(total)
}

/// Boots each of these kernels in a machine of its own.
fn side_by_side(kernels: &[&Kernel], payload: &Payload, filter: Option<&str>) -> Result<Vec<Report>> {
    let booted: Vec<Bootable> = kernels.iter().map(|k| unpack::ensure(k)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (kernel, booted) in kernels.iter().zip(&booted) {
            let size = Size {
                name: kernel.label.clone(),
                memory_mib: 1024,
            };
            running.push(scope.spawn(move || machine::boot(kernel, &size, booted, payload, filter)));
        }
        let ended = running.into_iter().map(|r| r.join());
        ended
            .map(|r| r.unwrap_or_else(|_| bail!("a machine's thread panicked")))
            .collect()
    })
}

/// The committed budget: a tenth above what each verifier counted, so that a real growth is seen and noise is not.
/// Kernels that were not run keep theirs.
fn write_budget(counts: &[(String, String, u64)]) -> Result<()> {
    const PATH: &str = "tests/verifier/budget.toml";
    let mut all: BTreeMap<String, BTreeMap<String, u64>> = toml::from_str(&std::fs::read_to_string(PATH)?)?;
    for (kernel, ..) in counts {
        all.remove(kernel);
    }
    for (kernel, program, count) in counts {
        all.entry(kernel.clone())
            .or_default()
            .insert(program.clone(), count + count / 10);
    }
    let text = format!(
        "# Instructions the verifier may walk for each program on each kernel. Written by\n\
         # `cargo xtask test-kernel --bless`: the measured count plus a tenth. Kernels before 5.16 do not report it.\n\n{}",
        toml::to_string(&all)?
    );
    std::fs::write(PATH, text)?;
    eprintln!("wrote {PATH}");
    Ok(())
}
