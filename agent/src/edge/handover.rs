//! Beside another proxy: its connections are spared until the last of them has ended.

use agent_datapath::{Datapath, DatapathError, since_boot};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two looks at the kernel's connections, while there are some of another proxy.
const LOOK: Duration = Duration::from_secs(15);

/// Whether another proxy has connections on this node, before anything of ours is written. They are spared from then on.
///
/// # Errors
/// When the maps cannot be read or written.
pub async fn begin(datapath: &Arc<Datapath>) -> Result<bool, DatapathError> {
    let count = look(datapath, true).await?;
    if count > 0 {
        tracing::info!(count, "connections of another proxy go on");
    }
    Ok(count > 0)
}

/// Looks after them until the last has ended.
pub async fn watch(datapath: Arc<Datapath>, foreign: watch::Sender<bool>) {
    while *foreign.borrow() {
        sleep(LOOK).await;
        match look(&datapath, false).await {
            Ok(0) => {
                if let Err(error) = datapath.spare_nobody() {
                    tracing::warn!(error = &error as &dyn std::error::Error, "trying again");
                    continue;
                }
                tracing::info!("the last connection of another proxy has ended");
                foreign.send_replace(false);
            }
            Ok(count) => tracing::debug!(count, "connections of another proxy go on"),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "connections of another proxy cannot be looked at"
            ),
        }
    }
    std::future::pending().await
}

/// Hundreds of thousands of connections take a good part of a second.
async fn look(datapath: &Arc<Datapath>, every: bool) -> Result<usize, DatapathError> {
    let datapath = Arc::clone(datapath);
    let found = tokio::task::spawn_blocking(move || datapath.spare_others(every, since_boot())).await;
    // It panics for no other reason than a fault of this program.
    found.unwrap_or(Ok(0))
}
