//! What users see: progress and errors on standard error, data on standard output.
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people; may change
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// For programs
    Json,
    /// For programs
    Yaml,
    /// One name per line
    Name,
}

/// One thing of a list that a command prints.
pub trait Row: Serialize {
    /// Titles of the columns; those from `WIDE_FROM` on are shown by `-o wide` only.
    const COLUMNS: &'static [&'static str];
    /// See there.
    const WIDE_FROM: usize;
    /// The cells, one per column.
    fn cells(&self) -> Vec<String>;
    /// What `-o name` prints.
    fn name(&self) -> String;
}

/// Prints a list in the chosen format.
///
/// # Errors
/// When standard output cannot be written.
pub fn print<R: Row>(format: Format, rows: &[R]) -> anyhow::Result<()> {
    let text = match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(rows)?),
        Format::Yaml => serde_saphyr::to_string(&rows)?,
        Format::Name => rows.iter().map(|r| format!("{}\n", r.name())).collect(),
        Format::Table => table(rows, R::WIDE_FROM),
        Format::Wide => table(rows, R::COLUMNS.len()),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Prints one thing that is no list, as JSON or YAML.
pub fn print_value<T: Serialize>(format: Format, value: &T) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value)?,
        _ => format!("{}\n", serde_json::to_string_pretty(value)?),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn table<R: Row>(rows: &[R], columns: usize) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(&R::COLUMNS[..columns]);
    for row in rows {
        table.add_row(row.cells().into_iter().take(columns));
    }
    let lines = table.lines().map(|line| line.trim().to_owned() + "\n");
    lines.collect()
}

/// An error with the next step for whoever meets it.
#[derive(Debug)]
pub struct Hint {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Hint {}

/// Adds the next step to an error.
pub trait WithHint<T> {
    /// `hint` is printed on a line of its own behind the error.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            Hint {
                error: error.into(),
                hint: hint.into(),
            }
            .into()
        })
    }
}

/// Prints `error: what: why`, and `hint: …` where there is one.
pub fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
    for cause in error.chain() {
        if let Some(hint) = cause.downcast_ref::<Hint>() {
            eprintln!("hint: {}", hint.hint);
        }
    }
}

/// Shows what a long command does, and how long each step took.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    quiet: bool,
}

/// One step that is going on.
pub struct Going {
    what: String,
    since: Instant,
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    /// Says nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Begins a step: a spinner on a terminal, else one line when it is done.
    pub fn step(&self, what: impl Into<String>) -> Going {
        let what = what.into();
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::default_spinner());
        bar.set_message(what.clone());
        bar.enable_steady_tick(Duration::from_millis(100));
        Going {
            what,
            since: Instant::now(),
            bar,
            quiet: self.quiet,
        }
    }

    /// A line without a duration.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

impl Going {
    /// Says what it waits for at the moment.
    pub fn waits_for(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.what));
    }

    /// The step is done.
    pub fn done(self) {
        self.bar.finish_and_clear();
        if !self.quiet {
            eprintln!("{:<44} {:>6.1} s", self.what, self.since.elapsed().as_secs_f32());
        }
    }
}

/// `3m`, `2h`, `5d`: how old something is.
pub fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Serialize)]
    struct Thing(&'static str);

    impl Row for Thing {
        const COLUMNS: &'static [&'static str] = &["NAME", "MORE"];
        const WIDE_FROM: usize = 1;
        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), "x".to_owned()]
        }
        fn name(&self) -> String {
            self.0.to_owned()
        }
    }

    #[test]
    fn a_narrow_table_leaves_the_wide_columns_out() {
        assert_eq!(table(&[Thing("a")], 1), "NAME\na\n");
        assert!(table(&[Thing("a")], 2).contains("MORE"));
    }

    #[test]
    fn a_hint_survives_more_context() {
        let failed: Result<(), _> = Err(anyhow::anyhow!("why"));
        let error = failed.hint("do this").context("what").err();
        let error = error
            .as_ref()
            .map(|e| (format!("{e:#}"), e.chain().any(|c| c.is::<Hint>())));
        assert_eq!(error, Some(("what: why".to_owned(), true)));
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(
            [age(5), age(300), age(8000), age(400_000)],
            ["5s", "5m", "2h", "4d"]
        );
    }
}
