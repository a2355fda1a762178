//! `cargo xtask conformance [focus]`: upstream's specs against a Skep cluster: those of conformance, and with
//! `--suite network` the other ones of sig-network.
//!
//! Writes `docs/conformance.md` and the lists in `tests/conformance` (see [`record`]). `cargo xtask test` runs again the
//! fast part of what passed more than once, so that it stays passing.

mod record;

use crate::e2e_images;
use crate::peers::{self, Peer};
use crate::step;
use crate::test::Outcome;
use anyhow::{Context, Result, bail};
use record::{Lists, Pass, Suite};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// A spec that took longer than this is not run again by `cargo xtask test`.
const FAST_SECONDS: f64 = 8.0;
/// Nor is what would make its specs take longer than this together, one after the other; four run at a time.
const FAST_TOTAL_SECONDS: f64 = 240.0;
/// Nor what has passed in fewer runs than this since it was last seen to fail.
const PROVEN: u32 = 2;
/// The run's own cluster; several runs go on side by side.
static CLUSTER: LazyLock<String> = LazyLock::new(|| format!("conformance-{}", std::process::id()));
/// Some specs want three nodes, some three zones.
const NODES: usize = 3;

#[derive(clap::Args)]
pub struct Args {
    /// Run only specs of the suite whose full name contains a match of this regular expression; nothing is written then
    pub focus: Option<String>,
    /// Which of upstream's specs
    #[arg(long, value_enum, default_value_t = Suite::Conformance)]
    pub suite: Suite,
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
    /// Run nothing: take the results out of the report that an earlier run left (JSON of ginkgo)
    #[arg(long, conflicts_with_all = ["focus", "kubeconfig"])]
    pub report: Vec<PathBuf>,
    /// Run nothing: only make the images that the specs ask for, and print the path of the archive for `skep load`
    #[arg(long, conflicts_with_all = ["focus", "kubeconfig", "report"])]
    pub images: bool,
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
    peers::ensure(&NEEDED)?;
    if args.images {
        println!("{}", e2e_images::ensure()?.display());
        return Ok(());
    }
    let all = all_specs()?;
    let specs = results(&args)?;
    summary(&specs);
    if args.focus.is_none() || args.merge {
        let mut lists = Lists::read(args.suite)?;
        lists.take(&specs);
        lists.write(args.suite)?;
        record::write_document(&all)?;
    }
    Ok(())
}

/// What the suite needs of upstream's programs.
const NEEDED: [Peer; 6] = [
    Peer::E2e,
    Peer::Ginkgo,
    Peer::Kubectl,
    Peer::Agnhost,
    Peer::Nonewprivs,
    Peer::Regression74839,
];

fn results(args: &Args) -> Result<Vec<Spec>> {
    if args.report.is_empty() {
        let skip: Vec<String> = args.skip.iter().cloned().chain(args.suite.skip()?).collect();
        let focus = vec![args.suite.focus(args.focus.as_deref())];
        return on_cluster(args.kubeconfig.as_deref(), |kubeconfig| {
            run_specs(kubeconfig, &focus, &skip, args.procs, args.minutes)
        });
    }
    let mut specs = Vec::new();
    for path in &args.report {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        specs.extend(read_report(&text)?);
    }
    specs.retain(|s| args.suite.has(&s.name));
    Ok(specs)
}

/// The names of all of upstream's specs, as the suite itself tells them.
fn all_specs() -> Result<Vec<String>> {
    let report = std::path::absolute("target/conformance/all.json")?;
    std::fs::create_dir_all("target/conformance")?;
    let mut list = Command::new(std::path::absolute(Peer::E2e.path())?);
    list.args([
        "--ginkgo.dry-run",
        "--provider=skeleton",
        "--kubeconfig=/nonexistent",
    ])
    .arg(format!("--ginkgo.json-report={}", report.display()));
    step::quiet("listing upstream's specs", &mut list)?;
    Ok(its(&std::fs::read(&report)?)?.map(|it| it.name()).collect())
}

