use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    bail!("`test` is not built yet")
}

#[derive(clap::Args)]
pub struct BlessArgs {}

pub fn bless(_args: BlessArgs) -> Result<()> {
    bail!("`bless` is not built yet")
}
