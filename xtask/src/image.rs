//! Container images of our own programs: built statically, packed into an OCI layout that is the same to the byte for
//! the same program (<https://github.com/opencontainers/image-spec>).

use crate::step;
use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One image: a program and how it is started.
struct Image {
    /// The name containerd knows it by.
    reference: &'static str,
    /// The program, which lies at `/<program>` in the image.
    program: &'static str,
    user: &'static str,
}

const AGENT: Image = Image {
    reference: concat!("skep.local/skep:", env!("CARGO_PKG_VERSION")),
    program: "skep",
    user: "0:0",
};

const IMAGES: &[Image] = &[
    Image {
        reference: "skep.local/pause:1",
        program: "pause",
        user: "65535:65535",
    },
    Image {
        reference: "skep.local/echo:1",
        program: "echo",
        user: "65535:65535",
    },
];

/// Builds the programs and packs those images whose program changed; `skep` embeds the files from `target/images`.
pub fn build() -> Result<()> {
    let programs = compile()?;
    let out = Path::new("target/images");
    std::fs::create_dir_all(out)?;
    for image in IMAGES {
        let program = std::fs::read(programs.join(image.program))
            .with_context(|| format!("the program {} was not built", image.program))?;
        let path = out.join(format!("{}.tar", image.program));
        let packed = pack(image, &program)?;
        // An unchanged file keeps its time, so that nothing that embeds it is built again.
        if std::fs::read(&path).ok().as_deref() != Some(&packed) {
            std::fs::write(&path, packed).with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    Ok(())
}

/// The image that the DaemonSets in `deploy/` run: the binary with the libraries that it is linked to. Kept while the binary is
/// no newer.
pub fn of_agent(binary: &Path) -> Result<PathBuf> {
    let path = std::path::absolute("target/images/skep.tar")?;
    let modified = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
    if modified(&path) > modified(binary) {
        return Ok(path);
    }
    let mut files = vec![("skep".to_owned(), 0o755, std::fs::read(binary)?)];
    for library in libraries(binary)? {
        let content = std::fs::read(&library).with_context(|| format!("{library} cannot be read"))?;
        files.push((library.trim_start_matches('/').to_owned(), 0o755, content));
    }
    std::fs::create_dir_all("target/images")?;
    std::fs::write(&path, pack_files(&AGENT, &files, Compression::fast())?)?;
    Ok(path)
}

/// The shared libraries that a program is linked to, and the loader, as `ldd` names them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let out = Command::new("ldd")
        .arg(program)
        .output()
        .context("ldd cannot be started")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// Compiles statically into a target folder of its own, since the flags differ from everything else's.
fn compile() -> Result<PathBuf> {
    let host = host_triple()?;
    let target = std::path::absolute("target/images/build")?;
    let root = std::env::current_dir()?;
    let flags = format!(
        "-C target-feature=+crt-static -C strip=symbols -C panic=abort --remap-path-prefix={}=/skep",
        root.display()
    );
    let mut command = Command::new("cargo");
    command
        .args([
            "build",
            "--release",
            "--package",
            "images",
            "--bins",
            "--target",
            &host,
        ])
        .args([
            "--config",
            "profile.release.opt-level=\"z\"",
            "--config",
            "profile.release.lto=true",
        ])
        .args(["--config", "profile.release.codegen-units=1"])
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", &target);
    step::quiet("build the programs of the container images", &mut command)?;
    Ok(target.join(host).join("release"))
}

fn host_triple() -> Result<String> {
    let out = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("rustc cannot be started")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let host = text.lines().find_map(|l| l.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("rustc does not say what it builds for")
}

/// The OCI layout as a tar file.
fn pack(image: &Image, program: &[u8]) -> Result<Vec<u8>> {
    ensure!(!program.is_empty(), "{} is empty", image.program);
    let files = [(image.program.to_owned(), 0o755, program.to_vec())];
    pack_files(image, &files, Compression::best())
}

fn pack_files(image: &Image, files: &[(String, u32, Vec<u8>)], level: Compression) -> Result<Vec<u8>> {
    let layer = tar(files)?;
    let packed = gzip(&layer, level)?;
    let config = text(&config(image, &digest(&layer)));
    let manifest = text(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": image.reference.rsplit(':').next(),
    });
    let index = text(&json!({"schemaVersion": 2, "manifests": [entry]}));
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    let blob = |content: &[u8]| {
        (
            format!("blobs/sha256/{}", &digest(content)["sha256:".len()..]),
            0o644,
            content.to_vec(),
        )
    };
    let mut files = vec![blob(&packed), blob(&config), blob(&manifest)];
    files.extend([
        ("index.json".to_owned(), 0o644, index),
        ("oci-layout".to_owned(), 0o644, layout),
    ]);
    tar(&files)
}

fn config(image: &Image, layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{}", image.program)],
            "Env": ["PATH=/"],
            "User": image.user,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created_by": "cargo xtask build"}],
    })
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(content: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A tar file without times and owners.
fn tar(files: &[(String, u32, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

fn gzip(content: &[u8], level: Compression) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), level);
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_image() {
        assert_eq!(
            pack(&IMAGES[0], b"program").unwrap(),
            pack(&IMAGES[0], b"program").unwrap()
        );
        assert_ne!(
            pack(&IMAGES[0], b"program").unwrap(),
            pack(&IMAGES[0], b"programs").unwrap()
        );
    }

    #[test]
    fn every_blob_is_named_by_its_content() {
        let packed = pack(&IMAGES[1], b"program").unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let mut blobs = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).unwrap();
            if let Some(name) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&content), format!("sha256:{name}"));
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3);
    }
}
