//! `cargo xtask conformance [focus]`: upstream's conformance specs against a Skep cluster.
//!
//! Writes `docs/conformance.md` and the list `tests/conformance/passing.tsv` (seconds, passes in a row, name).
//! `cargo xtask test` runs again the fast part of what passed more than once, so that it stays passing.

use crate::e2e_images;
use crate::peers::{self, Peer};
use crate::step;
use crate::test::Outcome;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PASSING: &str = "tests/conformance/passing.tsv";
const REASONS: &str = "tests/conformance/reasons.toml";
const DOCUMENT: &str = "docs/conformance.md";
/// A spec that took longer than this is not run again by `cargo xtask test`.
const FAST_SECONDS: f64 = 8.0;
/// Nor is what would make its specs take longer than this together, one after the other; four run at a time.
const FAST_TOTAL_SECONDS: f64 = 240.0;
/// Nor what has passed in fewer runs than this since it was last seen to fail.
const PROVEN: u32 = 2;
const CLUSTER: &str = "conformance";

#[derive(clap::Args)]
pub struct Args {
    /// Run only conformance specs whose full name matches this regular expression; the document is not written then
    pub focus: Option<String>,
    /// Use this cluster instead of starting one
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// How many specs run at the same time
    #[arg(long, default_value_t = 4)]
    pub procs: u32,
    /// Specs to leave out, as a regular expression
    #[arg(long)]
    pub skip: Option<String>,
    /// End the run after this many minutes; specs that were cut off count as not run
    #[arg(long, default_value_t = 180)]
    pub minutes: u32,
    /// Take the results of a focused run into the list and the document, leaving all other specs as they stand there
    #[arg(long)]
    pub merge: bool,
}

/// What became of one spec.
#[derive(Clone, Debug)]
struct Spec {
    name: String,
    state: String,
    seconds: f64,
    failure: String,
}

pub fn run(args: Args) -> Result<()> {
    if let Err(reason) = peers::usable_go() {
        bail!("upstream's suite cannot be built: {reason}");
    }
    peers::ensure(&[Peer::E2e, Peer::Ginkgo, Peer::Kubectl, Peer::Agnhost])?;
    let focus = match &args.focus {
        Some(focus) => vec![format!("(?:{focus}).*\\[Conformance\\]")],
        None => vec!["\\[Conformance\\]".to_string()],
    };
    let specs = on_cluster(args.kubeconfig.as_deref(), |kubeconfig| {
        run_specs(kubeconfig, &focus, args.skip.as_deref(), args.procs, args.minutes)
    })?;
    summary(&specs);
    if args.focus.is_none() || args.merge {
        write_results(&specs)?;
    }
    Ok(())
}

/// Runs the fast specs of the committed list again.
pub fn known_to_pass() -> Result<Outcome> {
    let fast = fast(passing()?);
    if fast.is_empty() {
        return Ok(Outcome::default());
    }
    peers::ensure(&[Peer::E2e, Peer::Ginkgo, Peer::Kubectl, Peer::Agnhost])?;
    step::this_xtask(&["build"])?;
    let focus: Vec<String> = fast.iter().map(|name| format!("{}$", escaped(name))).collect();
    let specs = on_cluster(None, |kubeconfig| run_specs(kubeconfig, &focus, None, 4, 20))?;
    summary(&specs);
    let passed = specs.iter().filter(|s| s.state == "passed").count();
    let ran: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let lost = fast
        .iter()
        .filter(|name| !ran.contains(&name.as_str()))
        .inspect(|n| println!("LOST    {n}"))
        .count();
    Ok(Outcome {
        passed,
        failed: specs.len() - passed + lost,
        skipped: Vec::new(),
    })
}

/// The proven specs that take the least time, as many as there is time for.
fn fast(all: BTreeMap<String, Pass>) -> Vec<String> {
    let proven = all
        .into_iter()
        .filter(|(_, pass)| pass.seconds <= FAST_SECONDS && pass.times >= PROVEN);
    let mut proven: Vec<(String, Pass)> = proven.collect();
    proven.sort_by(|(_, one), (_, other)| one.seconds.total_cmp(&other.seconds));
    let mut total = 0.0;
    let in_time = proven.into_iter().take_while(|(_, pass)| {
        total += pass.seconds;
        total <= FAST_TOTAL_SECONDS
    });
    in_time.map(|(name, _)| name).collect()
}

/// Runs `work` against the named cluster, or against one that is started for it and removed after it.
fn on_cluster<T>(kubeconfig: Option<&Path>, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if let Some(path) = kubeconfig {
        return work(path);
    }
    let skep = Path::new("target/release/skep");
    step::shown(
        "starting a cluster",
        Command::new(skep).args(["up", "--name", CLUSTER, "--nodes", "2"]),
    )?;
    let result = load_images(skep)
        .and_then(|()| cluster_kubeconfig(skep))
        .and_then(|path| work(&path));
    let down = step::shown(
        "removing the cluster",
        Command::new(skep).args(["down", "--name", CLUSTER]),
    );
    let value = result?;
    down?;
    Ok(value)
}

