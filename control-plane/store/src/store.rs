//! The port: one handle over either back end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::core::Core;
use crate::embedded::Embedded;
use crate::etcd::{Etcd, EtcdConfig};
use crate::{Entry, Expect, HistoryLimits, OpenError, Revision, Snapshot, StoreError, Watch};

/// When a write of the embedded store counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: no acknowledged write is lost by a crash or a loss of power.
    #[default]
    Synced,
    /// When it is in memory; it reaches the disk when the store is closed. For tests only.
    Relaxed,
}

/// How a store behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How much of the past is kept.
    pub history: HistoryLimits,
    /// Unread changes a watcher may have before it is cut off.
    pub watch_room: usize,
    /// How long a write, or a linearizable read, may take before it ends with [`StoreError::Timeout`].
    pub deadline: Duration,
    /// When a write counts as done (embedded only; etcd always syncs).
    pub durability: Durability,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history: HistoryLimits::default(),
            watch_room: 4096,
            deadline: Duration::from_secs(10),
            durability: Durability::Synced,
        }
    }
}

/// State of a store, for operators and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `embedded` or `etcd`.
    pub back_end: &'static str,
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can still be read exactly.
    pub compacted: Revision,
    /// Keys.
    pub keys: usize,
    /// Changes kept for watches that start in the past.
    pub history: usize,
    /// Open watches.
    pub watchers: usize,
    /// Bytes on disk, as the back end last told; `None` while it cannot be asked.
    pub bytes_on_disk: Option<u64>,
    /// Why writes fail at present; `None` when they do not.
    pub trouble: Option<String>,
}

/// Handle of an open store; clones are handles of the same store. Needs a tokio runtime with timers (and, for etcd, I/O).
#[derive(Clone)]
pub struct Store {
    pub(crate) core: Arc<Core>,
    pub(crate) back: Back,
    deadline: Duration,
}

#[derive(Clone)]
pub(crate) enum Back {
    Embedded(Embedded),
    Etcd(Arc<Etcd>),
}

impl Store {
    /// Opens the embedded store in the file `path`, and makes the file when there is none. One process at a time.
    ///
    /// # Errors
    /// When the file cannot be made, read or locked, or is damaged.
    pub async fn open_embedded(path: &Path, options: Options) -> Result<Self, OpenError> {
        let (embedded, core) = Embedded::open(path, options).await?;
        Ok(Self {
            core,
            back: Back::Embedded(embedded),
            deadline: options.deadline,
        })
    }

    /// Connects to etcd v3 and reads everything below the prefix.
    ///
    /// # Errors
    /// When no endpoint answers within the deadline of `config.options`.
    pub async fn connect_etcd(config: EtcdConfig) -> Result<Self, OpenError> {
        let deadline = config.options.deadline;
        let (etcd, core) = Etcd::connect(config).await?;
        Ok(Self {
            core,
            back: Back::Etcd(Arc::new(etcd)),
            deadline,
        })
    }

    /// The newest state known here. Never waits; includes every write that this handle or a clone has acknowledged.
    pub fn snapshot(&self) -> Snapshot {
        self.core.snapshot()
    }

    /// A state that includes every write that anyone had acknowledged before the call (linearizable).
    ///
    /// # Errors
    /// On etcd, when it does not answer within the deadline.
    pub async fn fresh(&self) -> Result<Snapshot, StoreError> {
        match &self.back {
            Back::Embedded(_) => Ok(self.core.snapshot()),
            Back::Etcd(etcd) => self.within_deadline(etcd.fresh()).await,
        }
    }

    /// The newest state once it has reached `revision`.
    ///
    /// # Errors
    /// [`StoreError::Future`] when it has not within `deadline`.
    pub async fn at_least(&self, revision: Revision, deadline: Duration) -> Result<Snapshot, StoreError> {
        self.core.at_least(revision, deadline).await
    }

    /// The state exactly as it was at `revision`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] or [`StoreError::Future`] when it is outside the history kept.
    pub fn at(&self, revision: Revision) -> Result<Snapshot, StoreError> {
        self.core.at(revision)
    }

    /// Writes `value` under `key` if the key is as `expect` says. With `ttl` the key vanishes that long after, by a
    /// delete event, unless it is put again; a put without `ttl` makes it stay.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] with the entry as it is. On [`StoreError::Timeout`] the write may still be done.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision, StoreError> {
        let (key, value) = (key.into(), value.into());
        match &self.back {
            Back::Embedded(embedded) => self.within_deadline(embedded.put(key, value, expect, ttl)).await,
            Back::Etcd(etcd) => self.within_deadline(etcd.put(key, value, expect, ttl)).await,
        }
    }

    /// Removes `key` if it is as `expect` says; gives the revision of the delete and what was there.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], without an entry when there is no such key. On [`StoreError::Timeout`] the delete may
    /// still be done.
    pub async fn delete(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
    ) -> Result<(Revision, Arc<Entry>), StoreError> {
        let key = key.into();
        match &self.back {
            Back::Embedded(embedded) => self.within_deadline(embedded.delete(key, expect)).await,
            Back::Etcd(etcd) => self.within_deadline(etcd.delete(key, expect)).await,
        }
    }

    /// The changes after `after` of the keys that begin with `prefix`, first those that have happened, then those to come.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when some changes after `after` are forgotten.
    pub fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watch, StoreError> {
        self.core.watch(prefix, after)
    }

    /// Forgets the history up to `revision`: older states cannot be read, older watches cannot start.
    ///
    /// # Errors
    /// When the back end is not available.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        match &self.back {
            Back::Embedded(embedded) => self.within_deadline(embedded.compact(revision)).await,
            Back::Etcd(etcd) => self.within_deadline(etcd.compact(revision)).await,
        }
    }

    /// How the store is. Asks the back end for its size, at most for the deadline.
    pub async fn status(&self) -> Status {
        let (bytes_on_disk, trouble) = match &self.back {
            Back::Embedded(embedded) => (embedded.bytes_on_disk(), embedded.trouble()),
            Back::Etcd(etcd) => {
                let bytes = timeout(self.deadline, etcd.bytes_on_disk()).await.ok().flatten();
                (bytes, etcd.trouble())
            }
        };
        let (snapshot, (history, watchers)) = (self.core.snapshot(), self.core.counts());
        Status {
            back_end: self.back_end(),
            revision: snapshot.revision(),
            compacted: self.core.compacted(),
            keys: snapshot.len(),
            history,
            watchers,
            bytes_on_disk,
            trouble,
        }
    }

    /// Ends all watches, lets writes under way finish and closes the back end. Later writes fail; reads go on.
    pub async fn close(&self) {
        match &self.back {
            Back::Embedded(embedded) => embedded.close().await,
            Back::Etcd(etcd) => etcd.close(),
        }
        self.core.close();
    }

    fn back_end(&self) -> &'static str {
        match self.back {
            Back::Embedded(_) => "embedded",
            Back::Etcd(_) => "etcd",
        }
    }

    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(self.deadline, work)
            .await
            .unwrap_or(Err(StoreError::Timeout(self.deadline)))
    }
}
