//! `cargo xtask test [level]`: sets up what is missing, then runs the tests level by level.
//!
//! Ends in one line `N passed, N failed, N skipped` over all levels. A skip is a result: it is printed with its reason,
//! and one that `tests/skips.toml` does not list fails the run.

use crate::{conformance, kernels, peers, setup, step};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Only these levels
    #[arg(value_enum)]
    pub levels: Vec<Level>,
}

/// The levels of the table in docs/testing.md, cheapest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Level {
    /// Unit, property and contract tests beside the code, and scenarios
    Unit,
    /// Real programs through PROG_TEST_RUN
    Packets,
    /// Real sockets in namespaces
    Sockets,
    /// The real binary with containerd and kubectl
    Cluster,
    /// Other kernels, in virtual machines
    Kernels,
    /// The same states served by Skep and by the real kube-proxy
    Peers,
    /// Upstream's conformance specs that are known to pass
    Conformance,
}

const ALL: [Level; 7] = [
    Level::Unit,
    Level::Packets,
    Level::Sockets,
    Level::Cluster,
    Level::Kernels,
    Level::Peers,
    Level::Conformance,
];

/// Packages that are levels of their own and not part of `unit`.
const OWN_LEVEL: &[&str] = &[
    "tests-packets",
    "tests-sockets",
    "tests-cluster",
    "tests-differential",
    "tests-upstream",
    "tests-verifier",
    "tests-node",
];

/// What a level came to.
#[derive(Default)]
pub struct Outcome {
    pub passed: usize,
    pub failed: usize,
    /// Name of what was skipped, and why.
    pub skipped: Vec<(String, String)>,
}

impl Outcome {
    /// A whole level that cannot run here.
    pub fn skip(name: &str, reason: &str) -> Self {
        Self {
            skipped: vec![(name.to_string(), reason.to_string())],
            ..Self::default()
        }
    }

    /// Takes in what another part came to.
    pub fn add(&mut self, other: Outcome) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }

    /// Takes in what tests wrote into the file that `SKEP_SKIPS` names, a line `name<TAB>reason` each: their harness counted them as
    /// passed.
    fn skip_of(&mut self, lines: &str) {
        for (name, reason) in lines.lines().filter_map(|l| l.split_once('\t')) {
            self.passed = self.passed.saturating_sub(1);
            self.skipped.push((name.to_string(), reason.to_string()));
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the tests make namespaces and load eBPF programs, which needs root\nhint: run as root, or run `cargo test -p PACKAGE` for one package"
        );
    }
    setup::run(setup::Args {
        r#for: setup::Purpose::Test,
        check: false,
    })?;
    step::this_xtask(&["build-ebpf"])?;
    step::this_xtask(&["build", "--images"])?;
    let levels = if args.levels.is_empty() {
        ALL.to_vec()
    } else {
        args.levels
    };
    let mut total = Outcome::default();
    for level in levels {
        eprintln!("\n==> level: {level:?}");
        let start = Instant::now();
        let outcome = run_level(level).with_context(|| format!("level {level:?}"))?;
        eprintln!(
            "    {level:?}: {} passed, {} failed, {} skipped in {:.0} s",
            outcome.passed,
            outcome.failed,
            outcome.skipped.len(),
            start.elapsed().as_secs_f32()
        );
        total.add(outcome);
    }
    finish(total)
}

fn run_level(level: Level) -> Result<Outcome> {
    match level {
        Level::Unit => {
            let mut cargo = vec!["--workspace"];
            for package in OWN_LEVEL {
                cargo.extend(["--exclude", package]);
            }
            cargo_test(&cargo)
        }
        Level::Packets => cargo_test(&["-p", "tests-packets"]),
        Level::Sockets => cargo_test(&["-p", "tests-sockets"]),
        Level::Cluster => {
            step::this_xtask(&["build"])?;
            if peers::usable_go().is_ok() {
                peers::ensure(&[peers::Peer::Kubectl])?;
            }
            cargo_test(&["-p", "tests-cluster"])
        }
        Level::Kernels => kernels::matrix(),
        Level::Peers => match peers::usable_go() {
            Ok(()) => {
                peers::ensure(&[peers::Peer::KubeProxy])?;
                cargo_test(&["-p", "tests-differential"])
            }
            Err(reason) => Ok(Outcome::skip("peers", &reason)),
        },
        Level::Conformance => match peers::usable_go() {
            Ok(()) => conformance::known_to_pass(),
            Err(reason) => Ok(Outcome::skip("conformance", &reason)),
        },
    }
}

