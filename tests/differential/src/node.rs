//! The nodes that are compared, each a process of its own, as their parent has them.
use crate::probe::{Changes, Command, Outcome, Probe, Reply};
use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// Binds the calling thread to one of the processors that it may use; which one is left to its process id.
///
/// # Errors
/// The kernel refused it.
pub fn one_processor() -> Result<()> {
    let all = sched_getaffinity(None)?;
    let usable: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let mut one = CpuSet::new();
    one.set(usable[std::process::id() as usize % usable.len()]);
    sched_setaffinity(None, &one).context("the thread cannot be bound to a processor")
}

/// A node; ends with this.
pub struct Node {
    pub name: &'static str,
    child: Child,
    say: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

impl Node {
    /// Starts one; `program` is this package's own.
    ///
    /// # Errors
    /// `unshare` is missing.
    pub fn start(program: &str, name: &'static str, kube_proxy: &Path) -> Result<Self> {
        let cgroup = tests_lab::cgroup_path(name);
        let mut child = std::process::Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .arg(program)
            .arg(name)
            .arg(kube_proxy)
            .env("SKEP_TEST_CGROUP", &cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`unshare` is missing: run `cargo xtask setup`")?;
        let say = child.stdin.take();
        let hear = BufReader::new(child.stdout.take().context("a node without output")?);
        Ok(Self {
            name,
            child,
            say,
            hear,
            cgroup,
        })
    }

    fn say(&mut self, command: &Command) -> Result<()> {
        let say = self.say.as_mut().context("the node ended")?;
        let line = serde_json::to_string(command)?;
        writeln!(say, "{line}").with_context(|| format!("{} ended", self.name))
    }

    fn hear(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.hear.read_line(&mut line)?;
        match serde_json::from_str(&line).with_context(|| format!("{} ended", self.name))? {
            Reply::Failed(why) => bail!("{}: {why}", self.name),
            reply => Ok(reply),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends with its input, and takes down what it made.
        drop(self.say.take());
        let _ = self.child.wait();
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// All nodes go on to the next state, side by side.
///
/// # Errors
/// One of them could not.
pub fn follow(nodes: &mut [Node], changes: &Changes) -> Result<()> {
    let command = Command::State(changes.clone());
    nodes.iter_mut().try_for_each(|n| n.say(&command))?;
    for node in nodes {
        node.hear()?;
    }
    Ok(())
}

/// The outcomes of all probes at each node.
///
/// # Errors
/// One of them could not ask.
pub fn ask(nodes: &mut [Node], probes: &[Probe], tries: u16) -> Result<Vec<Vec<Outcome>>> {
    let command = Command::Ask(probes.to_vec(), tries);
    nodes.iter_mut().try_for_each(|n| n.say(&command))?;
    let mut all = Vec::new();
    for node in nodes {
        match node.hear()? {
            Reply::Outcomes(outcomes) if outcomes.len() == probes.len() => all.push(outcomes),
            other => bail!("{}: {other:?} in place of outcomes", node.name),
        }
    }
    Ok(all)
}
