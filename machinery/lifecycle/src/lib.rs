//! Start and stop order, task set, logs, readiness and metrics.
//!
//! Every process of Skep starts its tasks through one [`TaskSet`] and stops them in the opposite order, each with a
//! time to finish in; what did not finish is named and cut off.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod folder;
pub mod logs;
pub mod metrics;
mod readiness;
mod shutdown;
pub mod side_port;
mod tasks;

pub use folder::Folder;
pub use readiness::{Condition, Readiness};
pub use shutdown::Shutdown;
pub use tasks::{Ended, StopReport, TaskSet};
