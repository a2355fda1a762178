//! Chooses a node for each pod (no I/O).
//!
//! [`Cluster`] is what the scheduler knows, kept up to date object by object. [`Cluster::schedule`] filters and scores
//! nodes for one pod with the default plug-ins and weights of Kubernetes 1.36. [`Queue`] decides which pod is next and
//! when one that did not fit is tried again. The edge task that watches and binds lives in `control-plane`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod affinity;
mod cluster;
mod filter;
mod message;
mod node;
mod pod;
mod preempt;
mod queue;
mod resources;
mod score;
mod topology;

pub use cluster::{Cluster, Decision, Unschedulable};
pub use node::NodeInfo;
pub use pod::PodInfo;
pub use preempt::Preemption;
pub use queue::{Change, Queue};
pub use resources::Resources;

/// The scheduler that pods name by default.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";
