//! Embeds the container images that `cargo xtask build` packed. Without them the binary builds all the same and says
//! at run time how to get them.
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    for image in ["pause", "echo"] {
        let file = format!("{image}.tar");
        let packed = manifest.join("../target/images").join(&file);
        println!("cargo::rerun-if-changed={}", packed.display());
        let content = std::fs::read(&packed).unwrap_or_default();
        std::fs::write(out.join(&file), content).expect("OUT_DIR can be written");
    }
}
