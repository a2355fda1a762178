//! Programs that a cluster is made of.

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The workspace's folder: tests run in their package's.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One of upstream's programs.
pub fn peer(name: &str) -> Result<PathBuf> {
    let path = root().join("target/peers").join(name);
    ensure!(
        path.is_file(),
        "upstream's {name} is not there\nhint: run `cargo xtask peers`"
    );
    Ok(path)
}

/// The binary under test, as `cargo xtask build` leaves it.
pub fn skep() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("release/skep");
    ensure!(
        path.is_file(),
        "there is no binary to test\nhint: run `cargo xtask build`"
    );
    Ok(path)
}

/// Runs a command to its end; its stdout, or an error with all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} cannot be started"))?;
    let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    if !out.status.success() {
        bail!(
            "{command:?} ended with {}: {said} {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(said)
}

/// Lets time go by, where there is nothing to wait on: upstream's programs tell nobody that they are ready, and connections
/// that go on for a while are what is looked at.
#[expect(clippy::disallowed_methods, reason = "no event tells it")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks until it is so.
pub fn eventually<T>(limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("not within {limit:?}")));
            }
            Err(_) => pause(Duration::from_millis(200)),
        }
    }
}

/// A program in the background; dropping it kills it.
pub struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        // A program in another namespace for process numbers is the child of `nsenter`.
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let program = children
            .split_whitespace()
            .next()
            .unwrap_or(&pid.to_string())
            .to_owned();
        run(Command::new("kill").arg(program))?;
        let limit = Duration::from_secs(20);
        ensure!(self.end_within(limit)?, "it does not end: {}", self.said());
        self.child.wait()?;
        Ok(())
    }

    /// Whether it ends in time.
    fn end_within(&self, limit: Duration) -> Result<bool> {
        let pid = Pid::from_child(&self.child);
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let limit = Timespec::try_from(limit)?;
        let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit))?;
        Ok(ended > 0)
    }

    /// Waits until it ends by itself.
    pub fn ended(mut self, limit: Duration) -> Result<()> {
        ensure!(
            self.end_within(limit)?,
            "it has not ended within {limit:?}: {}",
            self.said()
        );
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", self.said());
        Ok(())
    }

    /// The last lines of its log.
    pub fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
