//! `cargo xtask`: the one entry for building and testing Skep. Each verb is a module.
mod build;
mod check;
mod cluster;
mod codegen;
mod conformance;
mod dist;
mod e2e_images;
mod ebpf;
mod image;
mod kernels;
mod peers;
mod setup;
mod step;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// Generate the committed tables from the published API facts
    Codegen(codegen::Args),
    /// Accept the present output of tests as the new goldens
    Bless(test::BlessArgs),
    /// Make a tarball and a .deb with systemd units
    Dist(dist::Args),
}

fn main() -> ExitCode {
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
        Verb::Codegen(a) => codegen::run(a),
        Verb::Bless(a) => test::bless(a),
        Verb::Dist(a) => dist::run(a),
    }
}