/// Runs the fast specs of the committed lists again.
pub fn known_to_pass() -> Result<Outcome> {
    let mut all = BTreeMap::new();
    for suite in [Suite::Conformance, Suite::Network] {
        all.extend(Lists::read(suite)?.passing);
    }
    let fast = fast(all);
    if fast.is_empty() {
        return Ok(Outcome::default());
    }
    peers::ensure(&NEEDED)?;
    step::this_xtask(&["build"])?;
    let focus: Vec<String> = fast.iter().map(|name| format!("{}$", escaped(name))).collect();
    let specs = on_cluster(None, |kubeconfig| run_specs(kubeconfig, &focus, &[], 4, 20))?;
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
        Command::new(skep).args(["up", "--name", &*CLUSTER, "--nodes", &NODES.to_string()]),
    )?;
    let result = load_images(skep)
        .and_then(|()| name_zones(skep))
        .and_then(|()| cluster_kubeconfig(skep))
        .and_then(|path| work(&path));
    let down = step::shown(
        "removing the cluster",
        Command::new(skep).args(["down", "--name", &*CLUSTER]),
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
        load.arg("load").arg(archive).args(["--name", &*CLUSTER]),
    )
}

/// Every node is in a zone of its own.
fn name_zones(skep: &Path) -> Result<()> {
    for node in 1..=NODES {
        let mut label = Command::new(skep);
        label
            .env("SKEP_NAME", &*CLUSTER)
            .args(["kubectl", "label", "node"]);
        label.args([
            format!("{}-{node}", *CLUSTER),
            format!("topology.kubernetes.io/zone=zone-{node}"),
        ]);
        step::quiet("naming a node's zone", &mut label)?;
    }
    Ok(())
}

/// How many nodes a cluster has: the suite does not count them itself.
fn nodes(kubeconfig: &Path) -> Result<usize> {
    let mut list = Command::new(Peer::Kubectl.path());
    list.arg("--kubeconfig").arg(kubeconfig);
    let out = list.args(["get", "nodes", "--output", "name"]).output()?;
    if !out.status.success() {
        bail!(
            "the cluster does not answer: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).lines().count())
}

fn cluster_kubeconfig(skep: &Path) -> Result<PathBuf> {
    let out = Command::new(skep)
        .args(["kubeconfig", "--name", &*CLUSTER])
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
    skip: &[String],
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
    ginkgo.arg(format!("--num-nodes={}", nodes(kubeconfig)?));
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
struct SuiteReport {
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

impl SpecReport {
    fn name(&self) -> String {
        let words = self
            .container_hierarchy_texts
            .iter()
            .flatten()
            .map(String::as_str);
        words
            .chain([self.leaf_node_text.as_str()])
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// A spec that began, or that says itself why it does not apply; one that was not asked for gives no reason.
    fn counts(&self) -> bool {
        match self.state.as_str() {
            "passed" | "failed" | "panicked" => true,
            "skipped" => self.failure.as_ref().is_some_and(|f| !f.message.is_empty()),
            _ => false,
        }
    }
}

fn its(text: &[u8]) -> Result<impl Iterator<Item = SpecReport>> {
    let suites: Vec<SuiteReport> =
        serde_json::from_slice(text).context("the suite's report is not what was expected")?;
    let reports = suites
        .into_iter()
        .flat_map(|s| s.spec_reports.unwrap_or_default());
    Ok(reports.filter(|r| r.leaf_node_type == "It"))
}

fn read_report(text: &[u8]) -> Result<Vec<Spec>> {
    let specs = its(text)?.filter(SpecReport::counts).map(|r| Spec {
        name: r.name(),
        seconds: r.run_time / 1e9,
        failure: r.failure.map(|f| first_line(&f.message)).unwrap_or_default(),
        state: r.state,
    });
    Ok(specs.collect())
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
    fn a_spec_that_was_not_asked_for_is_no_result_and_one_that_says_why_it_does_not_apply_is() {
        let report = br#"[{"SpecReports": [
            {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[a]"], "LeafNodeText": "ran", "State": "passed", "RunTime": 2e9},
            {"LeafNodeType": "It", "LeafNodeText": "other", "State": "skipped"},
            {"LeafNodeType": "It", "LeafNodeText": "none", "State": "skipped", "Failure": {"Message": "no ssh"}},
            {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"}]}]"#;
        let specs = read_report(report).unwrap();
        let told: Vec<_> = specs
            .iter()
            .map(|s| (s.name.as_str(), s.state.as_str(), s.failure.as_str()))
            .collect();
        assert_eq!(told, [("[a] ran", "passed", ""), ("none", "skipped", "no ssh")]);
    }
}
