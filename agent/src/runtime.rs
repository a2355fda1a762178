//! Waiting for the container runtime, and looking after it.

use agent_cri::Runtime;
use agent_node::node::Health;
use k8s_cri::v1::VersionResponse;
use machinery_lifecycle::Folder;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep, timeout};

/// A starting runtime is looked at whenever something happens where its socket is, and at least so often.
const STARTING: Duration = Duration::from_secs(1);
/// Pauses between questions whether the runtime has seen the network's configuration, doubled from the first to the
/// last: the runtime interface has no event for that, only the question.
const SEEN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// Between two looks at whether the runtime still says that it is ready.
const LOOK: Duration = Duration::from_secs(10);
/// A runtime that is away for less is being restarted: its pods run on, and taking them out of their services would do
/// harm (upstream's `maxWaitForContainerRuntime`).
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a runtime that is being started: it makes its socket, listens, and then sets the socket's owner and mode.
pub async fn version(runtime: &Runtime, socket: &Path) -> VersionResponse {
    let mut told = false;
    loop {
        // Watched before it is asked, so that nothing happens unseen in between.
        let folder = Folder::watch(socket.parent().unwrap_or(Path::new("/")));
        match runtime.version().await {
            Ok(version) => return version,
            Err(error) if !told => {
                told = true;
                tracing::warn!(%error, "waiting for the container runtime");
            }
            Err(_) => {}
        }
        let change = async {
            match folder {
                Ok(mut folder) => folder.changed().await,
                Err(error) => Err(error),
            }
        };
        // Where nothing can be watched, it is asked at the slow pace.
        if let Ok(Err(_)) = timeout(STARTING, change).await {
            sleep(STARTING).await;
        }
    }
}

/// Waits until the runtime has seen the network's configuration: a sandbox made before would fail and stay behind.
pub async fn ready(runtime: &Runtime, health: &Sender<Health>) {
    let (mut pause, longest) = SEEN;
    loop {
        let now = runtime_health(runtime).await;
        let ready = now.problems.is_empty();
        publish(health, now);
        if ready {
            return;
        }
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// Tells how the runtime is, for as long as the agent runs.
pub async fn watch(runtime: Runtime, health: Sender<Health>) {
    let mut good = Instant::now();
    loop {
        sleep(LOOK).await;
        let now = runtime_health(&runtime).await;
        if now.problems.is_empty() {
            good = Instant::now();
        } else if good.elapsed() < PATIENCE {
            continue;
        }
        publish(&health, now);
    }
}

fn publish(health: &Sender<Health>, now: Health) {
    health.send_if_modified(|known| {
        let changed = *known != now;
        *known = now;
        changed
    });
}

async fn runtime_health(runtime: &Runtime) -> Health {
    let problems = match runtime.conditions().await {
        Ok(conditions) => {
            let missing = conditions.into_iter().filter(|c| !c.status);
            missing
                .map(|c| {
                    format!(
                        "container runtime: {} is false: {} {}",
                        c.r#type, c.reason, c.message
                    )
                })
                .collect()
        }
        Err(error) => vec![error.to_string()],
    };
    Health { problems }
}
