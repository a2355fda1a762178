//! Processes by number and start time, so that a number the kernel gave to somebody else is never signalled.
use crate::kernel;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A process that was started once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Clock ticks between the machine's start and its own.
    pub started: u64,
}

impl Process {
    /// The running process with this number.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, started })
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// A descriptor of the process, if it still runs.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The descriptor names one process for good; only now is it known which.
        self.alive().then_some(fd)
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(fd) = self.open() {
            // It may end in between: that is what was wanted.
            let _ = pidfd_send_signal(fd, signal);
        }
    }

    /// Waits until it has ended; whether it did before the deadline.
    pub async fn gone(&self, deadline: Duration) -> bool {
        let Some(fd) = self.open() else { return true };
        tokio::time::timeout(deadline, kernel::ended(fd))
            .await
            .is_ok_and(|watched| watched.is_ok())
            || !self.alive()
    }
}

/// State and start time (fields 3 and 22 of proc_pid_stat(5)); the name in field 2 may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((state, rest.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_confuse_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
    }

    #[tokio::test]
    async fn another_process_with_the_number_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let real = Process::of(child.id()).unwrap();
        let stale = Process {
            started: real.started + 1,
            ..real
        };
        stale.signal(Signal::KILL);
        assert!(stale.gone(Duration::from_secs(1)).await);
        assert!(real.alive());
        real.signal(Signal::KILL);
        assert!(real.gone(Duration::from_secs(5)).await);
        child.wait().unwrap();
    }
}
