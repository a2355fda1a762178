//! PID 1 of a virtual machine of the kernel matrix.
//!
//! Reads `/etc/run` (run id, kernel label, filter), runs every binary in `/tests` and reports on the second serial port,
//! a line each: `PASS name`, `FAIL name`, `SKIP name: reason`, `BUDGET program instructions`, last `END id counts`.

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::WaitOptions;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

fn main() {
    if std::process::id() != 1 {
        eprintln!("guest-init: this is the init of a test machine; it does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        eprintln!("guest-init: {error:#}");
    }
    rustix::fs::sync();
    // Power off; with -no-reboot this ends QEMU.
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).ok();
}

fn run() -> Result<()> {
    if Path::new("/etc/whole-node").exists() {
        leave_the_initramfs()?;
    }
    mounts()?;
    modules()?;
    Command::new("/bin/ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("ip")?;
    if Path::new("/etc/whole-node").exists() {
        host_name()?;
        network()?;
    }
    let run = fs::read_to_string("/etc/run")?;
    let mut lines = run.lines();
    let mut results = Results::open(lines.next().unwrap_or_default())?;
    let label = lines.next().unwrap_or_default();
    let filter = lines.next().unwrap_or_default();
    let mut binaries: Vec<_> = fs::read_dir("/tests")?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_>>()?;
    binaries.sort();
    for binary in binaries {
        results.run_binary(&binary, label, filter)?;
    }
    results.end()
}

/// Containers change their root by `pivot_root`, which the kernel refuses on an initramfs: everything moves to a tmpfs.
fn leave_the_initramfs() -> Result<()> {
    fs::create_dir_all("/new")?;
    mount("tmpfs", "/new", "tmpfs", MountFlags::empty(), None).context("mount /new")?;
    for entry in fs::read_dir("/")?.flatten().filter(|e| e.file_name() != "new") {
        let status = Command::new("/bin/busybox")
            .arg("cp")
            .arg("-a")
            .arg(entry.path())
            .arg("/new/")
            .status()?;
        anyhow::ensure!(status.success(), "copying {}", entry.path().display());
    }
    std::env::set_current_dir("/new")?;
    // What lies below is out of reach from here on, but still in memory: let it go first.
    for entry in fs::read_dir("/")?.flatten().filter(|e| e.file_name() != "new") {
        if entry.file_name() != "dev" && entry.file_type().is_ok_and(|t| t.is_file()) {
            fs::remove_file(entry.path()).ok();
        }
    }
    mount_move(".", "/").context("moving the new root")?;
    rustix::process::chroot(".").context("chroot")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn mounts() -> Result<()> {
    let table = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
        ("tmpfs", "/run", "tmpfs"),
        ("bpffs", "/sys/fs/bpf", "bpf"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
    ];
    for (source, target, kind) in table {
        fs::create_dir_all(target).ok();
        mount(source, target, kind, MountFlags::empty(), None).with_context(|| format!("mount {target}"))?;
    }
    Ok(())
}

/// As every distribution's init does: before, the kernel calls the machine `(none)`.
fn host_name() -> Result<()> {
    let name = fs::read_to_string("/etc/hostname").context("/etc/hostname")?;
    rustix::system::sethostname(name.trim().as_bytes()).context("setting the host name")
}

/// A machine has an address and a default route; these are documentation's (RFC 5737, RFC 3849), on a device without an other end.
fn network() -> Result<()> {
    let commands = [
        "link add skep-up type dummy",
        "addr add 192.0.2.10/24 dev skep-up",
        "addr add 2001:db8::10/64 dev skep-up nodad",
        "link set skep-up up",
        "route add default via 192.0.2.1",
        "route add default via 2001:db8::1",
    ];
    for command in commands {
        let status = Command::new("/bin/ip")
            .args(command.split(' '))
            .status()
            .context("ip")?;
        anyhow::ensure!(status.success(), "ip {command}");
    }
    Ok(())
}

fn modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir("/modules")?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let module = File::open(&file)?;
        rustix::system::finit_module(module, &CString::default(), 0)
            .with_context(|| format!("module {}", file.display()))?;
    }
    Ok(())
}

/// How long one test binary may take, in seconds.
const TIME: &str = "1200";

/// An emulated processor is twenty times slower: what a test repeats for the sake of numbers it repeats less often here. The machine
/// that runs the matrix has run them in full.
const LESS: [(&str, &str); 2] = [("SKEP_FUZZ_PACKETS", "4"), ("SKEP_KILLED_AGENTS", "2")];

/// Where the verifier test leaves its counts.
const BUDGET: &str = "/tmp/budget";

/// The report in the making.
struct Results {
    port: File,
    run_id: String,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Results {
    fn open(run_id: &str) -> Result<Self> {
        let port = OpenOptions::new()
            .write(true)
            .open("/dev/ttyS1")
            .context("second serial port")?;
        let mut results = Self {
            port,
            run_id: run_id.to_string(),
            passed: 0,
            failed: 0,
            skipped: 0,
        };
        results.say(&format!("BEGIN {run_id}"))?;
        Ok(results)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.port, "{line}").context("second serial port")
    }

    /// Runs one test binary of the standard harness and passes on each of its results.
    fn run_binary(&mut self, binary: &Path, label: &str, filter: &str) -> Result<()> {
        let package = binary
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default()
            .to_string();
        let skips = format!("/tmp/skips-{package}");
        let said = format!("/tmp/said-{package}");
        let child = Command::new("/bin/busybox")
            .args(["timeout", TIME])
            .arg(binary)
            .args(["--test-threads=1", filter])
            .env_clear()
            .env("PATH", "/bin")
            .env("HOME", "/root")
            .env("SKEP_KERNEL", label)
            .env("SKEP_SKIPS", &skips)
            .env("SKEP_BUDGET", BUDGET)
            .env("RUST_BACKTRACE", "0")
            .envs(LESS)
            .current_dir("/tmp")
            // A file and not a pipe: what a test leaves running may hold on to it.
            .stdout(File::create(&said)?)
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| package.clone())?;
        let ended_well = wait_for(child.id())?;
        // The first result of a test counts: a failing one may repeat that of a process it started.
        let mut seen: Vec<(String, bool)> = Vec::new();
        for line in BufReader::new(File::open(&said)?).lines() {
            let line = line?;
            println!("{line}");
            let new = outcome(&line).filter(|(name, _)| seen.iter().all(|(known, _)| known != name));
            seen.extend(new);
        }
        self.report(
            &package,
            seen,
            &fs::read_to_string(&skips).unwrap_or_default(),
            ended_well,
        )
    }

    fn report(
        &mut self,
        package: &str,
        seen: Vec<(String, bool)>,
        skips: &str,
        ended_well: bool,
    ) -> Result<()> {
        let failed_before = self.failed;
        for (test, passed) in seen {
            let reason = skips
                .lines()
                .filter_map(|l| l.split_once('\t'))
                .find(|(name, _)| *name == test);
            match (passed, reason) {
                (false, _) => {
                    self.failed += 1;
                    self.say(&format!("FAIL {package}::{test}"))?;
                }
                (true, Some((_, why))) => {
                    self.skipped += 1;
                    self.say(&format!("SKIP {package}::{test}: {why}"))?;
                }
                (true, None) => {
                    self.passed += 1;
                    self.say(&format!("PASS {package}::{test}"))?;
                }
            }
        }
        if !ended_well && self.failed == failed_before {
            self.failed += 1;
            self.say(&format!("FAIL {package} ended before its tests did"))?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        for line in fs::read_to_string(BUDGET).unwrap_or_default().lines() {
            self.say(&format!("BUDGET {line}"))?;
        }
        let line = format!(
            "END {} pass={} fail={} skip={}",
            self.run_id, self.passed, self.failed, self.skipped
        );
        self.say(&line)
    }
}

/// Waits for one child, as process 1 must: by taking in every other process that ends meanwhile.
fn wait_for(child: u32) -> Result<bool> {
    loop {
        let ended = rustix::process::wait(WaitOptions::empty())?;
        if let Some((pid, status)) = ended
            && pid.as_raw_nonzero().get().unsigned_abs() == child
        {
            return Ok(status.exit_status() == Some(0));
        }
    }
}

/// `test a::b ... ok` → (`a::b`, passed). A test that is ignored says nothing here.
fn outcome(line: &str) -> Option<(String, bool)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match result {
        "ok" => Some((name.to_string(), true)),
        "FAILED" => Some((name.to_string(), false)),
        _ => None,
    }
}
