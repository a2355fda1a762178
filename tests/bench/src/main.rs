//! The benchmark of the service data plane: Skep, direct pod addresses and the real kube-proxy, each in namespaces of its
//! own, measured in turns within one run. Started by `cargo xtask bench dataplane`.
mod agent;
mod bench;
mod load;
mod memory;
mod net;
mod objects;
mod packets;
mod peer;
mod place;
mod report;
mod skep;
mod stats;
mod svg;
mod world;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure
    Dataplane(bench::Args),
    /// One peer's place; started by the bench
    #[command(hide = true)]
    World(world::Args),
    /// Memory of the agent and its maps; started by the bench
    #[command(hide = true)]
    Memory(agent::Args),
    /// The programs alone; started by the bench
    #[command(hide = true)]
    Packets,
    /// Planning alone, again and again: for a profiler
    #[command(hide = true)]
    Plan {
        #[arg(long)]
        services: u32,
        #[arg(long, default_value_t = 1)]
        repeat: u32,
    },
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Dataplane(args) => bench::run(&args),
        Verb::World(args) => world::run(args),
        Verb::Memory(args) => agent::hold(&args),
        Verb::Packets => packets::run(),
        Verb::Plan { services, repeat } => skep::plan(services, repeat),
    }
}
