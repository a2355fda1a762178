//! Results for people: a table on standard output, and a page with plots.
use crate::bench::Args;
use crate::peer::{Measure, Peer};
use crate::stats::Row;
use crate::svg;
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Prints the table and writes what was asked for.
///
/// # Errors
/// A file cannot be written.
pub fn finish(args: &Args, rows: &[Row]) -> Result<()> {
    print!("{}", table(rows));
    if let Some(file) = &args.json {
        write(file, &(serde_json::to_string_pretty(rows)? + "\n"))?;
    }
    if let Some(folder) = &args.report {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let prefix = if args.quick {
            "dataplane-quick"
        } else {
            "dataplane"
        };
        page(folder, prefix, args, rows)?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn number(x: Option<f64>) -> String {
    match x {
        None => "-".into(),
        Some(x) if x >= 1000.0 => format!("{x:.0}"),
        Some(x) => format!("{x}"),
    }
}

/// A table of all rows, measure by measure.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for measure in Measure::ALL {
        let of = measured(rows, measure);
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(
            out,
            "\n{} ({}, {})",
            measure.name(),
            measure.title(),
            measure.unit()
        );
        let _ = writeln!(
            out,
            "  {:<28}{:>9}{:>11}{:>11}{:>10}{:>6}{:>11}",
            "peer", "services", "p50", "p99", "spread", "runs", "/ direct"
        );
        for r in of {
            let _ = writeln!(
                out,
                "  {:<28}{:>9}{:>11}{:>11}{:>10}{:>6}{:>11}",
                who(r),
                r.services,
                number(r.p50),
                number(r.p99),
                number(r.spread),
                r.runs,
                number(r.to_direct)
            );
        }
    }
    let skips = skips(rows);
    if !skips.is_empty() {
        out.push_str("\nskipped\n");
    }
    for ((peer, services, reason), measures) in skips {
        let _ = writeln!(out, "  {peer} at {services}: {}: {reason}", measures.join(", "));
    }
    out
}

/// The peer; of a measure with several situations, the situation.
fn who(r: &Row) -> &str {
    r.case.as_deref().unwrap_or(r.peer)
}

/// The rows of a measure that have a value.
fn measured(rows: &[Row], measure: Measure) -> Vec<&Row> {
    rows.iter()
        .filter(|r| r.measure == measure.name() && r.skipped.is_none())
        .collect()
}

/// What could not be measured, by peer, number of services and reason.
fn skips(rows: &[Row]) -> BTreeMap<(&str, u32, &str), Vec<&str>> {
    let mut skips: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for r in rows {
        if let Some(reason) = &r.skipped {
            skips
                .entry((r.peer, r.services, reason.as_str()))
                .or_default()
                .push(r.measure);
        }
    }
    skips
}

/// Where it was measured.
struct Machine {
    processor: String,
    processors: usize,
    memory_gib: f64,
    kernel: String,
}

impl Machine {
    fn this() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|l| l.starts_with(name))
                .and_then(|l| l.split_once(':'))
                .map(|(_, v)| v.trim().to_owned())
                .unwrap_or_default()
        };
        let kib: f64 = field(&read("/proc/meminfo"), "MemTotal")
            .trim_end_matches(" kB")
            .parse()
            .unwrap_or(0.0);
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

fn page(folder: &Path, prefix: &str, args: &Args, rows: &[Row]) -> Result<()> {
    let machine = Machine::this();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let all = json!({
        "processor": machine.processor, "processors": machine.processors,
        "memory_gib": machine.memory_gib.round(), "kernel": machine.kernel, "commit": args.commit,
        "load": load.trim(),
        "rows": rows,
    });
    write(
        &folder.join(format!("{prefix}.json")),
        &(serde_json::to_string_pretty(&all)? + "\n"),
    )?;
    let mut text = format!(
        "# The service data plane, measured\n\nMade by `cargo xtask bench dataplane{}`; {} × {}, {:.0} GiB, Linux {}, commit {}. Load average at its\n\
         end: {}; a quiet machine ends below 3.\n\n\
         Each peer is a node, a client pod and a server pod as network namespaces joined by veth pairs; all of a number of\n\
         services run side by side and are measured in turns of short blocks. p50 is the median of the blocks' medians, spread the\n\
         distance of their quartiles, p99 over all samples. A client chooses among all services at random.\n",
        if args.quick { " --quick" } else { "" },
        machine.processors,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        args.commit,
        load.split(' ').next().unwrap_or_default()
    );
    for measure in Measure::ALL {
        let of = measured(rows, measure);
        if of.is_empty() {
            continue;
        }
        let plot = format!("{prefix}-{}.svg", measure.name().replace('_', "-"));
        // Situations of one measure are no points of one line.
        let plotted = of.iter().all(|r| r.case.is_none());
        if plotted {
            write(&folder.join(&plot), &plot_of(measure, &of))?;
        }
        section(&mut text, measure, &of, plotted.then_some(plot.as_str()));
    }
    let skips = skips(rows);
    if !skips.is_empty() {
        text.push_str("\n## Skipped\n\n| peer | services | measures | why |\n|---|---|---|---|\n");
    }
    for ((peer, services, reason), measures) in skips {
        let _ = writeln!(
            text,
            "| {peer} | {services} | {} | {reason} |",
            measures.join(", ")
        );
    }
    write(&folder.join(format!("{prefix}.md")), &text)
}

fn section(text: &mut String, measure: Measure, rows: &[&Row], plot: Option<&str>) {
    let name = measure.name();
    let plot = plot.map_or(String::new(), |plot| format!("![{name}]({plot})\n\n"));
    let _ = write!(
        text,
        "\n## {name}: {}\n\n{plot}| peer | services | p50 ({}) | p99 | spread | runs | / direct |\n|---|---|---|---|---|---|---|\n",
        measure.title(),
        measure.unit()
    );
    for r in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            who(r),
            r.services,
            number(r.p50),
            number(r.p99),
            number(r.spread),
            r.runs,
            number(r.to_direct)
        );
    }
}

/// By number of services.
fn sorted<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|r| r.services);
    rows
}

fn plot_of(measure: Measure, rows: &[&Row]) -> String {
    let series = Peer::ALL
        .iter()
        .map(|peer| svg::Series {
            name: peer.name(),
            points: sorted(rows)
                .iter()
                .filter(|r| r.peer == peer.name())
                .filter_map(|r| Some((f64::from(r.services), r.p50?, r.spread?)))
                .collect(),
        })
        .filter(|s| !s.points.is_empty())
        .collect::<Vec<_>>();
    svg::plot(
        &format!("{} ({})", measure.title(), measure.unit()),
        "services",
        &series,
    )
}
