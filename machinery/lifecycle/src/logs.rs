//! Where log lines go.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends log lines of this process to standard error. `filter` is a directive list such as `info,kube=warn`; the
/// environment variable `SKEP_LOG` has precedence. A second call changes nothing.
pub fn init(filter: &str, format: Format) {
    let filter = EnvFilter::try_from_env("SKEP_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    // Files and journals want none; <https://no-color.org>.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    // Fails only if a subscriber is set already, which then stays.
    let _ = match format {
        Format::Text => lines.try_init(),
        Format::Json => lines.json().try_init(),
    };
}
