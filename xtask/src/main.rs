//! `cargo xtask`: the one entry for building and testing Skep. Each verb is a module.
mod bench;
mod build;
mod check;
mod cluster;
mod codegen;
mod conformance;
mod dist;
mod e2e_images;
mod ebpf;
mod ebpf_rustc;
mod image;
mod kernels;
mod peers;
mod setup;
mod step;
mod test;

use clap::{Parser, Subcommand};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Skep")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what building and testing needs; a second run changes nothing
    Setup(setup::Args),
    /// Build the eBPF objects that the binary embeds
    BuildEbpf(ebpf::Args),
    /// Build the skep binary (release) with its eBPF objects
    Build(build::Args),
    /// Set up what is missing, build, and start a cluster on this machine
    Up(cluster::UpArgs),
    /// Stop a cluster and remove every trace of it
    Down(cluster::DownArgs),
    /// Ask the example service a hundred times and show what the data path did
    Demo(cluster::DemoArgs),
    /// Formatting, lints, layers, documentation, generated files
    Check(check::Args),
    /// Set up what is missing and run the tests: all, or one level
    Test(test::Args),
    /// Load and exercise the data path on other kernels, in virtual machines
    TestKernel(kernels::Args),
    /// Build upstream's own programs and suites from tests/peers
    Peers(peers::Args),
    /// Run conformance specs against a Skep cluster and write docs/conformance.md
    Conformance(conformance::Args),
    /// Measure, against direct pod addresses and upstream's own programs
    Bench(bench::Args),
    /// Generate the committed tables from the published API facts
    Codegen(codegen::Args),
    /// Accept the present output of tests as the new goldens
    Bless(test::BlessArgs),
    /// Make a tarball and a .deb with systemd units
    Dist(dist::Args),
}

/// Cargo describes the package it runs in variables that build scripts of some libraries watch: what is built from here would
/// differ from what is built by hand, and every change between the two would build most of the tree again.
fn without_package_variables() -> std::io::Result<()> {
    let described = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_PRIMARY_"]
            .iter()
            .any(|p| name.starts_with(p))
    };
    let names: Vec<String> = std::env::vars()
        .map(|(name, _)| name)
        .filter(|name| described(name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1));
    for name in names {
        again.env_remove(name);
    }
    Err(again.exec())
}

fn main() -> ExitCode {
    if let Some(rustc) = ebpf_rustc::asked() {
        return ebpf_rustc::run(rustc);
    }
    if let Err(error) = without_package_variables() {
        eprintln!("error: this program cannot start itself again: {error}");
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not the Debug form: a backtrace tells an operator nothing.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = step::workspace_root()?;
    std::env::set_current_dir(&root)?;
    match Cli::parse().verb {
        Verb::Setup(a) => setup::run(a),
        Verb::BuildEbpf(a) => ebpf::run(a),
        Verb::Build(a) => build::run(a),
        Verb::Up(a) => cluster::up(a),
        Verb::Down(a) => cluster::down(a),
        Verb::Demo(a) => cluster::demo(a),
        Verb::Check(a) => check::run(a),
        Verb::Test(a) => test::run(a),
        Verb::TestKernel(a) => kernels::run(a),
        Verb::Peers(a) => peers::run(a),
        Verb::Conformance(a) => conformance::run(a),
        Verb::Bench(a) => bench::run(a),
        Verb::Codegen(a) => codegen::run(a),
        Verb::Bless(a) => test::bless(a),
        Verb::Dist(a) => dist::run(a),
    }
}
