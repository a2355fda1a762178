//! Kubeconfigs for people and for components that run elsewhere.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use control_plane_apiserver::pki::{Pki, PkiError};

/// File name, user and groups of each.
const WHO: [(&str, &str, &[&str]); 3] = [
    ("admin.kubeconfig", "kubernetes-admin", &["system:masters"]),
    (
        "controller-manager.kubeconfig",
        "system:kube-controller-manager",
        &[],
    ),
    ("scheduler.kubeconfig", "system:kube-scheduler", &[]),
];

/// Why kubeconfigs could not be written.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A client certificate could not be made.
    #[error("cannot make the client certificate of {user}")]
    Certificate {
        /// Whose.
        user: &'static str,
        /// Why.
        #[source]
        source: PkiError,
    },
    /// A file could not be written.
    #[error("cannot write {path}: check that its folder can be written to and has room")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// URL of the API server at an address.
pub(crate) fn url(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("https://{address}:{port}"),
        IpAddr::V6(address) => format!("https://[{address}]:{port}"),
    }
}

/// Writes those kubeconfigs that are missing in `dir` or reach another server, readable by their owner only.
pub(crate) fn write(dir: &Path, pki: &Pki, server: &str) -> Result<(), KubeconfigError> {
    for (file, user, groups) in WHO {
        let path = dir.join(file);
        if is_current(&path, pki, server) {
            continue;
        }
        let client = pki
            .issue_client(user, groups)
            .map_err(|source| KubeconfigError::Certificate { user, source })?;
        let text = pki.kubeconfig(server, &client);
        write_private(&path, text.as_bytes()).map_err(|source| KubeconfigError::Write { path, source })?;
    }
    Ok(())
}

fn is_current(path: &Path, pki: &Pki, server: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else {
        return false;
    };
    let Ok(sample) = pki.issue_client("sample", &[]) else {
        return false;
    };
    // The same server and the same authority stand in the same lines.
    let lines = |text: &str, what: &str| text.lines().find(|line| line.contains(what)).map(str::to_owned);
    let wanted = pki.kubeconfig(server, &sample);
    ["server:", "certificate-authority-data:"]
        .iter()
        .all(|what| lines(&text, what) == lines(&wanted, what))
}

/// Makes a folder that only its owner may enter.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Writes beside the file and renames, so that a reader never sees half of it.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
