//! Running one step: what it does is printed before, how long it took after, its output only if it fails.
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The folder of the workspace's `Cargo.toml`.
pub fn workspace_root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("xtask lies inside the workspace")?
        .to_path_buf())
}

/// Runs `command` quietly under the title `what`; on failure its output and the error follow.
pub fn quiet(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if !out.status.success() {
        eprint!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        bail!("{what}: {:?} ended with {}", command.get_program(), out.status);
    }
    eprintln!("    done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs `command` with its output passed through under the title `what`.
pub fn shown(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what}: {:?} ended with {status}", command.get_program());
    }
    eprintln!("    {what}: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// The first executable of this name on `PATH` (and the sbin folders, which root's PATH may lack).
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Runs another verb of this very program, its output passed through.
pub fn this_xtask(args: &[&str]) -> Result<()> {
    let own = std::env::current_exe().context("the path of this program cannot be read")?;
    let status = Command::new(own).args(args).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("`cargo xtask {}` failed", args.join(" "));
    }
    Ok(())
}
