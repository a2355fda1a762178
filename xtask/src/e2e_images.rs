//! The images that upstream's suite asks for, made here under their names: there is no registry to pull them from.
//!
//! One Debian root file system with the tools that the specs call, upstream's own `agnhost` and smaller programs on top; a
//! static busybox; our pause. What is made is what the specs need, not a copy of the published images.

use crate::kernels::fetch;
use crate::peers::{self, Peer};
use crate::step;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const REGISTRY: &str = "registry.k8s.io";
const PACKAGES: &str = "curl,wget,iproute2,iputils-ping,dnsutils,netcat-openbsd,nginx-light,procps,perl,iptables,conntrack,bash-static";
/// Raised when what goes into the images changes.
const GENERATION: u32 = 4;

/// One image: names, layers from the bottom, and how it is started.
struct Image<'a> {
    names: &'a [&'a str],
    layers: &'a [&'a Layer],
    config: Value,
}

/// A layer as an uncompressed tar file.
struct Layer {
    path: PathBuf,
    digest: String,
    size: u64,
}

/// The archive with all images, built if it is not there yet.
pub fn ensure() -> Result<PathBuf> {
    let dir = PathBuf::from("target/conformance");
    let archive = dir.join(format!("images-{GENERATION}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    std::fs::create_dir_all(&dir)?;
    let debian = layer(&debian_root(&dir)?, &dir.join("debian.tar"))?;
    let agnhost = layer(&agnhost_root(&dir)?, &dir.join("agnhost.tar"))?;
    let busybox = layer(
        &busybox_root(&dir, &dir.join("debian/bin/bash-static"))?,
        &dir.join("busybox.tar"),
    )?;
    let pause = layer(&pause_root(&dir)?, &dir.join("pause.tar"))?;
    let no_privileges = layer(&no_privileges_root(&dir)?, &dir.join("nonewprivs.tar"))?;
    let conntrack = layer(&conntrack_root(&dir)?, &dir.join("regression.tar"))?;
    let nautilus = layer(&pages_root(&dir, "nautilus")?, &dir.join("nautilus.tar"))?;
    let kitten = layer(&pages_root(&dir, "kitten")?, &dir.join("kitten.tar"))?;
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let images = [
        Image {
            names: &["e2e-test-images/agnhost:2.63.0", "e2e-test-images/agnhost:2.55"],
            layers: &[&debian, &agnhost],
            config: json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": [path], "ExposedPorts": {"80/tcp": {}}}),
        },
        Image {
            names: &["e2e-test-images/busybox:1.37.0-1"],
            layers: &[&busybox],
            config: json!({"Cmd": ["sh"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/nginx:1.15-4", "e2e-test-images/nginx:1.27-0"],
            layers: &[&debian],
            config: json!({"Cmd": ["nginx", "-g", "daemon off;"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/nonroot:1.5"],
            layers: &[&debian],
            config: json!({"User": "1234", "Cmd": ["id", "-u"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/nautilus:1.8"],
            layers: &[&debian, &agnhost, &nautilus],
            config: json!({"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/kitten:1.8"],
            layers: &[&debian, &agnhost, &kitten],
            config: json!({"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/nonewprivs:1.4"],
            layers: &[&debian, &no_privileges],
            config: json!({"Cmd": ["nnp"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/regression-issue-74839:1.4"],
            layers: &[&conntrack],
            config: json!({"Entrypoint": ["/regression-issue-74839"]}),
        },
        Image {
            names: &[
                "build-image/distroless-iptables:v0.9.3",
                "e2e-test-images/glibc-dns-testing:2.0.0",
            ],
            layers: &[&debian],
            config: json!({"Cmd": ["sleep", "infinity"], "Env": [path]}),
        },
        Image {
            names: &["e2e-test-images/perl:5.26"],
            layers: &[&debian],
            config: json!({"Cmd": ["perl"], "Env": [path]}),
        },
        Image {
            names: &["pause:3.10.2", "pause:3.10", "pause:3.10.1"],
            layers: &[&pause],
            config: json!({"Entrypoint": ["/pause"], "User": "65535:65535"}),
        },
    ];
    write_archive(&images, &archive)?;
    Ok(archive)
}

/// Debian's smallest root file system with the tools that the specs call.
fn debian_root(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("debian");
    // What it was made of; another list makes another root file system.
    let complete = root.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|packages| packages == PACKAGES) {
        return Ok(root);
    }
    std::fs::remove_dir_all(&root).ok();
    let debootstrap =
        step::find("debootstrap").context("debootstrap is missing\nhint: run `cargo xtask setup`")?;
    step::quiet(
        "debootstrap for the test images (about a minute)",
        Command::new(debootstrap)
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"])
            .arg(&root)
            .arg(fetch::mirror("debian")?),
    )?;
    for emptied in [
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ] {
        std::fs::remove_dir_all(root.join(emptied)).ok();
        std::fs::create_dir_all(root.join(emptied))?;
    }
    let page = root.join("var/www/html/index.nginx-debian.html");
    std::fs::copy(&page, root.join("var/www/html/index.html")).ok();
    std::fs::write(complete, PACKAGES)?;
    Ok(root)
}

fn agnhost_root(dir: &Path) -> Result<PathBuf> {
    let root = fresh(dir, "agnhost-root")?;
    std::fs::copy(Peer::Agnhost.path(), root.join("agnhost"))?;
    // A second name, by which specs tell a command of the pod from that of the image.
    std::os::unix::fs::symlink("agnhost", root.join("agnhost-2"))?;
    std::fs::create_dir_all(root.join("uploads"))?;
    // The certificate that its servers show, and that specs ask for as a page.
    let source = peers::source()?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        std::fs::write(root.join(file), std::fs::read(source.join(file))?)?;
    }
    Ok(root)
}

/// Every applet of the static busybox under its name, but for the shell: busybox's drops variables of the environment whose
/// names have a dash, which specs ask for.
fn busybox_root(dir: &Path, shell: &Path) -> Result<PathBuf> {
    let root = fresh(dir, "busybox-root")?;
    for folder in ["bin", "etc", "tmp", "root", "var", "usr", "home"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::os::unix::fs::symlink("../bin", root.join("usr/bin"))?;
    std::os::unix::fs::symlink("bin", root.join("sbin"))?;
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let out = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8(out.stdout)?.lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    // Busybox's own shell drops variables whose names have a dash, which upstream's does not; its messages are what specs expect
    // of `/bin/sh`. So the other is what `sh` alone finds.
    let first = root.join("usr/local/bin");
    std::fs::create_dir_all(&first)?;
    std::fs::copy(shell, first.join("sh")).with_context(|| format!("{} is not there", shell.display()))?;
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    Ok(root)
}

/// The program that tells its effective user, owned by root and set-user-id.
fn no_privileges_root(dir: &Path) -> Result<PathBuf> {
    let root = fresh(dir, "nonewprivs-root")?;
    let program = root.join("usr/local/bin/nnp");
    std::fs::create_dir_all(root.join("usr/local/bin"))?;
    std::fs::copy(Peer::Nonewprivs.path(), &program)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755))?;
    Ok(root)
}

/// The server that sends what connection tracking calls invalid.
fn conntrack_root(dir: &Path) -> Result<PathBuf> {
    let root = fresh(dir, "regression-root")?;
    std::fs::copy(Peer::Regression74839.path(), root.join("regression-issue-74839"))?;
    Ok(root)
}

/// The pages of one of upstream's two picture servers.
fn pages_root(dir: &Path, image: &str) -> Result<PathBuf> {
    let root = fresh(dir, &format!("{image}-root"))?;
    let pages = peers::source()?.join("test/images").join(image).join("html");
    for page in ["data.json".to_owned(), format!("{image}.jpg")] {
        std::fs::write(root.join(&page), std::fs::read(pages.join(&page))?)?;
    }
    Ok(root)
}

/// Our own pause program, out of the image that `cargo xtask build` made.
fn pause_root(dir: &Path) -> Result<PathBuf> {
    let root = fresh(dir, "pause-root")?;
    let mut image =
        tar::Archive::new(File::open("target/images/pause.tar").context("run `cargo xtask build` first")?);
    for entry in image.entries()? {
        let mut bytes = Vec::new();
        entry?.read_to_end(&mut bytes)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice())).unpack(&root)?;
            return Ok(root);
        }
    }
    bail!("target/images/pause.tar has no layer")
}

fn fresh(dir: &Path, name: &str) -> Result<PathBuf> {
    let root = dir.join(name);
    std::fs::remove_dir_all(&root).ok();
    std::fs::create_dir_all(&root)?;
    Ok(root)
}

fn layer(root: &Path, out: &Path) -> Result<Layer> {
    step::quiet(
        &format!("packing {}", out.display()),
        Command::new("tar")
            .args(["--numeric-owner", "--one-file-system", "--exclude=./dev/*", "-cf"])
            .arg(out)
            .arg("-C")
            .arg(root)
            .arg("."),
    )?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(out)?, &mut HashWriter(&mut hasher))?;
    Ok(Layer {
        path: out.to_path_buf(),
        digest: fetch::hex(&hasher.finalize()),
        size: out.metadata()?.len(),
    })
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An OCI layout in a tar file, one manifest per image and one entry in the index per name.
fn write_archive(images: &[Image<'_>], archive: &Path) -> Result<()> {
    let part = archive.with_extension("part");
    let mut builder = tar::Builder::new(File::create(&part)?);
    let mut written = std::collections::BTreeSet::new();
    let mut entries = Vec::new();
    for image in images {
        for layer in image.layers {
            if written.insert(layer.digest.clone()) {
                builder.append_path_with_name(&layer.path, format!("blobs/sha256/{}", layer.digest))?;
            }
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": image.layers.iter().map(|l| format!("sha256:{}", l.digest)).collect::<Vec<_>>()},
        });
        let config = blob(&mut builder, &mut written, &config)?;
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|l| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{}", l.digest), "size": l.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
            "layers": layers,
        });
        let manifest = blob(&mut builder, &mut written, &manifest)?;
        entries.extend(image.names.iter().map(|name| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.0, "size": manifest.1,
                "annotations": {"io.containerd.image.name": format!("{REGISTRY}/{name}")},
            })
        }));
    }
    append(
        &mut builder,
        "index.json",
        &json!({"schemaVersion": 2, "manifests": entries}).to_string(),
    )?;
    append(&mut builder, "oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    builder.finish()?;
    std::fs::rename(part, archive)?;
    Ok(())
}

/// Adds a JSON blob; gives its digest and size.
fn blob(
    builder: &mut tar::Builder<File>,
    written: &mut std::collections::BTreeSet<String>,
    value: &Value,
) -> Result<(String, usize)> {
    let text = value.to_string();
    let digest = fetch::hex(&Sha256::digest(text.as_bytes()));
    if written.insert(digest.clone()) {
        append(builder, &format!("blobs/sha256/{digest}"), &text)?;
    }
    Ok((format!("sha256:{digest}"), text.len()))
}

fn append(builder: &mut tar::Builder<File>, name: &str, text: &str) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, text.as_bytes())?;
    Ok(())
}