/// `cargo test` with these arguments; counts what its test binaries report.
fn cargo_test(args: &[&str]) -> Result<Outcome> {
    let skips = std::env::temp_dir().join(format!("skep-skips-{}", std::process::id()));
    let mut child = Command::new("cargo")
        .args(["test", "--no-fail-fast"])
        .args(args)
        .env("SKEP_SKIPS", &skips)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test cannot be started")?;
    let mut outcome = Outcome::default();
    let out = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{line}");
        outcome.add(counts(&line));
    }
    let status = child.wait()?;
    outcome.skip_of(&std::fs::read_to_string(&skips).unwrap_or_default());
    std::fs::remove_file(&skips).ok();
    if !status.success() && outcome.failed == 0 {
        bail!(
            "`cargo test {}` ended with {status} before its tests could run",
            args.join(" ")
        );
    }
    Ok(outcome)
}

/// Reads one line of a test binary: the summary, or a test that is ignored with a reason.
fn counts(line: &str) -> Outcome {
    let mut outcome = Outcome::default();
    if let Some(rest) = line.strip_prefix("test ")
        && let Some((name, reason)) = rest.split_once(" ... ignored")
    {
        outcome.skipped.push((
            name.to_string(),
            reason.trim_start_matches([',', ' ']).to_string(),
        ));
    }
    if let Some(summary) = line.strip_prefix("test result: ") {
        outcome.passed = number_before(summary, " passed");
        outcome.failed = number_before(summary, " failed");
    }
    outcome
}

fn number_before(text: &str, word: &str) -> usize {
    text.split(word)
        .next()
        .and_then(|t| t.rsplit(' ').next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// Prints the skips and the total, and decides.
fn finish(total: Outcome) -> Result<()> {
    let allowed = allowed_skips()?;
    let mut unlisted = 0;
    for (name, reason) in &total.skipped {
        let listed = allowed.iter().any(|a| is_named(name, a));
        unlisted += usize::from(!listed);
        println!(
            "skipped: {name}: {reason}{}",
            if listed {
                ""
            } else {
                " (not listed in tests/skips.toml)"
            }
        );
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed + unlisted,
        total.skipped.len() - unlisted
    );
    if total.failed + unlisted > 0 {
        bail!("tests failed");
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Whether a skip is the listed one: a whole level or kernel, or one test, whatever kernel it was skipped on.
fn is_named(name: &str, listed: &str) -> bool {
    let name = format!("::{name}::");
    name.starts_with(&format!("::{listed}::")) || name.ends_with(&format!("::{listed}::"))
}

/// The names under `[skip]` of tests/skips.toml, each with the reason why it may be skipped.
fn allowed_skips() -> Result<Vec<String>> {
    let path = Path::new("tests/skips.toml");
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: toml::Table = text.parse().context("tests/skips.toml is not TOML")?;
    let skips = table
        .get("skip")
        .and_then(|s| s.as_table())
        .cloned()
        .unwrap_or_default();
    Ok(skips.keys().cloned().collect())
}

#[derive(clap::Args)]
pub struct BlessArgs {}

/// Runs the tests that compare with goldens so that they write what they see, for review with `git diff`.
pub fn bless(_args: BlessArgs) -> Result<()> {
    let mut cargo = vec!["test", "--workspace"];
    for package in OWN_LEVEL.iter().filter(|p| **p != "tests-packets") {
        cargo.extend(["--exclude", package]);
    }
    step::shown(
        "accepting present output as goldens",
        Command::new("cargo")
            .args(cargo)
            .env("INSTA_UPDATE", "always")
            .env("SKEP_BLESS", "1"),
    )?;
    step::shown("what changed", Command::new("git").args(["status", "--short"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_known_by_its_level_or_its_test() {
        let name = "kernel-5.10::tests-packets::fuzz::some_test";
        assert!(is_named(name, "kernel-5.10") && is_named(name, "some_test") && is_named("peers", "peers"));
        assert!(!is_named(name, "test") && !is_named(name, "kernel-5") && !is_named(name, "fuzz"));
    }
}
