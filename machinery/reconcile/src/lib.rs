//! Keyed queue, runner and executor shared by all controllers.
//!
//! A [`Controller`] observes one key and plans for it; the [`Runner`] decides when, and the [`Executor`] carries the
//! plan out. Four hazards are met here and in no controller: caches that lag behind our own writes (the executor feeds
//! answers back into them), acting before everything was seen once (the runner waits for all sources), plans that are
//! out of date (preconditions go along with every request), and failures (each key is retried on its own, with a
//! growing and jittered delay).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod events;
mod executor;
mod queue;
mod request;
mod runner;
mod schedule;

pub use events::Recorder;
pub use executor::{Executor, Failure, FailureKind};
pub use queue::Queue;
pub use runner::{Attempt, Controller, Runner};
pub use schedule::Backoff;
