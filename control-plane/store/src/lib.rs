//! Revisioned key-value store: embedded (default) and etcd v3 behind one port.
//!
//! Keys are bytes such as `/registry/pods/ns/name`, values are opaque bytes. Each write makes a new [`Revision`] of the
//! whole store. All reads come from one ordered tree in memory ([`Snapshot`]) that the back end feeds; they go on while
//! the back end is slow or gone. Writes are compare-and-put on one key and end with an error after a deadline.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod core;
mod embedded;
mod entry;
mod error;
mod etcd;
mod history;
mod snapshot;
mod store;
mod transfer;
mod watch;

pub use entry::{Entry, EventKind, Expect, Revision, WatchEvent};
pub use error::{OpenError, StoreError, TransferError, WatchError};
pub use etcd::{EtcdConfig, EtcdTls};
pub use history::HistoryLimits;
pub use snapshot::{Range, Snapshot};
pub use store::{Durability, Options, Status, Store};
pub use transfer::Transferred;
pub use watch::{Watch, WatchItem};
