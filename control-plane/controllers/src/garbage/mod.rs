//! Garbage collection by owner references
//! (<https://kubernetes.io/docs/concepts/architecture/garbage-collection/>).
//!
//! [`Graph`] holds who owns whom, of all objects of all kinds. When something changes it names the objects to look at;
//! [`plan()`] decides about one of them.

mod decide;
mod graph;

#[cfg(test)]
mod tests;

pub use decide::{Observed, OwnerState, Subject, plan};
pub use graph::{Graph, Object, Owner};

/// Finalizer of an object that waits for its dependents to go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";
