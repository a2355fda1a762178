//! What surrounds the service maps: the way to the API, the node's own state, health, metrics, announced addresses.

pub mod announce;
pub mod api;
pub mod elect;
pub mod facts;
pub mod handover;
pub mod health;
pub mod http;
pub mod metrics;
pub mod ports;
pub mod ranges;
pub mod settings;
pub(crate) mod sources;
mod start;
pub mod traffic;
pub mod upkeep;

pub use start::{Edge, start};
