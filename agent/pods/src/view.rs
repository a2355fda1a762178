//! What the container runtime has of one pod.

use jiff::Timestamp;
use std::net::IpAddr;

/// Sandboxes and containers of one pod, each newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Container instances, newest first.
    pub containers: Vec<Instance>,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's identifier.
    pub id: String,
    /// Counts the sandboxes of this pod from zero.
    pub attempt: u32,
    /// Whether it is up.
    pub ready: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Its addresses, the primary one first; empty for host-network pods.
    pub ips: Vec<IpAddr>,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The runtime's identifier.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// Counts the runs of this container from zero.
    pub attempt: u32,
    /// The sandbox it lives in.
    pub sandbox: String,
    /// When it was made.
    pub created: Timestamp,
    /// What it is doing.
    pub state: State,
    /// The image as asked for.
    pub image: String,
    /// The image as resolved (digest or identifier).
    pub image_id: String,
    /// Hash of the specification it was made from; none when the runtime lost it.
    pub hash: Option<u64>,
    /// Seconds to wait after its end before the next run.
    pub backoff: u32,
}

/// The state of a container instance.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Ended.
    Exited(Exit),
    /// The runtime does not know.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Start; none when it never started.
    pub started: Option<Timestamp>,
    /// End.
    pub finished: Timestamp,
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// The runtime's reason: `Completed`, `Error`, `OOMKilled`, `StartError` …
    pub reason: String,
    /// The termination message, or the runtime's own message.
    pub message: String,
}

impl View {
    /// The newest sandbox.
    #[must_use]
    pub fn newest_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().max_by_key(|s| (s.attempt, s.created))
    }

    /// The newest sandbox, if it is up.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.newest_sandbox().filter(|s| s.ready)
    }

    /// All runs of `name`, newest first.
    pub fn runs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Instance> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// The newest run of `name`.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&Instance> {
        self.containers
            .iter()
            .filter(|c| c.name == name)
            .max_by_key(|c| (c.attempt, c.created))
    }

    /// The newest run of `name` in `sandbox`.
    #[must_use]
    pub fn newest_in(&self, name: &str, sandbox: &str) -> Option<&Instance> {
        self.newest(name).filter(|c| c.sandbox == sandbox)
    }

    /// Whether any container runs.
    #[must_use]
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(Instance::running)
    }

    /// Sorts both lists newest first, as the other methods and the garbage rules expect.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.sandboxes
            .sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created)));
        self.containers
            .sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created)));
        self
    }
}

impl Instance {
    /// Whether it runs.
    #[must_use]
    pub fn running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}
