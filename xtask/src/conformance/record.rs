//! What is kept of the runs: `tests/conformance` as data, `docs/conformance.md` for readers.
//!
//! Per suite two lists: `passing.tsv` (seconds, passes in a row, name) and `failing.tsv` (name, what the last run said).
//! `reasons.toml` says by a part of a spec's name why it fails or cannot run, in words that its message does not have;
//! `left-out.toml` which of sig-network's specs are not run at all.

use super::Spec;
use crate::peers;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const FOLDER: &str = "tests/conformance";
const DOCUMENT: &str = "docs/conformance.md";
/// How a reason begins that lies with the machine or the suite's images, not with Skep.
const CANNOT: &str = "cannot run here";

/// A part of upstream's specs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Suite {
    /// What makes a cluster conformant
    Conformance,
    /// The specs of sig-network that are not of conformance and need no cloud
    Network,
}

impl Suite {
    pub fn has(self, name: &str) -> bool {
        let conformance = name.contains("[Conformance]");
        match self {
            Suite::Conformance => conformance,
            Suite::Network => name.starts_with("[sig-network]") && !conformance,
        }
    }

    /// The regular expression of its specs, or of those among them that match `only`.
    pub fn focus(self, only: Option<&str>) -> String {
        let only = only.map(|only| format!("(?:{only}).*")).unwrap_or_default();
        match self {
            Suite::Conformance => format!("{only}\\[Conformance\\]"),
            Suite::Network => format!("\\[sig-network\\].*{only}"),
        }
    }

    /// Regular expressions of what the focus has too many.
    pub fn skip(self) -> Result<Vec<String>> {
        if self == Suite::Conformance {
            return Ok(Vec::new());
        }
        let left_out = table("left-out.toml")?;
        let parts = left_out.iter().map(|(part, _)| part.as_str());
        Ok(parts.chain(["[Conformance]"]).map(super::escaped).collect())
    }

    fn file(self, list: &str) -> String {
        match self {
            Suite::Conformance => format!("{FOLDER}/{list}.tsv"),
            Suite::Network => format!("{FOLDER}/network-{list}.tsv"),
        }
    }
}

/// How a spec of the committed list passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// How long its last run took.
    pub seconds: f64,
    /// Runs that it passed since it was last seen to fail.
    pub times: u32,
}

/// The lists of a suite, by name.
#[derive(Default, Debug)]
pub struct Lists {
    pub passing: BTreeMap<String, Pass>,
    /// With the message of the last run.
    pub failing: BTreeMap<String, String>,
}

impl Lists {
    pub fn read(suite: Suite) -> Result<Lists> {
        let passing = std::fs::read_to_string(suite.file("passing")).unwrap_or_default();
        let failing = std::fs::read_to_string(suite.file("failing")).unwrap_or_default();
        let rows = passing.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        Ok(Lists {
            passing: rows.map(row).collect::<Result<_>>()?,
            failing: failing
                .lines()
                .filter_map(|l| l.split_once('\t'))
                .map(|(name, why)| (name.to_string(), why.to_string()))
                .collect(),
        })
    }

    /// Takes the results of a run in; what did not run stays as it is.
    pub fn take(&mut self, specs: &[Spec]) {
        for spec in specs {
            let times = self.passing.remove(&spec.name).map_or(0, |pass| pass.times);
            self.failing.remove(&spec.name);
            if spec.state == "passed" {
                let (seconds, times) = (spec.seconds, times + 1);
                self.passing.insert(spec.name.clone(), Pass { seconds, times });
            } else if spec.state == "skipped" {
                let why = format!("{CANNOT}, says the suite: {}", spec.failure);
                self.failing.insert(spec.name.clone(), why);
            } else {
                self.failing.insert(spec.name.clone(), spec.failure.clone());
            }
        }
    }

