//! `cargo xtask peers`: upstream's own programs and its end-to-end suite, built from the pinned module `tests/peers`.

use crate::step;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release of Kubernetes that `tests/peers/go.mod` pins.
pub const RELEASE: &str = "v1.36.2";
const MODULE: &str = "tests/peers";

#[derive(clap::Args)]
pub struct Args {
    /// Which programs; all if none is named
    #[arg(value_enum)]
    pub peers: Vec<Peer>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Peer {
    Kubectl,
    E2e,
    Ginkgo,
    Agnhost,
    Nonewprivs,
    #[value(name = "regression-issue-74839")]
    Regression74839,
    KubeProxy,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    /// Not upstream's: renders the chart in deploy/, for tests
    Chart,
}

impl Peer {
    const ALL: [Peer; 12] = [
        Peer::Kubectl,
        Peer::E2e,
        Peer::Ginkgo,
        Peer::Agnhost,
        Peer::Nonewprivs,
        Peer::Regression74839,
        Peer::KubeProxy,
        Peer::KubeApiserver,
        Peer::KubeControllerManager,
        Peer::KubeScheduler,
        Peer::Kubelet,
        Peer::Chart,
    ];

    fn name(self) -> &'static str {
        match self {
            Peer::Kubectl => "kubectl",
            Peer::E2e => "e2e.test",
            Peer::Ginkgo => "ginkgo",
            Peer::Agnhost => "agnhost",
            Peer::Nonewprivs => "nonewprivs",
            Peer::Regression74839 => "regression-issue-74839",
            Peer::KubeProxy => "kube-proxy",
            Peer::KubeApiserver => "kube-apiserver",
            Peer::KubeControllerManager => "kube-controller-manager",
            Peer::KubeScheduler => "kube-scheduler",
            Peer::Kubelet => "kubelet",
            Peer::Chart => "chart",
        }
    }

    /// Where its program lies once built.
    pub fn path(self) -> PathBuf {
        Path::new("target/peers").join(self.name())
    }

    fn build(self) -> Result<()> {
        let mut go = Command::new("go");
        match self {
            Peer::E2e => go.args(["test", "-c"]),
            _ => go.arg("build"),
        };
        go.args(["-trimpath", "-ldflags", &linker_flags(), "-o"])
            .arg(std::path::absolute(self.path())?);
        match self {
            Peer::E2e => go.arg("./e2e"),
            Peer::Ginkgo => go.arg("github.com/onsi/ginkgo/v2/ginkgo"),
            Peer::Agnhost | Peer::Nonewprivs | Peer::Regression74839 => {
                go.arg(format!("k8s.io/kubernetes/test/images/{}", self.name()))
            }
            _ => go.arg(format!("./cmd/{}", self.name())),
        };
        go.current_dir(MODULE).env("CGO_ENABLED", "0");
        step::quiet(&format!("building upstream's {} {RELEASE}", self.name()), &mut go)
    }
}

/// Upstream reads its own version from these variables; without them version checks go wrong.
fn linker_flags() -> String {
    let set = |key: &str, value: &str| format!("-X k8s.io/component-base/version.{key}={value}");
    [
        "-s -w".to_string(),
        set("gitVersion", RELEASE),
        set("gitMajor", "1"),
        set("gitMinor", "36"),
        set("gitTreeState", "clean"),
    ]
    .join(" ")
}

pub fn run(args: Args) -> Result<()> {
    if let Err(reason) = usable_go() {
        bail!("upstream's programs cannot be built: {reason}");
    }
    let wanted = if args.peers.is_empty() {
        Peer::ALL.to_vec()
    } else {
        args.peers
    };
    ensure(&wanted)
}

/// Builds what is not there yet. A built program is kept until the pinned module changes.
pub fn ensure(peers: &[Peer]) -> Result<()> {
    std::fs::create_dir_all("target/peers")?;
    for &peer in peers {
        if !up_to_date(peer) {
            peer.build()?;
        }
    }
    Ok(())
}

fn up_to_date(peer: Peer) -> bool {
    let modified = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
    let source = match peer {
        Peer::E2e => "tests/peers/e2e/e2e_test.go".to_string(),
        Peer::Agnhost | Peer::Ginkgo => "tests/peers/go.mod".to_string(),
        other => format!("tests/peers/cmd/{}/main.go", other.name()),
    };
    let built = modified(&peer.path());
    let newest = modified(Path::new("tests/peers/go.sum")).max(modified(Path::new(&source)));
    built.is_some() && built >= newest
}

/// Upstream's source of the pinned release, in Go's module cache.
pub fn source() -> Result<PathBuf> {
    let out = Command::new("go")
        .args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"])
        .current_dir(MODULE)
        .output()?;
    let dir = String::from_utf8(out.stdout)?.trim().to_string();
    if !out.status.success() || dir.is_empty() {
        bail!("upstream's source is not in Go's module cache\nhint: run `cargo xtask peers` first");
    }
    Ok(PathBuf::from(dir))
}

/// Go 1.26 or newer, or the reason why there is none.
pub fn usable_go() -> Result<(), String> {
    let out = Command::new("go")
        .args(["env", "GOVERSION"])
        .output()
        .map_err(|_| "there is no `go` on PATH".to_string())?;
    let version = String::from_utf8_lossy(&out.stdout).trim().to_string();
    let minor = version
        .strip_prefix("go1.")
        .and_then(|rest| rest.split(['.', 'r', 'b']).next()?.parse::<u32>().ok());
    match minor {
        Some(minor) if minor >= 26 => Ok(()),
        _ => Err(format!(
            "Go 1.26 or newer is needed, this machine has `{version}`"
        )),
    }
}
