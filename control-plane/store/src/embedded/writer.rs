//! The one task that writes: takes all requests that wait, decides them in order, and commits them together.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Trouble;
use super::log::{Batch, Loaded, Log, Record};
use crate::core::{Core, Draft};
use crate::snapshot::{Snapshot, Tree};
use crate::{Entry, Expect, Options, Revision, StoreError, WatchEvent};

/// Requests decided in one transaction.
const BATCH: usize = 512;
/// Records removed per transaction at most, so that no write waits long for the clean-up.
const GARBAGE_PER_BATCH: usize = 1024;
/// Unneeded records that are left to lie until there is a transaction's worth.
const GARBAGE_TO_KEEP: usize = 256;
/// Turns given to other tasks before a round; some microseconds, against hundreds of a sync.
const GATHER_TURNS: usize = 16;
/// Time between attempts to open the file again after it failed.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a key; etcd has no limit of its own but that of a request.
const LONGEST_KEY: usize = 64 << 10;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Put {
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
        reply: Reply<Revision>,
    },
    Delete {
        key: Bytes,
        expect: Expect,
        reply: Reply<(Revision, Arc<Entry>)>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    Import {
        entries: Vec<(Bytes, Arc<Entry>)>,
        revision: Revision,
        reply: Reply<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// Sends a result once it is known whether the batch is on disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A batch that is being decided.
struct Round {
    draft: Draft,
    answers: Vec<Answer>,
}

pub(super) struct Writer {
    /// `None` after a failure, until the file can be opened again.
    log: Option<Arc<Log>>,
    retry_at: Instant,
    path: Arc<PathBuf>,
    options: Options,
    core: Arc<Core>,
    trouble: Trouble,
    garbage: Vec<u64>,
    expiries: BTreeSet<(u64, Revision, Bytes)>,
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Writer {
    pub(super) fn new(
        log: Log,
        loaded: Loaded,
        path: Arc<PathBuf>,
        options: Options,
        trouble: Trouble,
    ) -> Self {
        let (old, recent): (Vec<_>, Vec<_>) = loaded
            .records
            .into_iter()
            .partition(|record| record.revision <= loaded.compacted);
        let tree: Tree = old
            .into_iter()
            .filter_map(|record| Some((record.key, record.entry?)))
            .collect();
        let core = Core::new(
            Snapshot {
                revision: loaded.compacted,
                tree,
            },
            options.history,
            options.watch_room,
        );
        let mut writer = Self {
            log: Some(Arc::new(log)),
            retry_at: Instant::now(),
            path,
            options,
            core,
            trouble,
            garbage: loaded.garbage,
            expiries: BTreeSet::new(),
        };
        writer.adopt(recent, loaded.revision);
        writer.expiries = expiries_of(&writer.core.snapshot().tree);
        writer
    }

    pub(super) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core)
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut requests = Vec::with_capacity(BATCH);
        loop {
            let wake = self.next_wake();
            let count = tokio::select! {
                count = queue.recv_many(&mut requests, BATCH) => count,
                () = tokio::time::sleep_until(wake) => { self.on_timer().await; continue }
            };
            if count == 0 {
                return self.finish().await;
            }
            let closing = self.serve(&mut requests).await;
            if let Some(reply) = closing {
                queue.close();
                self.finish().await;
                let _ = reply.send(());
                return;
            }
            gather(&queue, count).await;
        }
    }

    /// Decides and commits what has come in. Gives the reply of a request to close.
    async fn serve(&mut self, requests: &mut Vec<Request>) -> Option<oneshot::Sender<()>> {
        let mut round = Round::after(&self.core);
        let mut closing = None;
        for request in requests.drain(..) {
            match request {
                Request::Close { reply } => closing = Some(reply),
                Request::Compact { revision, reply } => {
                    // Only what was there before this round: the round's own changes are not published yet.
                    let gone = self.core.compact(revision);
                    self.collect_garbage(&gone);
                    round.answers.push(Box::new(move |done| drop(reply.send(done))));
                }
                Request::Import {
                    entries,
                    revision,
                    reply,
                } => {
                    let before = std::mem::replace(&mut round, Round::after(&self.core));
                    self.finish_round(before).await;
                    let done = self.import(entries, revision).await;
                    let _ = reply.send(done);
                    round = Round::after(&self.core);
                }
                Request::Put {
                    key,
                    value,
                    expect,
                    ttl,
                    reply,
                } => round.put(key, value, expect, ttl, reply),
                Request::Delete { key, expect, reply } => round.delete(key, expect, reply),
            }
        }
        self.finish_round(round).await;
        closing
    }

    async fn finish_round(&mut self, round: Round) {
        let Round { draft, answers } = round;
        let done = self.commit(draft).await;
        for answer in answers {
            answer(done.clone());
        }
    }

    async fn commit(&mut self, draft: Draft) -> Result<(), StoreError> {
        if draft.events.is_empty() && self.garbage.len() < GARBAGE_TO_KEEP {
            return Ok(());
        }
        self.ensure_open(draft.revision).await?;
        let mut batch = Batch {
            records: draft.events.iter().map(|event| record_of(event)).collect(),
            garbage: Vec::new(),
            compacted: self.core.compacted(),
            revision: draft.revision,
            note_revisions: false,
        };
        if self.garbage.len() >= GARBAGE_TO_KEEP {
            let rest = self.garbage.len().saturating_sub(GARBAGE_PER_BATCH);
            batch.garbage = self.garbage.split_off(rest);
        }
        self.write(batch).await?;
        self.note_expiries(&draft.events);
        let gone = self.core.publish(draft);
        self.collect_garbage(&gone);
        Ok(())
    }

    async fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        let log = self
            .log
            .clone()
            .ok_or_else(|| StoreError::Unavailable("the store file is closed".into()))?;
        let written =
            tokio::task::spawn_blocking(move || log.commit(&batch).map_err(|error| error.to_string())).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(self.fail(reason)),
            Err(_) => Err(self.fail("the database failed".into())),
        }
    }

    fn fail(&mut self, reason: String) -> StoreError {
        tracing::error!(path = %self.path.display(), %reason, "the store cannot write; reads go on");
        self.set_trouble(Some(reason.clone()));
        self.log = None;
        self.retry_at = Instant::now() + RETRY;
        StoreError::Unavailable(reason)
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self
            .trouble
            .write()
            .expect("nothing panics while it holds this lock") = trouble;
    }

    /// Opens the file again after a failure. A batch that failed may be on disk after all: then its changes are made
    /// known, and the batch in hand, which was decided without them, is refused.
    async fn ensure_open(&mut self, decided_up_to: Revision) -> Result<(), StoreError> {
        if self.log.is_some() {
            return Ok(());
        }
        if Instant::now() < self.retry_at {
            let reason = self
                .trouble
                .read()
                .expect("nothing panics while it holds this lock")
                .clone();
            return Err(StoreError::Unavailable(reason.unwrap_or_default()));
        }
        let (path, durability, known) = (
            Arc::clone(&self.path),
            self.options.durability,
            self.core.revision(),
        );
        let opened = tokio::task::spawn_blocking(move || {
            let log = Log::open(&path, durability)?;
            let missed = log.records_after(known)?;
            Ok::<_, crate::OpenError>((log, missed))
        });
        match opened.await {
            Ok(Ok((log, missed))) => {
                self.log = Some(Arc::new(log));
                self.set_trouble(None);
                tracing::info!(path = %self.path.display(), "the store writes again");
                if missed.is_empty() {
                    return Ok(());
                }
                self.adopt(missed, decided_up_to.min(known));
                self.expiries = expiries_of(&self.core.snapshot().tree);
                Err(StoreError::Unavailable(
                    "the store has just been opened again; try once more".into(),
                ))
            }
            Ok(Err(error)) => Err(self.fail(error.to_string())),
            Err(_) => Err(self.fail("opening the store file failed".into())),
        }
    }

    /// Publishes records that are on disk already.
    fn adopt(&mut self, records: Vec<Record>, at_least: Revision) {
        let mut draft = Draft::from(self.core.snapshot());
        for record in records {
            draft.apply(record.revision, record.key, record.entry);
        }
        draft.revision = draft.revision.max(at_least);
        let gone = self.core.publish(draft);
        self.collect_garbage(&gone);
    }

    async fn import(
        &mut self,
        entries: Vec<(Bytes, Arc<Entry>)>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.ensure_open(self.core.revision()).await?;
        if !self.core.snapshot().is_empty() {
            return Err(StoreError::Unavailable("an import needs an empty store".into()));
        }
        let base = self.core.revision();
        let records = renumber(entries, revision.max(base), base);
        let revision = records
            .last()
            .map_or(revision, |record| record.revision)
            .max(revision)
            .max(base);
        let tree: Tree = records
            .iter()
            .filter_map(|record| Some((record.key.clone(), record.entry.clone()?)))
            .collect();
        let garbage = std::mem::take(&mut self.garbage);
        self.write(Batch {
            records,
            garbage,
            compacted: revision,
            revision,
            note_revisions: true,
        })
        .await?;
        self.expiries = expiries_of(&tree);
        self.core.reset(Snapshot { revision, tree });
        Ok(())
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let expiry = self.expiries.first().map(|(at, ..)| {
            let at = now + Duration::from_millis(at.saturating_sub(unix_ms()));
            if self.log.is_some() {
                at
            } else {
                at.max(self.retry_at)
            }
        });
        let wake = [expiry, self.core.next_trim()].into_iter().flatten().min();
        // Nothing to wait for: any far time does, this one is not reached while the process lives.
        wake.unwrap_or(now + Duration::from_secs(86_400 * 365))
    }

    async fn on_timer(&mut self) {
        let gone = self.core.trim();
        self.collect_garbage(&gone);
        let mut round = Round::after(&self.core);
        let now = unix_ms();
        for (_, modified, key) in self.expiries.iter().take_while(|(at, ..)| *at <= now).take(BATCH) {
            round.remove(key, Expect::Modified(*modified)).ok();
        }
        // A failure is in the status already, and the keys stay listed for the next attempt.
        self.commit(round.draft).await.ok();
    }

    fn note_expiries(&mut self, events: &[Arc<WatchEvent>]) {
        for event in events {
            if let Some(prev) = event.prev.as_ref().filter(|prev| prev.term != 0) {
                self.expiries
                    .remove(&(prev.term, prev.modified, event.key.clone()));
            }
            if let Some(entry) = event.entry.as_ref().filter(|entry| entry.term != 0) {
                self.expiries
                    .insert((entry.term, entry.modified, event.key.clone()));
            }
        }
    }

    /// Notes the records that nobody can ask for once these changes are forgotten.
    fn collect_garbage(&mut self, forgotten: &[Arc<WatchEvent>]) {
        for event in forgotten {
            self.garbage
                .extend(event.prev.as_ref().map(|prev| prev.modified.get()));
            if event.entry.is_none() {
                self.garbage.push(event.revision.get());
            }
        }
    }

    /// Leaves the file tidy and closes it.
    async fn finish(&mut self) {
        let batch = Batch {
            garbage: std::mem::take(&mut self.garbage),
            compacted: self.core.compacted(),
            revision: self.core.revision(),
            note_revisions: true,
            ..Batch::default()
        };
        let Some(log) = self.log.take() else { return };
        let closed = tokio::task::spawn_blocking(move || {
            log.commit(&batch)?;
            log.sync()
        });
        if let Ok(Err(error)) = closed.await {
            tracing::error!(path = %self.path.display(), %error, "closing the store file failed");
        }
    }
}

