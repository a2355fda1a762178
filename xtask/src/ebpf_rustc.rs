//! Stands between cargo and rustc while the eBPF object is built, so that the same sources give the same object in every folder.
//!
//! Cargo mixes the folder of a crate into `-C metadata`, rustc mixes that into symbol names, and the order of functions, what
//! is inlined and in the end how many instructions the verifier walks follow the names: by a tenth between two checkouts.

use anyhow::Context;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// Set for the cargo that builds the object: this program is then called in place of rustc.
const MARK: &str = "SKEP_EBPF_RUSTC";

/// Lets `cargo` call this program in place of rustc.
pub fn stand_in(cargo: &mut Command) -> anyhow::Result<()> {
    let this = std::env::current_exe().context("this program cannot find itself")?;
    cargo.env("RUSTC_WRAPPER", this).env(MARK, "1");
    Ok(())
}

/// The rustc to run and its arguments, if this is such a call.
pub fn asked() -> Option<Vec<OsString>> {
    std::env::var_os(MARK)?;
    Some(std::env::args_os().skip(1).collect())
}

/// Becomes rustc.
pub fn run(call: Vec<OsString>) -> ExitCode {
    let Some((rustc, arguments)) = call.split_first() else {
        eprintln!("error: {MARK} is set, and no rustc is named");
        return ExitCode::FAILURE;
    };
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let error = Command::new(rustc)
        .args(named_by_name(arguments, &version))
        .exec();
    eprintln!("error: {} cannot be started: {error}", rustc.display());
    ExitCode::FAILURE
}

/// The arguments with metadata of the crate's name and version alone.
fn named_by_name(arguments: &[OsString], version: &str) -> Vec<OsString> {
    let name = arguments
        .iter()
        .skip_while(|a| *a != "--crate-name")
        .nth(1)
        .and_then(|n| n.to_str())
        .unwrap_or("none");
    let fixed = |argument: &OsString| match argument.to_str() {
        Some(text) if text.starts_with("metadata=") => format!("metadata={name}-{version}").into(),
        _ => argument.clone(),
    };
    arguments.iter().map(fixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn metadata_follow_the_name_and_the_version_and_nothing_else_changes() {
        let call = words("--crate-name logic src/lib.rs -C metadata=0123 -C extra-filename=-0123");
        let expected = words("--crate-name logic src/lib.rs -C metadata=logic-1.2.3 -C extra-filename=-0123");
        assert_eq!(named_by_name(&call, "1.2.3"), expected);
    }
}
