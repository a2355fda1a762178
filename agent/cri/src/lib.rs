//! Carries pod steps out over the Container Runtime Interface: sandboxes, containers, images, volumes, cgroups, probes.
//!
//! What to do is decided in `agent-pods`; this crate knows how. It works with containerd 1.6 and later: calls that a
//! version does not have (`UNIMPLEMENTED`) and stops of what is already gone (`NOT_FOUND`) are normal cases here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod atomic;
pub mod cgroups;
pub mod client;
pub mod config;
pub mod dirs;
pub mod events;
pub mod executor;
pub mod hooks;
pub mod images;
pub mod mounts;
pub mod probes;
pub mod termination;
pub mod view;
pub mod volumes;

pub use client::{Runtime, RuntimeError};
pub use executor::{Executor, Recorder, Settings, StartError, StartInput};
