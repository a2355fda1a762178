//! `cargo xtask setup`: finds what building, running and testing need, and installs what is missing.
//!
//! A second run finds everything and changes nothing. Nothing is installed that a machine already has in a usable
//! form, and each thing says what it is for.

use crate::step;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// What the machine is for: each includes the ones before it
    #[arg(long, value_enum, default_value_t = Purpose::Test)]
    pub r#for: Purpose,
    /// Only say what is missing; exit 1 if anything is
    #[arg(long)]
    pub check: bool,
}

/// How much of the machine is set up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Purpose {
    Build,
    Up,
    Test,
}

/// One thing the machine must have.
struct Need {
    what: &'static str,
    why: &'static str,
    purpose: Purpose,
    present: fn() -> bool,
    /// Debian packages that bring it.
    packages: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler and linker",
        why: "Rust links with it",
        purpose: Purpose::Build,
        present: || step::find("cc").is_some(),
        packages: &["build-essential"],
    },
    Need {
        what: "protoc with its standard definitions",
        why: "the etcd client and the CRI messages are generated at build",
        purpose: Purpose::Build,
        present: || {
            step::find("protoc").is_some() && Path::new("/usr/include/google/protobuf/any.proto").exists()
        },
        packages: &["protobuf-compiler", "libprotobuf-dev"],
    },
    Need {
        what: "rustc with its library sources, for eBPF",
        why: "`core` is compiled for the eBPF target",
        purpose: Purpose::Build,
        present: ebpf_rust_present,
        packages: &["rustc-web", "cargo-web", "rust-web-src"],
    },
    Need {
        what: "LLVM 22 libraries",
        why: "bpf-linker emits the bytecode with them",
        purpose: Purpose::Build,
        present: || bpf_linker().is_some() || Path::new("/usr/lib/llvm-22/bin/llvm-config").exists(),
        packages: &["llvm-22-dev", "libzstd-dev", "libxml2-dev", "zlib1g-dev"],
    },
    Need {
        what: "containerd",
        why: "runs the pods of every node",
        purpose: Purpose::Up,
        present: || step::find("containerd").is_some(),
        packages: &["containerd"],
    },
    Need {
        what: "runc",
        why: "containerd starts containers with it",
        purpose: Purpose::Up,
        present: || step::find("runc").is_some(),
        packages: &["runc"],
    },
    Need {
        what: "etcd",
        why: "`skep up --store etcd` and the store's contract tests",
        purpose: Purpose::Up,
        present: || step::find("etcd").is_some(),
        packages: &["etcd-server"],
    },
    Need {
        what: "iproute2",
        why: "tests make network namespaces with it",
        purpose: Purpose::Test,
        present: || step::find("ip").is_some() && step::find("nsenter").is_some(),
        packages: &["iproute2", "util-linux"],
    },
    Need {
        what: "sysctl",
        why: "tests set up forwarding in their namespaces with it",
        purpose: Purpose::Test,
        present: || step::find("sysctl").is_some(),
        packages: &["procps"],
    },
    Need {
        what: "a static busybox",
        why: "test images are made of it",
        purpose: Purpose::Test,
        present: || Path::new("/bin/busybox").exists(),
        packages: &["busybox-static"],
    },
    Need {
        what: "debootstrap",
        why: "the images of upstream's suite are made of it",
        purpose: Purpose::Test,
        present: || step::find("debootstrap").is_some(),
        packages: &["debootstrap"],
    },
    Need {
        what: "QEMU",
        why: "the kernel matrix boots other kernels",
        purpose: Purpose::Test,
        present: || step::find("qemu-system-x86_64").is_some(),
        packages: &["qemu-system-x86", "seabios"],
    },
];

pub fn run(args: Args) -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|n| n.purpose <= args.r#for)
        .filter(|n| {
            let present = (n.present)();
            if !present || args.check {
                eprintln!(
                    "{} {} ({})",
                    if present { "present:" } else { "missing:" },
                    n.what,
                    n.why
                );
            }
            !present
        })
        .collect();
    let no_linker = bpf_linker().is_none();
    if no_linker {
        eprintln!("missing: bpf-linker (links the eBPF programs)");
    }
    if args.check {
        if missing.is_empty() && !no_linker {
            return Ok(());
        }
        bail!("this machine lacks what is listed above\nhint: run `cargo xtask setup` as root");
    }
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    if no_linker {
        install_bpf_linker()?;
    }
    if missing.is_empty() && !no_linker {
        eprintln!("setup: everything needed is there");
    }
    Ok(())
}

fn install_packages(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().flat_map(|n| n.packages.iter().copied()).collect();
    if step::find("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install these by hand (Debian's names): {}\nhint: then run the command again",
            packages.join(" ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "installing packages needs root\nhint: run as root: apt-get install {}",
            packages.join(" ")
        );
    }
    step::quiet("apt-get update", Command::new("apt-get").arg("update"))?;
    step::quiet(
        &format!("apt-get install {}", packages.join(" ")),
        Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends", "--no-remove"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    for need in missing {
        if !(need.present)() {
            bail!(
                "{} is still missing after installing {}\nhint: {}",
                need.what,
                need.packages.join(" "),
                "install it by hand, then run the command again"
            );
        }
    }
    Ok(())
}

/// Where tools that this project builds for itself are kept: outside the checkout, so that every clone shares them.
pub fn tool_dir() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from("/usr/local/share"))
        .join("skep-toolchain")
}

/// The bpf-linker to use: our own build first, then whatever is on `PATH`.
pub fn bpf_linker() -> Option<PathBuf> {
    let own = tool_dir().join("bin/bpf-linker");
    if own.is_file() {
        Some(own)
    } else {
        step::find("bpf-linker")
    }
}

/// Debian's matched compiler with its sources, or a rustup nightly with `rust-src`.
fn ebpf_rust_present() -> bool {
    let debian = Path::new("/usr/bin/rustc").exists()
        && Path::new("/usr/bin/cargo").exists()
        && sources_of(Path::new("/usr/bin/rustc")).is_some_and(|p| p.exists());
    debian || rustup_nightly_with_sources()
}

fn sources_of(rustc: &Path) -> Option<PathBuf> {
    let out = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(out.stdout).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml"))
}

fn rustup_nightly_with_sources() -> bool {
    let Ok(out) = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        .output()
    else {
        return false;
    };
    out.status.success()
        && String::from_utf8(out.stdout)
            .ok()
            .and_then(|path| sources_of(Path::new(path.trim())))
            .is_some_and(|p| p.exists())
}

/// bpf-linker must match an LLVM that knows the compiler's bitcode; Debian 12 carries LLVM 22 for that.
fn install_bpf_linker() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            "0.13.0",
            "--locked",
            "--root",
        ])
        .arg(tool_dir());
    if Path::new("/usr/lib/llvm-22").exists() {
        cargo
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .args(["--no-default-features", "--features", "llvm-22"]);
    }
    // An own target folder: the lock of the workspace's is held by the `cargo xtask` that runs this.
    cargo.env("CARGO_TARGET_DIR", tool_dir().join("build"));
    step::quiet("cargo install bpf-linker (about a minute)", &mut cargo)
        .context("bpf-linker cannot be built")?;
    std::fs::remove_dir_all(tool_dir().join("build")).ok();
    bpf_linker()
        .map(drop)
        .context("bpf-linker was installed but is not found")
}
