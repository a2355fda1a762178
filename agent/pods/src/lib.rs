//! Decides what each pod on this node needs next and what to report (no I/O, no clock: time is passed in).
//!
//! [`plan::plan`] turns a [`model::PodModel`], the runtime's [`view::View`] and probe outcomes into ordered steps;
//! [`status::status`] turns the same inputs into the `PodStatus` to report. Everything a container is created with
//! (environment, command, limits, security, volume contents) is computed by the other modules as plain data.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admit;
pub mod dns;
pub mod env;
pub mod expand;
pub mod fields;
pub mod image;
pub mod memory;
pub mod model;
pub mod names;
pub mod plan;
pub mod probe;
pub mod quantity;
pub mod resize;
pub mod resources;
pub mod security;
pub mod status;
pub mod terminate;
pub mod view;
pub mod volumes;

#[cfg(test)]
mod testing;
