//! Actions as data, with the preconditions they were planned for (no I/O).
//!
//! A planner looks at what was observed and returns a [`Plan`]: stages of [`Action`]s, carried out one stage after
//! the other, and a time after which to look again. Every action names the uid or resource version that it was
//! planned for, so that a stale plan is refused by the API server and not by luck. [`lint`] checks the rules that
//! every plan has to keep; tests of planners run it on each plan they see.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod action;
pub mod lint;
mod object;

pub use action::{Action, EventKind, Operation, PatchStrategy, Plan, Preconditions, Propagation, Stage};
pub use object::{Key, Kubernetes, ObjectRef, ResourceType, Scoped};
