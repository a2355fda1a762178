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

use crate::step;
use crate::test::Outcome;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

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
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub path: String,
    pub sha256: String,
}

pub fn run(args: Args) -> Result<()> {
    step::this_xtask(&["build-ebpf"])?;
    let outcome = matrix_of(&args.kernels, args.filter.as_deref(), args.bless)?;
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

/// The whole matrix, as a level of `cargo xtask test`.
pub fn matrix() -> Result<Outcome> {
    matrix_of(&[], None, false)
}

fn matrix_of(labels: &[String], filter: Option<&str>, bless: bool) -> Result<Outcome> {
    let pins: Pins =
        toml::from_str(&std::fs::read_to_string("tests/kernels.toml")?).context("tests/kernels.toml")?;
    let known: Vec<&str> = pins.kernel.iter().map(|k| k.label.as_str()).collect();
    if let Some(unknown) = labels.iter().find(|l| !known.contains(&l.as_str())) {
        bail!(
            "no kernel `{unknown}` in the matrix\nhint: there are {}",
            known.join(", ")
        );
    }
    let payload = payload::build()?;
    let mut total = Outcome::default();
    let mut budget = Vec::new();
    for kernel in pins
        .kernel
        .iter()
        .filter(|k| labels.is_empty() || labels.contains(&k.label))
    {
        let booted = unpack::ensure(kernel)?;
        let result = machine::boot(kernel, &booted, &payload, filter)?;
        budget.extend(
            result
                .budget
                .iter()
                .map(|(p, n)| (kernel.label.clone(), p.clone(), *n)),
        );
        total.passed += result.outcome.passed;
        total.failed += result.outcome.failed;
        total.skipped.extend(result.outcome.skipped);
    }
    if bless {
        write_budget(&budget)?;
    }
    Ok(total)
}

/// The committed budget: a tenth above what each verifier counted, so that a real growth is seen and noise is not.
fn write_budget(counts: &[(String, String, u64)]) -> Result<()> {
    let mut text = String::from(
        "# Instructions the verifier may walk for each program on each kernel. Written by\n# `cargo xtask test-kernel --bless`: the measured count plus a tenth.\n",
    );
    let mut kernels: Vec<&String> = counts.iter().map(|(k, ..)| k).collect();
    kernels.dedup();
    for kernel in kernels {
        text.push_str(&format!("\n[\"{kernel}\"]\n"));
        for (_, program, count) in counts.iter().filter(|(k, ..)| k == kernel) {
            text.push_str(&format!("{program} = {}\n", count + count / 10));
        }
    }
    std::fs::write("tests/verifier/budget.toml", text)?;
    eprintln!("wrote tests/verifier/budget.toml");
    Ok(())
}