    pub fn write(&self, suite: Suite) -> Result<()> {
        let mut passing = String::from(
            "# Specs that pass: seconds, passes in a row, name. Written by `cargo xtask conformance`.\n",
        );
        for (name, Pass { seconds, times }) in &self.passing {
            writeln!(passing, "{seconds:.1}\t{times}\t{name}")?;
        }
        let rows = self.failing.iter().map(|(name, why)| format!("{name}\t{why}\n"));
        std::fs::create_dir_all(FOLDER)?;
        std::fs::write(suite.file("passing"), passing)?;
        std::fs::write(suite.file("failing"), rows.collect::<String>())?;
        Ok(())
    }
}

fn row(line: &str) -> Result<(String, Pass)> {
    let mut cells = line.splitn(3, '\t');
    let mut cell = || {
        cells
            .next()
            .with_context(|| format!("no three columns in `{line}`"))
    };
    let (seconds, times, name) = (cell()?, cell()?, cell()?);
    let bad = |text: &str| format!("`{text}` in `{line}` is no number");
    let pass = Pass {
        seconds: seconds.parse().with_context(|| bad(seconds))?,
        times: times.parse().with_context(|| bad(times))?,
    };
    Ok((name.to_string(), pass))
}

/// Parts of names, each with a reason.
type Reasons = Vec<(String, String)>;

fn table(file: &str) -> Result<Reasons> {
    let path = format!("{FOLDER}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{path} is not TOML"))?;
    let text = |v: toml::Value| v.as_str().unwrap_or_default().to_string();
    Ok(table.into_iter().map(|(part, why)| (part, text(why))).collect())
}

fn reason<'a>(reasons: &'a Reasons, name: &str) -> Option<&'a str> {
    let found = reasons.iter().find(|(part, _)| name.contains(part.as_str()));
    found.map(|(_, why)| why.as_str())
}

/// Writes the document from the lists as they stand; `all` are the names of all of upstream's specs.
pub fn write_document(all: &[String]) -> Result<()> {
    let mut out = String::from("# Conformance\n");
    let reasons = table("reasons.toml")?;
    let conformance = Standing::of(
        Suite::Conformance,
        &Lists::read(Suite::Conformance)?,
        &reasons,
        all,
    );
    let about = "Upstream's conformance specs of Kubernetes {}, run against a Skep cluster of namespaces as nodes by\n\
                 `cargo xtask conformance`. {}";
    conformance.write(&mut out, about, "##")?;
    let mut reasons = table("left-out.toml")?;
    reasons.extend(table("reasons.toml")?);
    let network = Standing::of(Suite::Network, &Lists::read(Suite::Network)?, &reasons, all);
    out.push_str("\n# sig-network beyond conformance\n");
    let about = "The other specs of sig-network in Kubernetes {}, run by `cargo xtask conformance --suite network`.\n{}";
    network.write(&mut out, about, "##")?;
    std::fs::write(DOCUMENT, out)?;
    eprintln!("wrote {DOCUMENT} and {FOLDER}");
    Ok(())
}

/// What the document says of each spec of a suite.
#[derive(Debug, Default)]
struct Standing {
    passing: BTreeSet<String>,
    failing: BTreeMap<String, String>,
    not_run: BTreeMap<String, String>,
}

impl Standing {
    fn of(suite: Suite, lists: &Lists, reasons: &Reasons, all: &[String]) -> Standing {
        let mut standing = Standing::default();
        for name in all.iter().filter(|name| suite.has(name)) {
            if lists.passing.contains_key(name) {
                standing.passing.insert(name.clone());
                continue;
            }
            let message = lists.failing.get(name).map(String::as_str);
            let why = reason(reasons, name).or(message).unwrap_or("not run yet");
            let list = match message {
                Some(_) if !why.starts_with(CANNOT) => &mut standing.failing,
                _ => &mut standing.not_run,
            };
            list.insert(name.clone(), why.to_string());
        }
        standing
    }

