//! `cargo xtask build-ebpf`: compiles `agent-ebpf` to `target/bpf/skep.o`, which the data path crate embeds.
use crate::{ebpf_rustc, setup, step};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// Build even if nothing changed
    #[arg(long)]
    force: bool,
}

/// Where the finished object lies, from the workspace's root.
pub const OBJECT: &str = "target/bpf/skep.o";
const STAMP: &str = "target/bpf/skep.inputs";
const TARGET: &str = "bpfel-unknown-none";

pub fn run(args: Args) -> Result<()> {
    let root = step::workspace_root()?;
    build(&root, args.force).map(|_| ())
}

/// Makes sure that the object is up to date and returns its path.
pub fn build(root: &Path, force: bool) -> Result<PathBuf> {
    let object = root.join(OBJECT);
    let tools = Toolchain::find()?;
    let inputs = inputs(root, &tools)?;
    let stamp = root.join(STAMP);
    if !force && object.is_file() && fs::read_to_string(&stamp).is_ok_and(|s| s == inputs) {
        eprintln!("==> eBPF object is up to date: {OBJECT}");
        return Ok(object);
    }
    step::quiet(
        &format!("building the eBPF object with {}", tools.name),
        &mut tools.command(root)?,
    )?;
    let built = root.join(format!("target/bpf/build/{TARGET}/release/skep"));
    // The stamp goes first and comes last: an interrupted run never leaves a stamp that fits another object.
    let _ = fs::remove_file(&stamp);
    fs::copy(&built, &object).with_context(|| format!("cannot copy {} to {OBJECT}", built.display()))?;
    fs::write(&stamp, &inputs).context("cannot write the stamp of the eBPF object")?;
    Ok(object)
}

/// A Rust compiler with its sources and a bpf-linker that reads its LLVM's bitcode.
struct Toolchain {
    name: &'static str,
    cargo: PathBuf,
    rustc: Option<PathBuf>,
    linker: PathBuf,
    version: String,
}

impl Toolchain {
    /// Debian's matched set if it is there, else rustup's compiler if it has `rust-src`.
    fn find() -> Result<Self> {
        let linker = setup::bpf_linker().context("bpf-linker is missing: run `cargo xtask setup`")?;
        let debian = ("/usr/bin/cargo", "/usr/bin/rustc");
        if has_sources(Path::new(debian.1)) && Path::new(debian.0).is_file() {
            return Ok(Self {
                name: "Debian's rustc",
                cargo: debian.0.into(),
                version: version(Path::new(debian.1))?,
                rustc: Some(debian.1.into()),
                linker,
            });
        }
        let Some(rustc) = step::find("rustc").filter(|r| has_sources(r)) else {
            bail!(
                "no Rust compiler with its sources: run `cargo xtask setup` (Debian: rustc-web, cargo-web and rust-web-src; \
                 rustup: `rustup component add rust-src`)"
            );
        };
        Ok(Self {
            name: "rustup's rustc",
            cargo: step::find("cargo").context("rustc is on PATH, cargo is not")?,
            version: version(&rustc)?,
            rustc: None,
            linker,
        })
    }

    fn command(&self, root: &Path) -> Result<Command> {
        let mut flags = OsString::from("-C linker=");
        flags.push(&self.linker);
        flags.push(" -C link-arg=--btf -C debuginfo=2 --remap-path-prefix=");
        flags.push(root);
        flags.push("=.");
        let mut c = Command::new(&self.cargo);
        if let Some(rustc) = &self.rustc {
            c.env("RUSTC", rustc);
        }
        // Built inside an outer cargo run, whose settings for the host must not reach this one.
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            c.env_remove(name);
        }
        ebpf_rustc::stand_in(&mut c)?;
        c.current_dir(root.join("agent-ebpf"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", root.join("target/bpf/build"))
            .args([
                "build",
                "--release",
                "--locked",
                "--target",
                TARGET,
                "-Zbuild-std=core",
            ]);
        Ok(c)
    }
}

/// Whether `core` can be built for a target that has no ready-made one.
fn has_sources(rustc: &Path) -> bool {
    output(Command::new(rustc).args(["--print", "sysroot"])).is_ok_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    })
}

fn version(rustc: &Path) -> Result<String> {
    output(Command::new(rustc).arg("-vV"))
}

fn output(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{:?} ended with {}", command.get_program(), out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A digest of everything that decides what the object is.
fn inputs(root: &Path, tools: &Toolchain) -> Result<String> {
    let mut files = Vec::new();
    for dir in ["agent-ebpf/src", "datapath/abi/src", "datapath/logic/src"] {
        collect(&root.join(dir), &mut files)?;
    }
    for file in [
        "agent-ebpf/Cargo.toml",
        "agent-ebpf/Cargo.lock",
        "datapath/abi/Cargo.toml",
        "datapath/logic/Cargo.toml",
    ] {
        files.push(root.join(file));
    }
    files.sort();
    let mut hash = Sha256::new();
    hash.update(&tools.version);
    hash.update(output(Command::new(&tools.linker).arg("--version"))?);
    for file in files {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(
            file.strip_prefix(root)
                .unwrap_or(&file)
                .as_os_str()
                .as_encoded_bytes(),
        );
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
