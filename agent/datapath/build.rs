//! Embeds the eBPF object that `cargo xtask build-ebpf` made.
//!
//! Without it the crate still compiles, so that editors and `cargo check` work on a fresh clone; loading then fails and
//! says what to run. `cargo xtask build`, `test`, `up` and `dist` always build the object first.
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=SKEP_EBPF_OBJECT");
    let object = env::var_os("SKEP_EBPF_OBJECT").map_or_else(
        || {
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
                .join("../../target/bpf/skep.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!(
            "cargo::warning=no eBPF object: run `cargo xtask build-ebpf`; this build cannot load a data path"
        );
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("skep.o");
    fs::write(&out, bytes).expect("cargo's output folder is writable");
}