    fn write(&self, out: &mut String, about: &str, level: &str) -> Result<()> {
        let count = format!(
            "{} of {} pass, {} fail, {} were not run or cannot run here.",
            self.passing.len(),
            self.passing.len() + self.failing.len() + self.not_run.len(),
            self.failing.len(),
            self.not_run.len()
        );
        let about = about.replacen("{}", peers::RELEASE, 1).replacen("{}", &count, 1);
        writeln!(
            out,
            "\n{about}\n\n| group | pass | fail | not run |\n|---|---|---|---|"
        )?;
        for (group, [pass, fail, not_run]) in self.groups() {
            writeln!(out, "| {group} | {pass} | {fail} | {not_run} |")?;
        }
        for (title, list) in [("Failing", &self.failing), ("Not run", &self.not_run)] {
            writeln!(out, "\n{level} {title}, and why\n\n| spec | why |\n|---|---|")?;
            for (name, why) in list {
                writeln!(out, "| {} | {why} |", name.replace('|', "/"))?;
            }
        }
        writeln!(out, "\n{level} Passing\n")?;
        for name in &self.passing {
            writeln!(out, "- {name}")?;
        }
        Ok(())
    }

    fn groups(&self) -> BTreeMap<String, [usize; 3]> {
        let mut groups = BTreeMap::<String, [usize; 3]>::new();
        let lists: [Box<dyn Iterator<Item = &String>>; 3] = [
            Box::new(self.passing.iter()),
            Box::new(self.failing.keys()),
            Box::new(self.not_run.keys()),
        ];
        for (column, names) in lists.into_iter().enumerate() {
            for name in names {
                groups.entry(group(name)).or_default()[column] += 1;
            }
        }
        groups
    }
}

fn group(name: &str) -> String {
    name.split(']')
        .next()
        .unwrap_or_default()
        .trim_start_matches('[')
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_three_columns() {
        let pass = Pass {
            seconds: 1.5,
            times: 2,
        };
        assert_eq!(row("1.5\t2\t[a] b").unwrap(), ("[a] b".to_string(), pass));
        assert!(row("1.5\t[a] b").is_err());
    }

    #[test]
    fn every_spec_of_the_suite_stands_in_the_document_with_a_reason_unless_it_passes() {
        let names = [
            "p [Conformance]",
            "f [Conformance]",
            "n [Conformance]",
            "c [Conformance]",
            "other",
        ];
        let all: Vec<String> = names.map(String::from).to_vec();
        let mut lists = Lists::default();
        let spec = |name: &str, state: &str, failure: &str| Spec {
            name: name.to_string(),
            state: state.to_string(),
            seconds: 1.0,
            failure: failure.to_string(),
        };
        let specs = [
            spec(names[0], "passed", ""),
            spec(names[1], "failed", "broke"),
            spec(names[3], "skipped", "no ssh"),
        ];
        lists.take(&specs);
        let standing = Standing::of(Suite::Conformance, &lists, &Vec::new(), &all);
        assert_eq!(Vec::from_iter(&standing.passing), [names[0]]);
        assert_eq!(standing.failing[names[1]], "broke");
        assert_eq!(standing.not_run[names[2]], "not run yet");
        assert_eq!(
            standing.not_run[names[3]],
            "cannot run here, says the suite: no ssh"
        );
        assert_eq!(standing.groups().values().flatten().sum::<usize>(), 4);
    }

    #[test]
    fn a_reason_that_lies_with_the_machine_makes_no_failure_of_a_spec() {
        let all = vec!["x [Conformance]".to_string()];
        let mut lists = Lists::default();
        lists.failing.insert(all[0].clone(), "timed out".to_string());
        let reasons = vec![("x".to_string(), format!("{CANNOT}: no such image"))];
        let standing = Standing::of(Suite::Conformance, &lists, &reasons, &all);
        assert!(standing.failing.is_empty());
        assert!(standing.not_run.contains_key(&all[0]));
    }
}
