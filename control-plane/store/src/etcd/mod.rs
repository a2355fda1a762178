//! The etcd v3 back end: writes are transactions on etcd, one watch feeds the tree in memory.

mod feed;
mod lease;
mod link;
mod reader;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::core::Core;
use crate::{Entry, Expect, OpenError, Options, Revision, Snapshot, StoreError};
use feed::Feed;
use lease::Leases;
use link::{Link, Loaded, entry_of, unavailable};
use reader::Reader;

/// Time for an event that is on its way to arrive, before a marker is written to learn how far the watch is.
const GRACE: Duration = Duration::from_millis(20);
/// Wait between attempts to connect when the store is opened.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Operations in one transaction of an import; etcd's default limit is 128.
const IMPORT_OPS: usize = 100;
/// Bytes in one transaction of an import; etcd's default limit of a request is 1.5 MiB.
const IMPORT_BYTES: usize = 1 << 20;

/// How to reach etcd.
#[derive(Clone, Debug, Default)]
pub struct EtcdConfig {
    /// URLs such as `https://etcd-1:2379`; any one that answers will do.
    pub endpoints: Vec<String>,
    /// Certificates, for `https`.
    pub tls: Option<EtcdTls>,
    /// Put before each key, so that several clusters can share one etcd. May be empty.
    pub prefix: String,
    /// How the store behaves.
    pub options: Options,
}

/// Certificates in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Who signed etcd's certificate.
    pub ca: Vec<u8>,
    /// Our certificate and its key, when etcd asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdTls {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls")
            .field("client", &self.client.is_some())
            .finish_non_exhaustive()
    }
}

