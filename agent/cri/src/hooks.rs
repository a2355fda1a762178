//! Lifecycle hooks: commands, HTTP requests and pauses after a container's start and before its stop.

use crate::client::Runtime;
use crate::probes;
use agent_pods::model::Member;
use k8s_openapi::api::core::v1::LifecycleHandler;
use std::net::IpAddr;
use std::time::Duration;

/// A hook that did not succeed, with what people need to see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HookError(String);

/// Longest an HTTP hook is waited for when nothing else limits it.
const HTTP: Duration = Duration::from_secs(30);

/// Runs a hook of the container `id`; `ip` is the pod's address. Takes as long as the hook does.
///
/// # Errors
/// [`HookError`]
pub async fn run(
    runtime: &Runtime,
    id: &str,
    member: &Member,
    handler: &LifecycleHandler,
    ip: Option<IpAddr>,
) -> Result<(), HookError> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let answer = runtime
            .exec_sync(id, command, 0)
            .await
            .map_err(|e| HookError(e.to_string()))?;
        if answer.exit_code != 0 {
            let output = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(HookError(format!(
                "command '{shown}' exited with {}: {output}",
                answer.exit_code
            )));
        }
    } else if let Some(get) = &handler.http_get {
        let found = probes::http(get, member, ip, HTTP).await;
        if let agent_pods::probe::Found::Fail(why) = found {
            return Err(HookError(why));
        }
    } else if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
    }
    Ok(())
}
