//! The control plane: wires store, API server, scheduler and controllers together.
//!
//! All of it runs in one process. Scheduler and controllers speak the public HTTP API, through the API server's own
//! layers but without a socket; they share one set of caches, so there is one watch per kind.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
pub mod controllers;
mod kubeconfigs;
pub mod scheduler;
mod start;

pub use config::{Listen, ServerConfig, StoreKind};
pub use start::{ControlPlane, RunError, run};
