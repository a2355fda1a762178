//! Reports the node (registration, lease, status) and serves the kubelet API.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod heartbeat;
pub mod machine;
pub mod node;
pub mod server;

pub use heartbeat::{Heartbeat, HeartbeatConfig};
pub use machine::Machine;
pub use server::KubeletApi;
