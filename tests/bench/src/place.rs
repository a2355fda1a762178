//! A world as the bench sees it: a child process, told by lines what to do.
use crate::peer::Peer;
use crate::world::{Command, Reply};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};

/// A running world; ends with this.
pub struct Place {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

/// What a world is made of.
pub struct Setup<'a> {
    pub peer: Peer,
    pub services: u32,
    pub cold: u32,
    pub kube_proxy: &'a Path,
    pub limit: u64,
}

impl Place {
    /// Starts a world and waits until it is programmed; also returns how long that took, in milliseconds.
    ///
    /// # Errors
    /// The peer cannot run here, and why.
    pub fn start(setup: &Setup<'_>) -> Result<(Self, Vec<f64>)> {
        let cgroup = cgroup(&format!("{}-{}", setup.peer.name(), setup.services))?;
        let mut child = isolated()?
            .arg("world")
            .args(["--peer", setup.peer.name()])
            .args(["--services", &setup.services.to_string()])
            .args(["--cold", &setup.cold.to_string()])
            .args(["--limit", &setup.limit.to_string()])
            .arg("--kube-proxy")
            .arg(std::path::absolute(setup.kube_proxy)?)
            .arg("--cgroup")
            .arg(&cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`unshare` is missing: run `cargo xtask setup`")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the world has an output")?);
        let mut place = Self {
            child,
            input,
            output,
            cgroup,
        };
        let cold = place.reply()?;
        Ok((place, cold))
    }

    /// Has something done, and returns what was measured.
    ///
    /// # Errors
    /// It could not be done, and why.
    pub fn ask(&mut self, command: &Command) -> Result<Vec<f64>> {
        let input = self.input.as_mut().context("the world is open")?;
        writeln!(input, "{}", serde_json::to_string(command)?)?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Vec<f64>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("its process ended (needs root)");
        }
        match serde_json::from_str(&line)? {
            Reply::Samples(samples) => Ok(samples),
            Reply::Failed(reason) => bail!(reason),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its input ends, so it ends after what it does at the moment, which has a deadline.
        self.input = None;
        let _ = self.child.wait();
        // A helper of kube-proxy may have outlived it.
        if let Err(e) = remove(&self.cgroup) {
            eprintln!("    {} stays behind: {e}", self.cgroup.display());
        }
    }
}

/// How long a killed process may take to go.
const GONE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Ends whatever is left in a world's own cgroup, waits until the kernel says that it is empty, and removes it.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1")?;
    let events = fs::File::open(cgroup.join("cgroup.events"))?;
    let mut text = String::new();
    loop {
        text.clear();
        (&events).rewind()?;
        (&events).read_to_string(&mut text)?;
        if text.contains("populated 0") {
            return fs::remove_dir(cgroup);
        }
        let mut changed = [PollFd::new(&events, PollFlags::PRI)];
        if poll(&mut changed, Some(&GONE))? == 0 {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
    }
}

/// Memory of Skep's agent and of its maps, in MiB.
///
/// # Errors
/// It could not be measured.
pub fn memory(skep: &Path, services: u32) -> Result<(f64, f64)> {
    let cgroup = cgroup(&format!("agent-{services}"))?;
    let out = isolated()?
        .args(["memory", "--services", &services.to_string()])
        .arg("--skep")
        .arg(std::path::absolute(skep)?)
        .arg("--cgroup")
        .arg(&cgroup)
        .stderr(Stdio::inherit())
        .output();
    remove(&cgroup).with_context(|| format!("{} stays behind", cgroup.display()))?;
    let out = out?;
    let text = String::from_utf8(out.stdout)?;
    let mut numbers = text.lines().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(process), Some(maps)) if out.status.success() => Ok((process?, maps?)),
        _ => bail!("the process that measures the agent ended with {}", out.status),
    }
}

/// What [`crate::packets::run`] prints, in a process and namespaces of its own.
///
/// # Errors
/// It ended with an error.
pub fn packets() -> Result<String> {
    let out = isolated()?.arg("packets").stderr(Stdio::inherit()).output()?;
    if !out.status.success() {
        bail!("the process that runs the programs ended with {}", out.status);
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// This program again, in a network and a mount namespace of its own.
fn isolated() -> Result<Process> {
    let mut process = Process::new("unshare");
    process
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?);
    Ok(process)
}

/// A cgroup2 folder of a unique name; the world makes it.
fn cgroup(name: &str) -> Result<PathBuf> {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .map(Path::new)
        .find(|p| p.join("cgroup.procs").exists() && p.join("cgroup.subtree_control").exists())
        .context("no cgroup2 is mounted: run `cargo xtask setup`")?;
    Ok(root.join(format!("skep-bench-{}-{name}", std::process::id())))
}