/// The callers that were just answered often write again at once: lets them in before the next sync begins, so that
/// they do not fall into two groups that wait for each other's syncs.
async fn gather(queue: &mpsc::Receiver<Request>, count: usize) {
    if count < 2 {
        return;
    }
    for _ in 0..GATHER_TURNS {
        if queue.len() >= count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

impl Round {
    fn after(core: &Core) -> Self {
        Self {
            draft: Draft::from(core.snapshot()),
            answers: Vec::new(),
        }
    }

    fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
        reply: Reply<Revision>,
    ) {
        // The caller has given up, and was told that it does not know; so nothing is the better outcome.
        if reply.is_closed() {
            return;
        }
        let result = self.write(key, value, expect, ttl);
        self.answers
            .push(Box::new(move |done| drop(reply.send(done.and(result)))));
    }

    fn delete(&mut self, key: Bytes, expect: Expect, reply: Reply<(Revision, Arc<Entry>)>) {
        if reply.is_closed() {
            return;
        }
        let result = self.remove(&key, expect);
        self.answers
            .push(Box::new(move |done| drop(reply.send(done.and(result)))));
    }

    fn write(
        &mut self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision, StoreError> {
        if key.len() > LONGEST_KEY {
            return Err(StoreError::Unavailable(format!(
                "the key is longer than {LONGEST_KEY} bytes"
            )));
        }
        let current = self.draft.tree.get(&key);
        if !expect.holds(current) {
            return Err(StoreError::Conflict {
                current: current.cloned(),
            });
        }
        let revision = self.draft.revision.next();
        let entry = Entry {
            value,
            created: current.map_or(revision, |entry| entry.created),
            modified: revision,
            version: current.map_or(1, |entry| entry.version + 1),
            term: ttl.map_or(0, |ttl| {
                unix_ms().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            }),
        };
        self.draft.apply(revision, key, Some(Arc::new(entry)));
        Ok(revision)
    }

    fn remove(&mut self, key: &Bytes, expect: Expect) -> Result<(Revision, Arc<Entry>), StoreError> {
        let current = self.draft.tree.get(key).cloned();
        match current {
            Some(entry) if expect.holds(Some(&entry)) => {
                let revision = self.draft.revision.next();
                self.draft.apply(revision, key.clone(), None);
                Ok((revision, entry))
            }
            current => Err(StoreError::Conflict { current }),
        }
    }
}

fn record_of(event: &WatchEvent) -> Record {
    Record {
        revision: event.revision,
        key: event.key.clone(),
        entry: event.entry.clone(),
    }
}

fn expiries_of(tree: &Tree) -> BTreeSet<(u64, Revision, Bytes)> {
    let mortal = tree.iter().filter(|(_, entry)| entry.term != 0);
    mortal
        .map(|(key, entry)| (entry.term, entry.modified, key.clone()))
        .collect()
}

/// Records for imported entries. Each keeps its revision, but where two have the same one (a foreign transaction on
/// etcd), or one that this store has used, gets the next that is free.
fn renumber(mut entries: Vec<(Bytes, Arc<Entry>)>, mut last: Revision, base: Revision) -> Vec<Record> {
    entries.sort_by_key(|(_, entry)| entry.modified);
    let mut used = HashSet::new();
    let mut records: Vec<_> = entries
        .into_iter()
        .map(|(key, entry)| {
            let mut entry = Arc::unwrap_or_clone(entry);
            if entry.modified <= base && base > Revision::new(1) || !used.insert(entry.modified) {
                last = last.next();
                entry.modified = last;
                entry.created = entry.created.min(last);
            }
            Record {
                revision: entry.modified,
                key,
                entry: Some(Arc::new(entry)),
            }
        })
        .collect();
    records.sort_by_key(|record| record.revision);
    records
}
