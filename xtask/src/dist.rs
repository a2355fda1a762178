//! `cargo xtask dist`: what a user installs: a tarball, and a Debian package with systemd units.

use crate::{build, step};
use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// Where to put the two files
    #[arg(long, default_value = "target/dist")]
    pub out: PathBuf,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

const SERVER_UNIT: &str = "\
[Unit]
Description=Skep control plane
Documentation=man:skep(1)
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/skep server
Restart=always
RestartSec=1
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
";

// The data path outlives the agent, and so do pods: only the agent itself is stopped and started.
const AGENT_UNIT: &str = "\
[Unit]
Description=Skep node agent
Documentation=man:skep(1)
After=network-online.target containerd.service
Wants=network-online.target containerd.service

[Service]
ExecStart=/usr/bin/skep agent
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
";

/// One file of the package: path, mode, content.
type Entry = (String, u32, Vec<u8>);

pub fn run(args: Args) -> Result<()> {
    step::this_xtask(&["build"])?;
    step::shown(
        "build skep for distribution",
        Command::new("cargo").args(["build", "--profile", "dist", "--package", "skep"]),
    )?;
    let binary = std::fs::read(build::target_dir()?.join("dist/skep")).context("the binary was not built")?;
    std::fs::create_dir_all(&args.out)?;
    let tarball = args
        .out
        .join(format!("skep-{VERSION}-linux-{}.tar.gz", std::env::consts::ARCH));
    std::fs::write(&tarball, gzip(&tar(&tarball_entries(&binary)?)?)?)?;
    let package = args
        .out
        .join(format!("skep_{VERSION}_{}.deb", debian_architecture()));
    std::fs::write(&package, deb(&package_entries(&binary)?)?)?;
    println!("{}\n{}", tarball.display(), package.display());
    Ok(())
}

fn tarball_entries(binary: &[u8]) -> Result<Vec<Entry>> {
    let top = format!("skep-{VERSION}");
    let text = |from: &str| std::fs::read(from).with_context(|| format!("{from} is missing"));
    Ok(vec![
        (format!("{top}/skep"), 0o755, binary.to_vec()),
        (format!("{top}/README.md"), 0o644, text("README.md")?),
        (format!("{top}/LICENSE"), 0o644, text("LICENSE")?),
        (
            format!("{top}/systemd/skep-server.service"),
            0o644,
            SERVER_UNIT.into(),
        ),
        (
            format!("{top}/systemd/skep-agent.service"),
            0o644,
            AGENT_UNIT.into(),
        ),
        (
            format!("{top}/examples/hello.yaml"),
            0o644,
            text("examples/hello.yaml")?,
        ),
    ])
}

fn package_entries(binary: &[u8]) -> Result<Vec<Entry>> {
    Ok(vec![
        ("./usr/bin/skep".into(), 0o755, binary.to_vec()),
        (
            "./lib/systemd/system/skep-server.service".into(),
            0o644,
            SERVER_UNIT.into(),
        ),
        (
            "./lib/systemd/system/skep-agent.service".into(),
            0o644,
            AGENT_UNIT.into(),
        ),
        (
            "./usr/share/doc/skep/copyright".into(),
            0o644,
            std::fs::read("LICENSE").context("LICENSE is missing")?,
        ),
    ])
}

/// A Debian package: an `ar` archive of its version, control and data (deb(5)).
fn deb(files: &[Entry]) -> Result<Vec<u8>> {
    let size: usize = files.iter().map(|(_, _, content)| content.len()).sum();
    let control = format!(
        "Package: skep\nVersion: {VERSION}\nArchitecture: {}\nMaintainer: The Skep authors <skep@localhost>\n\
         Installed-Size: {}\nDepends: libc6, containerd, runc\nSection: admin\nPriority: optional\n\
         Description: Kubernetes distribution with an eBPF data plane\n One binary: control plane, node agent, and clusters on one machine.\n",
        debian_architecture(),
        size / 1024
    );
    let control = tar(&[("./control".into(), 0o644, control.into())])?;
    let members: [(&str, Vec<u8>); 3] = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&control)?),
        ("data.tar.gz", gzip(&tar(files)?)?),
    ];
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        out.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100644,
                content.len()
            )
            .into_bytes(),
        );
        out.extend(&content);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    Ok(out)
}

fn debian_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Without times and owners: the same input gives the same file.
fn tar(files: &[Entry]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut folders = std::collections::BTreeSet::new();
    for (name, mode, content) in files {
        let parents = Path::new(name)
            .ancestors()
            .skip(1)
            .filter(|p| !["", "."].contains(&p.to_string_lossy().as_ref()));
        for folder in parents.collect::<Vec<_>>().into_iter().rev() {
            if folders.insert(folder.to_path_buf()) {
                builder.append(
                    &header(
                        &format!("{}/", folder.display()),
                        0o755,
                        tar::EntryType::Directory,
                        0,
                    )?,
                    &[][..],
                )?;
            }
        }
        builder.append(
            &header(name, *mode, tar::EntryType::Regular, content.len())?,
            content.as_slice(),
        )?;
    }
    Ok(builder.into_inner()?)
}

/// The path goes in as it is: `tar`'s own setter would drop the leading `./` that dpkg expects.
fn header(path: &str, mode: u32, kind: tar::EntryType, size: usize) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    let name = header.as_gnu_mut().context("a GNU header")?;
    name.name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    Ok(header)
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Stdio;

    #[test]
    fn dpkg_reads_the_package() {
        let dir = std::env::temp_dir().join(format!("skep-deb-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x.deb");
        std::fs::write(
            &path,
            deb(&[("./usr/bin/skep".into(), 0o755, b"x".to_vec())]).unwrap(),
        )
        .unwrap();
        let out = Command::new("dpkg")
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let listing = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success() && listing.contains("-rwxr-xr-x") && listing.contains("./usr/bin/skep"),
            "{listing}"
        );
    }
}
