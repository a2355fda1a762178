//! What can go wrong, per use of the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::{Entry, Revision};

/// Why a read or a write was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as the write expected it.
    #[error("the key was changed by someone else")]
    Conflict {
        /// The key as it is now; `None` when it does not exist.
        current: Option<Arc<Entry>>,
    },
    /// The revision is older than the history that is kept.
    #[error("revision is older than the history kept, which starts at {oldest}; read again from the newest")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision has not been reached yet.
    #[error("revision has not been reached, the newest is {current}")]
    Future {
        /// The newest revision known.
        current: Revision,
    },
    /// No answer within the deadline. Whether a write was done is not known; read before trying again.
    #[error("the store did not answer within {0:?}; it may be overloaded or cut off")]
    Timeout(Duration),
    /// The back end refused or is gone. Reads of what was known go on.
    #[error("the store's back end is not available: {0}")]
    Unavailable(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the file cannot be used.
    #[error("cannot open the store file {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What the database or the file system said.
        reason: String,
    },
    /// The file was read but is not one of ours, or is damaged.
    #[error("the store file is damaged: {0}; restore it from an export or a backup")]
    Damaged(String),
    /// No endpoint of etcd answered.
    #[error(
        "cannot reach etcd at {endpoints}: {reason}; check the addresses, the certificates and that it runs"
    )]
    Etcd {
        /// The endpoints tried.
        endpoints: String,
        /// What the client said.
        reason: String,
    },
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher did not keep up and was cut off; read again and watch from there.
    #[error("the watcher did not keep up with the changes and was cut off")]
    Lagged,
    /// The history between the last event and now is lost; read again and watch from there.
    #[error("the history after the last event is no longer kept")]
    Compacted,
}

/// Why an export or import ended early.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file cannot be read or written.
    #[error("cannot read or write the export: {0}")]
    Io(#[from] io::Error),
    /// Not an export, or a damaged one.
    #[error("the export is damaged or not one of ours: {0}")]
    Format(String),
    /// An import needs an empty store.
    #[error("the store already holds {0} keys; import into an empty one")]
    NotEmpty(usize),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}