/// The connection; the tasks behind it end when it is dropped or by [`Etcd::close`].
pub(crate) struct Etcd {
    link: Link,
    core: Arc<Core>,
    leases: Leases,
    asks: mpsc::Sender<reader::Ask>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Etcd {
    pub(crate) async fn connect(config: EtcdConfig) -> Result<(Self, Arc<Core>), OpenError> {
        let link = Link::new(&config).await?;
        let loaded = load_in_time(&link, &config).await?;
        let base = Snapshot {
            revision: loaded.revision,
            tree: loaded.entries.into_iter().collect(),
        };
        let core = Core::new(base, config.options.history, config.options.watch_room);
        let stop = CancellationToken::new();
        let feed = Feed::new(link.clone(), Arc::clone(&core), loaded.cluster);
        let (reader, asks) = Reader::new(link.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(feed.run()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(reader.run()));
        let guard = stop.clone().drop_guard();
        let leases = Leases::new(link.clone());
        Ok((
            Self {
                link,
                core: Arc::clone(&core),
                leases,
                asks,
                stop,
                _guard: guard,
            },
            core,
        ))
    }

    pub(crate) async fn fresh(&self) -> Result<Snapshot, StoreError> {
        self.check_open()?;
        let revision = reader::revision(&self.asks).await?;
        if let Ok(snapshot) = self.core.at_least(revision, GRACE).await {
            return Ok(snapshot);
        }
        // Writes outside our prefix move etcd's revision but send us nothing; a marker comes through our watch.
        let revision = reader::mark(&self.asks).await?;
        self.reached(revision).await
    }

    pub(crate) async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision, StoreError> {
        self.check_open()?;
        let answer = match ttl {
            None => self.try_put(&key, &value, expect, 0).await,
            Some(ttl) => match self
                .try_put(&key, &value, expect, self.leases.get(ttl).await?)
                .await
            {
                // The lease ended while it was in our hands.
                Err(error) if error.to_string().contains("lease not found") => {
                    self.leases.forget(ttl).await;
                    self.try_put(&key, &value, expect, self.leases.get(ttl).await?)
                        .await
                }
                answer => answer,
            },
        };
        let answer = answer.map_err(|error| unavailable(&error))?;
        if !answer.succeeded() {
            return Err(self.conflict(&key, &answer).await);
        }
        let revision = link::revision_of(answer.header());
        self.reached(revision).await?;
        Ok(revision)
    }

    async fn try_put(
        &self,
        key: &[u8],
        value: &[u8],
        expect: Expect,
        lease: i64,
    ) -> Result<TxnResponse, etcd_client::Error> {
        let key = self.link.key(key);
        let put = TxnOp::put(key.clone(), value, Some(PutOptions::new().with_lease(lease)));
        let conditions = match expect {
            Expect::Absent => vec![Compare::version(key.clone(), CompareOp::Equal, 0)],
            Expect::Modified(revision) => modified(&key, revision),
            Expect::Any => Vec::new(),
        };
        self.transact(conditions, put, key).await
    }

    pub(crate) async fn delete(
        &self,
        key: Bytes,
        expect: Expect,
    ) -> Result<(Revision, Arc<Entry>), StoreError> {
        self.check_open()?;
        let full = self.link.key(&key);
        let conditions = match expect {
            Expect::Absent => {
                let current = self.fresh().await?.get(&key).cloned();
                return Err(StoreError::Conflict { current });
            }
            Expect::Modified(revision) => modified(&full, revision),
            Expect::Any => vec![exists(&full)],
        };
        let delete = TxnOp::delete(full.clone(), Some(DeleteOptions::new().with_prev_key()));
        let answer = self
            .transact(conditions, delete, full)
            .await
            .map_err(|error| unavailable(&error))?;
        if !answer.succeeded() {
            return Err(self.conflict(&key, &answer).await);
        }
        let revision = link::revision_of(answer.header());
        let removed = answer
            .op_responses()
            .into_iter()
            .find_map(|response| match response {
                TxnOpResponse::Delete(delete) => delete.prev_kvs().first().map(entry_of),
                _ => None,
            });
        self.reached(revision).await?;
        let removed =
            removed.ok_or_else(|| StoreError::Unavailable("etcd did not tell what it deleted".into()))?;
        Ok((revision, Arc::new(removed)))
    }

    async fn transact(
        &self,
        conditions: Vec<Compare>,
        then: TxnOp,
        key: Vec<u8>,
    ) -> Result<TxnResponse, etcd_client::Error> {
        let transaction = Txn::new()
            .when(conditions)
            .and_then([then])
            .or_else([TxnOp::get(key, None)]);
        self.link.kv().txn(transaction).await
    }

    /// The error of a refused write, once the tree shows what it was refused for: the caller may read and try again.
    async fn conflict(&self, key: &[u8], answer: &TxnResponse) -> StoreError {
        let current = answer
            .op_responses()
            .into_iter()
            .find_map(|response| match response {
                TxnOpResponse::Get(get) => get.kvs().first().map(entry_of),
                _ => None,
            });
        let caught_up = match &current {
            Some(entry) => self.reached(entry.modified).await.err(),
            None if self.core.snapshot().get(key).is_some() => self.fresh().await.err(),
            None => None,
        };
        caught_up.unwrap_or(StoreError::Conflict {
            current: current.map(Arc::new),
        })
    }

    /// Waits for the tree; the port's deadline ends the wait.
    async fn reached(&self, revision: Revision) -> Result<Snapshot, StoreError> {
        self.core.at_least(revision, Duration::from_secs(3600)).await
    }

    pub(crate) async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.check_open()?;
        let revision = revision.min(self.core.revision());
        self.core.compact(revision);
        self.link.compact(revision).await
    }

    pub(crate) async fn import(
        &self,
        entries: Vec<(Bytes, Arc<Entry>, Option<Duration>)>,
    ) -> Result<(), StoreError> {
        let mut operations = Vec::new();
        let mut bytes = 0;
        let mut last = self.core.revision();
        for (key, entry, ttl) in entries {
            let size = key.len() + entry.value.len();
            if operations.len() == IMPORT_OPS || (bytes + size > IMPORT_BYTES && !operations.is_empty()) {
                last = self.put_all(std::mem::take(&mut operations)).await?;
                bytes = 0;
            }
            bytes += size;
            let lease = match ttl {
                Some(ttl) => self.leases.get(ttl).await?,
                None => 0,
            };
            let options = PutOptions::new().with_lease(lease);
            operations.push(TxnOp::put(self.link.key(&key), &*entry.value, Some(options)));
        }
        if !operations.is_empty() {
            last = self.put_all(operations).await?;
        }
        self.reached(last).await.map(drop)
    }

    async fn put_all(&self, operations: Vec<TxnOp>) -> Result<Revision, StoreError> {
        let done = self.link.kv().txn(Txn::new().and_then(operations)).await;
        Ok(link::revision_of(
            done.map_err(|error| unavailable(&error))?.header(),
        ))
    }

    /// The time that is left to the keys with this lease.
    pub(crate) async fn time_left(&self, lease: u64) -> Result<Duration, StoreError> {
        self.leases.time_left(lease).await
    }

    pub(crate) async fn bytes_on_disk(&self) -> Option<u64> {
        let status = self.link.maintenance().status().await.ok()?;
        u64::try_from(status.db_size()).ok()
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.link.trouble()
    }

    pub(crate) fn close(&self) {
        self.stop.cancel();
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.stop.is_cancelled() {
            Err(StoreError::Closed)
        } else {
            Ok(())
        }
    }
}

/// Reads everything, trying again until the deadline: etcd may be starting at the same time as we.
async fn load_in_time(link: &Link, config: &EtcdConfig) -> Result<Loaded, OpenError> {
    let give_up = Instant::now() + config.options.deadline;
    let mut reason = "no answer".to_owned();
    loop {
        match timeout_at(give_up, link.load()).await {
            Ok(Ok(loaded)) => return Ok(loaded),
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => {
                return Err(OpenError::Etcd {
                    endpoints: config.endpoints.join(", "),
                    reason,
                });
            }
        }
        sleep(CONNECT_PAUSE).await;
    }
}

fn exists(key: &[u8]) -> Compare {
    Compare::version(key, CompareOp::Greater, 0)
}

fn modified(key: &[u8], revision: Revision) -> Vec<Compare> {
    // No key has this revision, so a number that etcd cannot have made matches nothing. A key that does not exist has
    // revision 0 for etcd, and matches nothing here.
    let revision = i64::try_from(revision.get()).unwrap_or(i64::MAX);
    vec![
        exists(key),
        Compare::mod_revision(key, CompareOp::Equal, revision),
    ]
}