/// There is no registry: every node gets the images that the specs name.
fn load_images(skep: &Path) -> Result<()> {
    let archive = e2e_images::ensure()?;
    let mut load = Command::new(skep);
    step::quiet(
        "loading the suite's images into the nodes",
        load.arg("load").arg(archive).args(["--name", CLUSTER]),
    )
}

fn cluster_kubeconfig(skep: &Path) -> Result<PathBuf> {
    let out = Command::new(skep)
        .args(["kubeconfig", "--name", CLUSTER])
        .output()?;
    if !out.status.success() {
        bail!(
            "`skep kubeconfig` failed: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(PathBuf::from(String::from_utf8(out.stdout)?.trim()))
}

fn run_specs(
    kubeconfig: &Path,
    focus: &[String],
    skip: Option<&str>,
    procs: u32,
    minutes: u32,
) -> Result<Vec<Spec>> {
    let dir = std::path::absolute("target/conformance")?;
    std::fs::create_dir_all(&dir)?;
    let report = dir.join("report.json");
    std::fs::remove_file(&report).ok();
    let log = std::fs::File::create(dir.join("run.log"))?;
    let mut ginkgo = Command::new(std::path::absolute(Peer::Ginkgo.path())?);
    ginkgo.arg("run").arg(format!("--procs={procs}")).args([
        "--no-color",
        &format!("--timeout={minutes}m"),
        "--poll-progress-after=0s",
    ]);
    ginkgo
        .arg("--json-report=report.json")
        .arg(format!("--output-dir={}", dir.display()));
    ginkgo.args(focus.iter().map(|f| format!("--focus={f}")));
    ginkgo.args(skip.iter().map(|s| format!("--skip={s}")));
    ginkgo.arg(std::path::absolute(Peer::E2e.path())?).arg("--");
    ginkgo.arg(format!("--kubeconfig={}", kubeconfig.display()));
    ginkgo.args([
        "--provider=skeleton",
        "--allowed-not-ready-nodes=-1",
        "--disable-log-dump=true",
    ]);
    ginkgo.arg(format!(
        "--kubectl-path={}",
        std::path::absolute(Peer::Kubectl.path())?.display()
    ));
    eprintln!("==> running specs, {procs} at a time (log: target/conformance/run.log)");
    ginkgo.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A non-zero end only says that some spec failed; the report says which.
    ginkgo.status().context("ginkgo cannot be started")?;
    let text = std::fs::read(&report).with_context(|| {
        "the suite wrote no report\nhint: the end of target/conformance/run.log says why".to_string()
    })?;
    read_report(&text)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: f64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

fn read_report(text: &[u8]) -> Result<Vec<Spec>> {
    let suites: Vec<Suite> =
        serde_json::from_slice(text).context("the suite's report is not what was expected")?;
    let reports = suites
        .into_iter()
        .flat_map(|s| s.spec_reports.unwrap_or_default());
    Ok(reports
        .filter(|r| r.leaf_node_type == "It" && matches!(r.state.as_str(), "passed" | "failed" | "panicked"))
        .map(|r| {
            let mut words = r.container_hierarchy_texts.unwrap_or_default();
            words.push(r.leaf_node_text);
            Spec {
                name: words.join(" "),
                state: r.state,
                seconds: r.run_time / 1e9,
                failure: r.failure.map(|f| first_line(&f.message)).unwrap_or_default(),
            }
        })
        .collect())
}

fn first_line(text: &str) -> String {
    let line = text
        .lines()
        .map(str::trim)
        .find(|l| !l.is_empty())
        .unwrap_or_default();
    line.chars().take(200).collect::<String>().replace('|', "/")
}

fn summary(specs: &[Spec]) {
    for spec in specs.iter().filter(|s| s.state != "passed") {
        println!("{:<8}{} ({})", spec.state, spec.name, spec.failure);
    }
    let passed = specs.iter().filter(|s| s.state == "passed").count();
    println!("conformance: {passed} of {} specs passed", specs.len());
}

/// How a spec of the committed list passed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pass {
    /// How long its last run took.
    seconds: f64,
    /// Runs that it passed since it was last seen to fail.
    times: u32,
}

/// The committed list.
fn passing() -> Result<BTreeMap<String, Pass>> {
    let text = std::fs::read_to_string(PASSING).with_context(|| format!("cannot read {PASSING}"))?;
    let rows = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    rows.map(row).collect()
}

fn row(line: &str) -> Result<(String, Pass)> {
    let mut cells = line.splitn(3, '\t');
    let mut cell = || {
        cells
            .next()
            .with_context(|| format!("{PASSING}: no three columns in `{line}`"))
    };
    let (seconds, times, name) = (cell()?, cell()?, cell()?);
    let bad = |text: &str| format!("{PASSING}: `{text}` is no number");
    let pass = Pass {
        seconds: seconds.parse().with_context(|| bad(seconds))?,
        times: times.parse().with_context(|| bad(times))?,
    };
    Ok((name.to_string(), pass))
}

/// Failure messages of earlier runs, kept so that a focused run need not repeat everything.
fn failing() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("tests/conformance/failing.tsv").unwrap_or_default();
    let rows = text.lines().filter_map(|l| l.split_once('\t'));
    rows.map(|(name, why)| (name.to_string(), why.to_string()))
        .collect()
}

fn write_results(specs: &[Spec]) -> Result<()> {
    std::fs::create_dir_all("tests/conformance")?;
    let mut pass = passing().unwrap_or_default();
    let mut fail = failing();
    for spec in specs {
        let times = pass.remove(&spec.name).map_or(0, |pass| pass.times);
        fail.remove(&spec.name);
        if spec.state == "passed" {
            let (seconds, times) = (spec.seconds, times + 1);
            pass.insert(spec.name.clone(), Pass { seconds, times });
        } else {
            fail.insert(spec.name.clone(), spec.failure.clone());
        }
    }
    let mut text = String::from(
        "# Specs that pass: seconds, passes in a row, name. Written by `cargo xtask conformance`.\n",
    );
    for (name, Pass { seconds, times }) in &pass {
        writeln!(text, "{seconds:.1}\t{times}\t{name}")?;
    }
    std::fs::write(PASSING, text)?;
    let text: String = fail
        .iter()
        .map(|(name, why)| format!("{name}\t{why}\n"))
        .collect();
    std::fs::write("tests/conformance/failing.tsv", text)?;
    std::fs::write(DOCUMENT, document(&pass, &fail)?)?;
    eprintln!("wrote {DOCUMENT} and {PASSING}");
    Ok(())
}

/// Why a spec cannot pass yet, by a part of its name: what the message of the failure does not tell.
fn reasons() -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(REASONS).unwrap_or_default();
    let table: toml::Table = text.parse().with_context(|| format!("{REASONS} is not TOML"))?;
    Ok(table
        .into_iter()
        .map(|(k, v)| (k, v.as_str().unwrap_or_default().to_string()))
        .collect())
}

