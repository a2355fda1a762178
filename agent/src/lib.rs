//! The node agent: wires pods, services, network and data path together.
pub mod services;
