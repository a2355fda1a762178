//! `skep leave`: gives a node's services back to another proxy.
use crate::cli::LeaveArgs;
use crate::output::{Progress, WithHint};
use agent_datapath::{Leaving, since_boot};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at the connections that still go on.
const LOOK: Duration = Duration::from_secs(1);

/// Leaves what is new to others, waits until no connection of ours is left, and takes everything away.
///
/// # Errors
/// When an agent still serves the node, or something cannot be taken away.
pub async fn run(args: &LeaveArgs, progress: Progress) -> Result<()> {
    crate::doctor::require_root("leaving a node")?;
    let pins: PathBuf = args
        .pin_dir
        .clone()
        .unwrap_or_else(|| crate::services::PINS.into());
    leave(&pins, args.timeout.map(Duration::from_secs), progress).await?;
    if args.stay {
        machinery_lifecycle::Shutdown::on_signals()
            .context("cannot wait for signals")?
            .requested()
            .await;
    }
    Ok(())
}

async fn leave(pins: &Path, patience: Option<Duration>, progress: Progress) -> Result<()> {
    let begun = Leaving::begin(pins).context("this node cannot be left").hint(
        "stop `skep agent --only services` on this node first; `skep maps` tells whether anything is pinned",
    )?;
    let Some(mut leaving) = begun else {
        progress.say(&format!("Nothing is pinned at {}", pins.display()));
        return Ok(());
    };
    let end = patience.map(|p| Instant::now() + p);
    let mut told = None;
    loop {
        let going = leaving.connections(since_boot())?;
        if going == 0 {
            break;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            progress.say(&format!("{going} connections end now"));
            break;
        }
        if told != Some(going) {
            progress.say(&format!("{going} connections go on; new ones are left to others"));
            told = Some(going);
        }
        sleep(LOOK).await;
    }
    let (devices, _) = agent_network::interfaces::watch()
        .await
        .context("the devices cannot be listed")?;
    let names: Vec<String> = devices.borrow().iter().map(|d| d.name.clone()).collect();
    leaving.finish(&names).context("something stays in the kernel")?;
    progress.say("Nothing of Skep is left in this node's packets' way");
    Ok(())
}
