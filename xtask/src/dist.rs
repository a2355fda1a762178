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
    /// Cargo's profile: `release` is quicker where a release build is there, for a look at the packages
    #[arg(long, default_value = "dist")]
    pub profile: String,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

const SERVER_UNIT: &str = "\
[Unit]
Description=Skep control plane
Documentation=file:/usr/share/doc/skep/README.md
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
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
Documentation=file:/usr/share/doc/skep/README.md
After=network-online.target containerd.service skep-agent.socket
Wants=network-online.target containerd.service skep-agent.socket
# Nothing can guess which node it is: /usr/share/doc/skep/examples/agent.yaml.
ConditionPathExists=/etc/skep/agent.yaml

[Service]
Type=exec
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

// The sockets of the cluster's DNS outlive the agent: questions wait in them while it is started again. The addresses are
// the service kube-dns's in the default ranges.
const AGENT_SOCKET: &str = "\
[Unit]
Description=Skep node agent: sockets of the cluster's DNS
Documentation=file:/usr/share/doc/skep/README.md

[Socket]
FileDescriptorName=dns
ListenDatagram=10.96.0.10:53
ListenStream=10.96.0.10:53
ListenDatagram=[fd00:10:96::a]:53
ListenStream=[fd00:10:96::a]:53
FreeBind=yes
BindIPv6Only=ipv6-only
ReceiveBuffer=4M
Backlog=1024

[Install]
WantedBy=sockets.target
";

/// One file of the package: path, mode, content.
type Entry = (String, u32, Vec<u8>);

pub fn run(args: Args) -> Result<()> {
    build::embedded()?;
    step::shown(
        "build skep for distribution",
        Command::new("cargo").args(["build", "--profile", &args.profile, "--package", "skep"]),
    )?;
    let built = build::target_dir()?.join(&args.profile).join("skep");
    let binary = std::fs::read(built).context("the binary was not built")?;
    std::fs::create_dir_all(&args.out)?;
    let tarball = args
        .out
        .join(format!("skep-{VERSION}-linux-{}.tar.gz", std::env::consts::ARCH));
    eprintln!("==> packing");
    std::fs::write(&tarball, gzip(&tar(&tarball_entries(&binary)?)?)?)?;
    let package = args
        .out
        .join(format!("skep_{VERSION}_{}.deb", debian_architecture()));
    let package_bytes = deb(&package_entries(&binary)?, &c_library(&binary))?;
    std::fs::write(&package, package_bytes)?;
    println!("{}\n{}", tarball.display(), package.display());
    Ok(())
}

fn tarball_entries(binary: &[u8]) -> Result<Vec<Entry>> {
    let top = format!("skep-{VERSION}");
    let mut entries = vec![
        (format!("{top}/skep"), 0o755, binary.to_vec()),
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
            format!("{top}/systemd/skep-agent.socket"),
            0o644,
            AGENT_SOCKET.into(),
        ),
    ];
    for document in DOCUMENTS {
        entries.push((format!("{top}/{document}"), 0o644, document_text(document)?));
    }
    Ok(entries)
}

fn package_entries(binary: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = vec![
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
            "./lib/systemd/system/skep-agent.socket".into(),
            0o644,
            AGENT_SOCKET.into(),
        ),
        (
            "./usr/share/doc/skep/copyright".into(),
            0o644,
            document_text("LICENSE")?,
        ),
        (
            SERVER_CONFIG.into(),
            0o644,
            document_text("examples/server.yaml")?,
        ),
    ];
    for document in DOCUMENTS.iter().filter(|d| **d != "LICENSE") {
        let path = format!("./usr/share/doc/skep/{document}");
        entries.push((path, 0o644, document_text(document)?));
    }
    Ok(entries)
}

/// What goes with the binary, as it lies in the repository.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "LICENSE",
    "LICENSES/GPL-2.0-only.txt",
    "examples/hello.yaml",
    "examples/client.yaml",
    "examples/server.yaml",
    "examples/agent.yaml",
];

/// Where the package puts the server's configuration; what people change there stays.
const SERVER_CONFIG: &str = "./etc/skep/server.yaml";

fn document_text(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{path} is missing"))
}

const AFTER_INSTALL: &str = "\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
";

// An upgrade stops nothing: pods, and the connections that the data path holds, do not notice it.
const BEFORE_REMOVAL: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now skep-agent.socket skep-agent.service skep-server.service || true
fi
";

/// The C library that this binary needs, as its versioned symbols tell (`GLIBC_2.34`).
fn c_library(binary: &[u8]) -> String {
    const MARK: &[u8] = b"GLIBC_2.";
    let minor = |at: usize| {
        let digits = binary[at + MARK.len()..]
            .iter()
            .take_while(|b| b.is_ascii_digit());
        digits.fold(0u32, |n, b| {
            n.saturating_mul(10).saturating_add(u32::from(b - b'0'))
        })
    };
    let found = binary.windows(MARK.len()).enumerate().filter(|(_, w)| *w == MARK);
    let newest = found.map(|(at, _)| minor(at)).max();
    newest.map_or("libc6".to_owned(), |minor| format!("libc6 (>= 2.{minor})"))
}

/// A Debian package: an `ar` archive of its version, control and data (deb(5)).
fn deb(files: &[Entry], c_library: &str) -> Result<Vec<u8>> {
    let size: usize = files.iter().map(|(_, _, content)| content.len()).sum();
    let control = format!(
        "Package: skep\nVersion: {VERSION}\nArchitecture: {}\nMaintainer: The Skep authors <skep@localhost>\n\
         Installed-Size: {}\nDepends: {c_library}, libgcc-s1, containerd | containerd.io, runc | containerd.io\n\
         Recommends: kubernetes-client\nSection: admin\nPriority: optional\n\
         Description: Kubernetes distribution with an eBPF data plane\n One binary: control plane, node agent, and clusters on one machine.\n",
        debian_architecture(),
        size / 1024
    );
    let kept = files.iter().filter(|(path, ..)| path.starts_with("./etc/"));
    let kept: String = kept.map(|(path, ..)| format!("{}\n", &path[1..])).collect();
    let control = tar(&[
        ("./control".into(), 0o644, control.into()),
        ("./conffiles".into(), 0o644, kept.into()),
        ("./postinst".into(), 0o755, AFTER_INSTALL.into()),
        ("./prerm".into(), 0o755, BEFORE_REMOVAL.into()),
    ])?;
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
            deb(&[("./usr/bin/skep".into(), 0o755, b"x".to_vec())], "libc6").unwrap(),
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

    #[test]
    fn the_newest_symbol_tells_the_c_library() {
        assert_eq!(
            c_library(b"..GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.17\0.."),
            "libc6 (>= 2.34)"
        );
        assert_eq!(c_library(b"static"), "libc6");
    }
}
