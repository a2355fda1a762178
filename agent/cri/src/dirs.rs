//! Where the agent keeps a pod's files.

use agent_pods::names::log_folder;
use std::path::{Path, PathBuf};

/// Folders below the node's state folder.
#[derive(Clone, Debug)]
pub struct Dirs {
    state: PathBuf,
}

impl Dirs {
    /// Folders below `state`.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
        }
    }

    /// The folder with one folder per pod.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// A pod's folder.
    #[must_use]
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// A volume of a pod, below a folder named for its type.
    #[must_use]
    pub fn volume(&self, uid: &str, kind: &str, name: &str) -> PathBuf {
        self.pod(uid)
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(name)
    }

    /// The pod's `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// The file behind a container run's termination message path.
    #[must_use]
    pub fn termination(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid)
            .join("containers")
            .join(container)
            .join(attempt.to_string())
    }

    /// The log root.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs").join("pods")
    }

    /// A pod's log folder.
    #[must_use]
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs().join(log_folder(namespace, name, uid))
    }

    /// Seccomp profiles for `Localhost`.
    #[must_use]
    pub fn seccomp(&self) -> PathBuf {
        self.state.join("seccomp")
    }
}
