//! The node agent: wires pods, services, network and data path together.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod dns;
pub mod edge;
pub mod host_ports;
pub mod network;
pub mod objects;
pub mod only_services;
pub mod peers;
pub mod pods;
pub mod recorder;
pub mod report;
pub mod run;
mod runtime;
pub mod services;
pub mod worker;

pub use agent_node::node::SHARE_SHORT as DISK_SHORT;
pub use config::AgentConfig;
pub use only_services::{ServicesAgentConfig, run_services};
pub use run::run;
