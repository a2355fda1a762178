//! Memory of processes.
use anyhow::{Context, Result};

/// Resident memory of a process, in MiB (`VmRSS`).
///
/// # Errors
/// There is no such process.
pub fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let kib: f64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.split_whitespace().next())
        .context("the process has ended")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Memory of the BPF maps that a process holds open, in MiB, as the kernel accounts it. Zero where /proc does not tell.
///
/// # Errors
/// /proc cannot be read.
pub fn maps(pid: u32) -> Result<f64> {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor that was closed meanwhile was no map.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        if let (Some(id), Some(memory)) = (field("map_id:"), field("memlock:"))
            && seen.insert(id.to_owned())
        {
            bytes += memory.parse::<f64>()?;
        }
    }
    Ok(bytes / f64::from(1 << 20))
}
