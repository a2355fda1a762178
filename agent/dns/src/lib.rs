//! The node's DNS server: sockets and wire format around the cluster's zone, and other names asked elsewhere.
//!
//! - [`Server`] answers one question, out of the zone, out of memory, or by asking another server;
//! - [`serve`] does so for what comes in over UDP and TCP;
//! - [`sockets`] opens the sockets, or takes over those that were kept open while the agent was restarted.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod forward;
mod serve;
mod server;
pub mod sockets;
mod wire;

pub use agent_names as names;
pub use forward::ForwardConfig;
pub use serve::serve;
pub use server::{Now, Pending, Server, Transport};
