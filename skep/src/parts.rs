//! `skep server` and `skep agent`: reads their configuration and runs them until they are told to stop.
use crate::cli::{AgentArgs, PartArgs};
use crate::config::{self, AgentConfig, ServerConfig};
use anyhow::Result;

/// Runs the control plane.
///
/// # Errors
/// What keeps it from running.
pub fn server(args: &PartArgs) -> Result<()> {
    let _config: ServerConfig = config::read(&args.config, "ServerConfig")?;
    anyhow::bail!("this build has no control plane")
}

/// Runs a node's agent.
///
/// # Errors
/// What keeps it from running.
pub fn agent(args: &AgentArgs) -> Result<()> {
    let _config: AgentConfig = config::read(&args.config, "AgentConfig")?;
    anyhow::bail!("this build has no agent")
}