fn document(pass: &BTreeMap<String, Pass>, fail: &BTreeMap<String, String>) -> Result<String> {
    let reasons = reasons()?;
    let mut out = format!(
        "# Conformance\n\nUpstream's conformance specs of Kubernetes {}, run against a Skep cluster of two nodes by\n\
         `cargo xtask conformance`. {} of {} pass.\n\n| group | pass | fail |\n|---|---|---|\n",
        peers::RELEASE,
        pass.len(),
        pass.len() + fail.len()
    );
    let mut groups = BTreeMap::<String, (usize, usize)>::new();
    for name in pass.keys() {
        groups.entry(group(name)).or_default().0 += 1;
    }
    for name in fail.keys() {
        groups.entry(group(name)).or_default().1 += 1;
    }
    for (name, (passed, failed)) in groups {
        writeln!(out, "| {name} | {passed} | {failed} |")?;
    }
    out.push_str("\n## Failing, and why\n\n| spec | why |\n|---|---|\n");
    for (name, message) in fail {
        let known = reasons
            .iter()
            .find(|(part, _)| name.contains(part))
            .map(|(_, why)| why);
        writeln!(
            out,
            "| {} | {} |",
            name.replace('|', "/"),
            known.unwrap_or(message)
        )?;
    }
    out.push_str("\n## Passing\n\n");
    for name in pass.keys() {
        writeln!(out, "- {name}")?;
    }
    Ok(out)
}

fn group(name: &str) -> String {
    name.split(']')
        .next()
        .unwrap_or_default()
        .trim_start_matches('[')
        .to_string()
}

/// The name as a regular expression that matches only itself.
fn escaped(name: &str) -> String {
    name.chars().fold(String::new(), |mut out, c| {
        if "\\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passed_twice_is_run_again_and_the_quickest_first() {
        let pass = |seconds, times| Pass { seconds, times };
        let all = [
            ("once", pass(1.0, 1)),
            ("slow", pass(9.0, 5)),
            ("b", pass(2.0, 2)),
            ("a", pass(1.0, 3)),
        ];
        let all = all.map(|(name, pass)| (name.to_string(), pass));
        assert_eq!(fast(BTreeMap::from(all)), ["a", "b"]);
        let many = (0..100).map(|n| (format!("{n:03}"), pass(8.0, 2))).collect();
        assert_eq!(fast(many).len(), 30);
    }

    #[test]
    fn a_row_has_three_columns() {
        assert_eq!(
            row("1.5\t2\t[a] b").unwrap(),
            (
                "[a] b".to_string(),
                Pass {
                    seconds: 1.5,
                    times: 2
                }
            )
        );
        assert!(row("1.5\t[a] b").is_err());
    }
}
