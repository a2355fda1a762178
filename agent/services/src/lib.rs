//! Turns Services and EndpointSlices into wanted map entries and an ordered diff (no I/O).
//!
//! [`Planner`] is told what was observed and returns [`Changes`]: what to write, in the order in which a packet never meets
//! half of it. The semantics are kube-proxy's; rules that surprise are named where they are applied.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod book;
mod changes;
mod endpoints;
mod existing;
mod fronts;
mod health;
mod host_ports;
mod in_use;
mod maglev;
mod node;
mod numbers;
mod packed;
mod planner;
mod programmed;
mod texts;
mod view;

pub use changes::{Changes, EndedBackend, EndedFront};
pub use existing::Existing;
pub use health::{EndpointFacts, NoLocalEndpoints, PortFacts, ServiceHealth, Unused};
pub use host_ports::{HostPort, HostPortsView};
pub use in_use::InUse;
pub use node::{Node, node_port_addresses};
pub use planner::Planner;
pub use view::{EndpointView, ObjectName, PortView, ServiceView, SlicePort, SliceView, parse_ip};
