//! The real kube-proxy: started in the caller's namespaces against [`crate::api`], read by its log.
use crate::api;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How kube-proxy makes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Mode {
    /// The name of its `mode`.
    fn config(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        }
    }

    /// The program that plays iptables.
    fn tables(self) -> &'static str {
        match self {
            Self::IptablesLegacy => "xtables-legacy-multi",
            _ => "xtables-nft-multi",
        }
    }
}

/// What kube-proxy is told of its node.
#[derive(Clone, Debug)]
pub struct Setup {
    pub node: &'static str,
    /// The ranges of pods, as its `clusterCIDR` has them.
    pub pods: String,
    /// Between two syncs; its own choice if `None`.
    pub pause: Option<Duration>,
}

/// What its log tells.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Synced(Synced),
    /// It knows of other labels of its node.
    Labels,
}

/// A sync that kube-proxy reported.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    /// Of IPv4 rules.
    pub v4: bool,
    /// When its line arrived.
    pub at: Instant,
    /// How long it says the sync took.
    pub took: Duration,
}

/// A running kube-proxy; ends with this.
pub struct KubeProxy {
    child: Child,
    events: Receiver<Event>,
}

/// A little longer than `minSyncPeriod`, whose default is used.
const QUIET: Duration = Duration::from_millis(1_100);

const FOLDER: &str = "/run/kube-proxy";

impl KubeProxy {
    /// Starts it.
    ///
    /// # Errors
    /// Its program or those it needs are missing.
    pub fn start(program: &Path, mode: Mode, setup: &Setup) -> Result<Self> {
        let bin = tools(mode)?;
        let config = configure(mode, setup)?;
        // setpriv lets it end with the thread that started it, whatever happens to that.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--config")
            .arg(config)
            .arg(if setup.pause.is_some() { "-v=4" } else { "-v=2" })
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kube-proxy cannot be started")?;
        let log = child.stderr.take().context("kube-proxy has no log")?;
        // Far more than one measurement's worth; a full channel makes kube-proxy's log wait, nothing is lost.
        let (sender, events) = sync_channel(4096);
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if is_trouble(&line) {
                    eprintln!("kube-proxy: {line}");
                }
                if let Some(event) = event(&line)
                    && sender.send(event).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { child, events })
    }

    /// The next sync of IPv4 rules.
    ///
    /// # Errors
    /// None came in time, or kube-proxy ended.
    pub fn next_sync(&self, limit: Duration) -> Result<Synced> {
        let end = Instant::now() + limit;
        loop {
            match self.next_event(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Synced(s)) if s.v4 => return Ok(s),
                Ok(_) => {}
                Err(e) => return Err(e).with_context(|| format!("no rules were synced within {limit:?}")),
            }
        }
    }

    /// Whatever its log tells next.
    ///
    /// # Errors
    /// Nothing came in time, or kube-proxy ended.
    pub fn next_event(&self, limit: Duration) -> Result<Event> {
        match self.events.recv_timeout(limit) {
            Ok(e) => Ok(e),
            Err(RecvTimeoutError::Timeout) => bail!("kube-proxy has not spoken for {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("kube-proxy ended"),
        }
    }

    /// Waits until the next change is carried out at once (it gathers changes for a second after each sync), and forgets the
    /// syncs that nobody waited for.
    pub fn rest(&self) {
        while self.events.recv_timeout(QUIET).is_ok() {}
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder in which `iptables` and its kin are the ones of this mode.
fn tools(mode: Mode) -> Result<PathBuf> {
    let bin = Path::new(FOLDER).join("bin");
    fs::create_dir_all(&bin)?;
    let program = ["/usr/sbin", "/sbin", "/usr/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(mode.tables()))
        .find(|p| p.is_file())
        .with_context(|| format!("{} is missing: run `cargo xtask setup`", mode.tables()))?;
    for name in ["iptables", "ip6tables"] {
        for end in ["", "-save", "-restore"] {
            symlink(&program, bin.join(format!("{name}{end}")))?;
        }
    }
    Ok(bin)
}

fn configure(mode: Mode, setup: &Setup) -> Result<PathBuf> {
    let kubeconfig = Path::new(FOLDER).join("kubeconfig");
    api::write_kubeconfig(&kubeconfig)?;
    let config = Path::new(FOLDER).join("config");
    // Zeros leave settings alone that are the whole machine's.
    let mut settings = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode.config(),
        "hostnameOverride": setup.node,
        "clusterCIDR": setup.pods,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": kubeconfig},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"localhostNodePorts": false},
    });
    if let Some(pause) = setup.pause {
        settings["nftables"] = json!({"minSyncPeriod": format!("{}ms", pause.as_millis())});
    }
    fs::write(&config, settings.to_string())?;
    Ok(config)
}

/// What a line of the log tells.
fn event(line: &str) -> Option<Event> {
    if line.contains("\"Updated proxier node topology labels\"") {
        return Some(Event::Labels);
    }
    if !line.contains("\"SyncProxyRules complete\"") {
        return None;
    }
    let text = line.split("elapsed=\"").nth(1)?.split('"').next()?;
    Some(Event::Synced(Synced {
        v4: !line.contains("ipFamily=\"IPv6\""),
        at: Instant::now(),
        took: go_duration(text)?,
    }))
}

/// An error, but for two that mean nothing here: the first look for rules, when there are none yet, and balancers without a port that
/// tells of their health.
fn is_trouble(line: &str) -> bool {
    let expected = [
        "Failed to list existing nftables objects",
        "no healthcheck nodeport",
    ];
    line.starts_with(['E', 'F']) && !expected.iter().any(|text| line.contains(text))
}

/// Go's way to write a duration: `1m3.5s`, `12.3ms`, `4µs`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit].parse().ok()?;
        rest = &rest[unit..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "µs" | "us" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Some(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let read = |text| go_duration(text).map(|d| d.as_micros());
        assert_eq!(read("1m3.5s"), Some(63_500_000));
        assert_eq!(read("12.3ms"), Some(12_300));
        assert_eq!(read("4µs"), Some(4));
        assert_eq!(read("4 parsecs"), None);
    }

    #[test]
    fn finished_syncs_are_told_by_family() {
        let line = |family| {
            format!("I1 1 proxier.go:1] \"SyncProxyRules complete\" ipFamily=\"{family}\" elapsed=\"2s\"")
        };
        let read = |text: &str| match event(text) {
            Some(Event::Synced(s)) => Some((s.v4, s.took.as_secs())),
            _ => None,
        };
        assert_eq!(read(&line("IPv4")), Some((true, 2)));
        assert_eq!(read(&line("IPv6")), Some((false, 2)));
        assert_eq!(read("I1 1 proxier.go:1] \"Syncing\" elapsed=\"2s\""), None);
    }
}
