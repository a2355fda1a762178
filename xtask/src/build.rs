//! `cargo xtask build`: bytecode, container images, and the binary that embeds both.

use crate::{ebpf, image, step};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// Only the container images, into target/images
    #[arg(long)]
    images: bool,
    /// The binary, and the container image of it that the DaemonSets in deploy/ run, as target/images/skep.tar
    #[arg(long, conflicts_with = "images")]
    agent_image: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.images {
        return image::build();
    }
    let binary = binary()?;
    if args.agent_image {
        println!("{}", image::of_agent(&binary)?.display());
    } else {
        println!("{}", binary.display());
    }
    Ok(())
}

/// Builds what changed and returns the binary.
pub fn binary() -> Result<PathBuf> {
    embedded()?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--package", "skep"]);
    step::shown("build skep", &mut cargo)?;
    Ok(target_dir()?.join("release/skep"))
}

/// Builds what the binary embeds: bytecode and images.
pub fn embedded() -> Result<()> {
    ebpf::build(&step::workspace_root()?, false)?;
    image::build()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(std::path::absolute(dir)?)
}
