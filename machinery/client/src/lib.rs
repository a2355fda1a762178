//! Kubernetes client: from a kubeconfig or in process, and list-watch caches that know our own writes.
//!
//! A [`Cache`] holds all objects of one kind that a process looks at; every consumer shares it, so there is one watch
//! per kind and process. Answers to our own writes are laid over what the watch has shown so far
//! ([`Cache::observe_written`], [`Cache::observe_deleted`]), so that a planner never acts twice for lack of news.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod connect;
mod store;
mod writeback;

pub use cache::{ApiScope, Cache, Cached, Scope, WatchOptions, watch_metadata};
pub use connect::{ConnectError, from_kubeconfig, from_kubeconfig_text, in_process};
pub use kube;
pub use store::Change;
pub use writeback::{WriteBack, WriteBacks};
