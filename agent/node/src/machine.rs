//! What the machine is and has, read from the kernel.

use std::fs;
use std::path::Path;

/// Facts that stay as they are while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of the file system that holds the agent's state.
    pub disk: i64,
    /// `/etc/machine-id`, empty when there is none.
    pub machine_id: String,
    /// The firmware's identifier, or the machine's.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os: String,
    /// In Go's words: `amd64`, `arm64` …
    pub arch: String,
}

/// What is left of the machine at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes of memory that could be had.
    pub memory_available: i64,
    /// Share of the state's file system that is free, in per cent.
    pub disk_free: i64,
    /// Share of process identifiers that is free, in per cent.
    pub pids_free: i64,
}

impl Machine {
    /// Reads the facts; `state` is the agent's state folder. What cannot be read stays empty.
    #[must_use]
    pub fn read(state: &Path) -> Self {
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
            memory: meminfo(&text("/proc/meminfo"), "MemTotal"),
            disk: disk(state).map_or(0, |(total, _)| total),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os: os_name(&text("/etc/os-release")),
            arch: arch(std::env::consts::ARCH).to_owned(),
        }
    }
}

impl Pressure {
    /// Reads what is left.
    #[must_use]
    pub fn read(state: &Path) -> Self {
        let (total, free) = disk(state).unwrap_or((1, 1));
        let most: i64 = text("/proc/sys/kernel/pid_max").parse().unwrap_or(1);
        let used = text("/proc/loadavg")
            .split(['/', ' '])
            .nth(4)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        Self {
            memory_available: meminfo(&text("/proc/meminfo"), "MemAvailable"),
            disk_free: free.saturating_mul(100) / total.max(1),
            pids_free: (most - used).max(0) * 100 / most.max(1),
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Bytes of a line such as `MemTotal:  123 kB`.
fn meminfo(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let number = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse::<i64>().ok());
    number.unwrap_or(0) * 1024
}

/// Bytes in all and free of the file system that holds `path`.
fn disk(path: &Path) -> Option<(i64, i64)> {
    let found = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok())?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(found.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(found.f_blocks), bytes(found.f_bavail)))
}

fn os_name(text: &str) -> String {
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       2048 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), 2 << 20);
        assert_eq!(meminfo(text, "MemAvailable"), 1 << 20);
        assert_eq!(meminfo(text, "Nothing"), 0);
    }

    #[test]
    fn this_machine_has_processors_memory_and_a_kernel() {
        let machine = Machine::read(Path::new("/nowhere/at/all"));
        assert!(machine.cpus > 0 && machine.memory > 0 && machine.disk > 0);
        assert!(!machine.kernel.is_empty() && !machine.boot_id.is_empty());
        assert!(Pressure::read(Path::new("/")).pids_free > 0);
    }
}
