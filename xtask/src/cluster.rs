use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct UpArgs {}
#[derive(clap::Args)]
pub struct DownArgs {}
#[derive(clap::Args)]
pub struct DemoArgs {}

pub fn up(_args: UpArgs) -> Result<()> {
    bail!("`up` is not built yet")
}
pub fn down(_args: DownArgs) -> Result<()> {
    bail!("`down` is not built yet")
}
pub fn demo(_args: DemoArgs) -> Result<()> {
    bail!("`demo` is not built yet")
}
