//! One virtual machine: boots, reads the results, gives the verdict.

use super::Kernel;
use super::initramfs::Archive;
use super::payload::Payload;
use super::unpack::Bootable;
use crate::step;
use crate::test::Outcome;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A machine that has not ended by itself by then is ended.
const DEADLINE: Duration = Duration::from_secs(1800);

/// What a machine gets.
pub struct Size {
    pub name: String,
    pub memory_mib: u32,
}

/// What one machine reported.
pub struct Report {
    pub outcome: Outcome,
    /// Program and the instructions that this kernel's verifier walked.
    pub budget: Vec<(String, u64)>,
}

pub fn boot(
    kernel: &Kernel,
    size: &Size,
    booted: &Bootable,
    payload: &Payload,
    filter: Option<&str>,
) -> Result<Report> {
    let dir = std::path::absolute("target/kernels")?.join(&size.name);
    std::fs::create_dir_all(&dir)?;
    let run_id = format!("{}-{}", std::process::id(), size.name);
    std::fs::write(
        dir.join("initramfs"),
        initramfs(booted, payload, &run_id, &kernel.label, filter)?,
    )?;
    eprintln!(
        "==> kernel {} in a virtual machine ({})",
        kernel.label,
        accelerator()
    );
    let start = Instant::now();
    let cpu = kernel.cpu.as_deref();
    let mut console = run_qemu(&dir, &booted.vmlinux, size.memory_mib, cpu)?;
    let mut results = std::fs::read_to_string(dir.join("results")).unwrap_or_default();
    if !results.contains(&format!("BEGIN {run_id}")) {
        // Nothing of ours has run yet: the emulator failed the kernel. What has begun is never repeated.
        eprintln!(
            "    kernel {} did not come up under emulation: once more",
            kernel.label
        );
        console = run_qemu(&dir, &booted.vmlinux, size.memory_mib, cpu)?;
        results = std::fs::read_to_string(dir.join("results")).unwrap_or_default();
    }
    let report = verdict(kernel, &run_id, &results, &console)?;
    eprintln!(
        "    kernel {}: {} passed, {} failed, {} skipped in {:.0} s",
        kernel.label,
        report.outcome.passed,
        report.outcome.failed,
        report.outcome.skipped.len(),
        start.elapsed().as_secs_f32()
    );
    Ok(report)
}

fn initramfs(
    booted: &Bootable,
    payload: &Payload,
    run_id: &str,
    label: &str,
    filter: Option<&str>,
) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in ["proc", "sys", "tmp", "run", "etc", "root", "var", "modules"] {
        archive.folder(folder);
    }
    archive.link("sbin", "bin");
    archive.file(
        "etc/run",
        format!("{run_id}\n{label}\n{}\n", filter.unwrap_or_default()).as_bytes(),
    );
    for module in &booted.modules {
        let name = module
            .file_name()
            .and_then(|n| n.to_str())
            .context("a module without a name")?;
        archive.file(&format!("modules/{name}"), &std::fs::read(module)?);
    }
    payload.add_to(&mut archive);
    Ok(archive.finish())
}

/// KVM only where the hardware kind is there: other kinds do not boot stock kernels.
fn accelerator() -> &'static str {
    let hardware = Path::new("/sys/module/kvm_intel").exists() || Path::new("/sys/module/kvm_amd").exists();
    let open = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if hardware && open { "kvm" } else { "tcg" }
}

/// Runs the machine to its end; returns what it wrote to its console.
fn run_qemu(dir: &Path, vmlinux: &Path, memory_mib: u32, cpu: Option<&str>) -> Result<String> {
    let qemu = step::find("qemu-system-x86_64").context("QEMU is missing\nhint: run `cargo xtask setup`")?;
    let console = std::fs::File::create(dir.join("console"))?;
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", &DEADLINE.as_secs().to_string()])
        .arg(qemu);
    match accelerator() {
        "kvm" => command.args(["-accel", "kvm", "-cpu", "host"]),
        // Without -cx16 QEMU 7.2 crashes guests now and then: its emulation of cmpxchg16b spoils the flags. And it goes through
        // `rep movsb` byte by byte, which the kernel uses to copy and clear where these two say that it is fast.
        _ => command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            &format!("{},-erms,-fsrm", cpu.unwrap_or("max,-cx16")),
        ]),
    };
    command.args([
        "-M",
        "pc",
        "-m",
        &format!("{memory_mib}M"),
        "-smp",
        // Two emulated processors patch running code under each other now and then.
        "1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command
        .args(["-serial", "stdio", "-serial"])
        .arg(format!("file:{}", dir.join("results").display()));
    command
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(dir.join("initramfs"));
    command.args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"]);
    command
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    command.status().context("QEMU cannot be started")?;
    Ok(String::from_utf8_lossy(&std::fs::read(dir.join("console"))?).into_owned())
}

/// The END line with the run's id and matching counts is the only proof that everything ran.
fn verdict(kernel: &Kernel, run_id: &str, results: &str, console: &str) -> Result<Report> {
    let mut report = Report {
        outcome: Outcome::default(),
        budget: Vec::new(),
    };
    let mut end = None;
    for line in results.lines() {
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line, ""));
        match word {
            "PASS" => report.outcome.passed += 1,
            "FAIL" => {
                report.outcome.failed += 1;
                println!("FAILED on {}: {rest}", kernel.label);
            }
            "SKIP" => {
                let (name, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
                report
                    .outcome
                    .skipped
                    .push((format!("kernel-{}::{name}", kernel.label), reason.to_string()));
            }
            "BUDGET" => {
                let (program, count) = rest.split_once(' ').context("broken BUDGET line")?;
                report.budget.push((program.to_string(), count.parse()?));
            }
            "END" => end = Some(rest.to_string()),
            _ => {}
        }
    }
    let expected = format!(
        "{run_id} pass={} fail={} skip={}",
        report.outcome.passed,
        report.outcome.failed,
        report.outcome.skipped.len()
    );
    let crashed = ["Oops", "BUG:", "WARNING:", "Kernel panic"]
        .iter()
        .find(|w| console.contains(**w));
    if end.as_deref() != Some(&expected) || crashed.is_some() || report.outcome.failed > 0 {
        println!(
            "--- the end of the console of kernel {} ---\n{}",
            kernel.label,
            tail(console, 80)
        );
    }
    if let Some(word) = crashed {
        bail!("kernel {}: `{word}` on its console", kernel.label);
    }
    if end.as_deref() != Some(&expected) {
        bail!(
            "kernel {}: ended without its END line (wanted `{expected}`, got {end:?})",
            kernel.label
        );
    }
    Ok(report)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
