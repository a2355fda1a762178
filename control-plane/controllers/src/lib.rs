//! The built-in controllers as pure planners (no I/O).
//!
//! Each module has an `Observed` and a `plan`: what was seen goes in, with the time; actions with preconditions come
//! out. Whoever calls them observes, runs the actions and calls again when something changed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod condition;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage;
pub mod history;
pub mod ipam;
pub mod job;
pub mod load_balancer;
pub mod namespace;
pub mod namespace_defaults;
pub mod node_lifecycle;
pub mod node_match;
pub mod ownership;
pub mod pod;
pub mod pod_gc;
pub mod protection;
pub mod replicaset;
pub mod resource_quota;
pub mod selector;
pub mod statefulset;
pub mod taint_eviction;
pub mod template;
pub mod time;

#[cfg(test)]
mod world;
