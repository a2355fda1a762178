//! Follows etcd's changes into the tree, over restarts of etcd and gaps in its history.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Event, EventType, ResponseHeader, WatchOptions, WatchResponse};
use tokio::time::{Instant, sleep_until};

use super::link::{Link, Loaded, entry_of, revision_of};
use crate::core::{Core, Draft};
use crate::snapshot::Snapshot;
use crate::{Entry, Revision};

/// Wait before the second attempt to connect; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// etcd keeps history until told not to. What is older than one to two of these is compacted away.
const COMPACTION: Duration = Duration::from_secs(300);

/// Why following ended.
enum End {
    /// The connection broke, or the watch was refused for a time.
    Lost(String),
    /// History after our revision is gone, or etcd is not the one we knew: read everything again.
    Reload,
}

pub(super) struct Feed {
    link: Link,
    core: Arc<Core>,
    cluster: u64,
    pause: Duration,
    compact_at: Instant,
    /// The newest revision at the last compaction: what the next one may forget.
    old: Revision,
}

impl Feed {
    pub(super) fn new(link: Link, core: Arc<Core>, cluster: u64) -> Self {
        let old = core.revision();
        Self {
            link,
            core,
            cluster,
            pause: FIRST_PAUSE,
            compact_at: Instant::now() + COMPACTION,
            old,
        }
    }

    /// Never ends by itself.
    pub(super) async fn run(mut self) {
        loop {
            match self.follow().await {
                End::Lost(reason) => self.wait(reason).await,
                End::Reload => match self.link.load().await {
                    Ok(loaded) => self.take_over(loaded),
                    Err(error) => self.wait(error.to_string()).await,
                },
            }
        }
    }

    async fn wait(&mut self, reason: String) {
        tracing::warn!(%reason, "the connection to etcd is lost; reads go on, writes will fail");
        self.link.set_trouble(Some(reason));
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    async fn follow(&mut self) -> End {
        let from = i64::try_from(self.core.revision().next().get()).unwrap_or(i64::MAX);
        let options = WatchOptions::new()
            .with_range(self.link.range_end())
            .with_start_revision(from);
        let start = if self.link.prefix().is_empty() {
            vec![0]
        } else {
            self.link.prefix().to_vec()
        };
        let mut stream = match self.link.watch().watch(start, Some(options)).await {
            Ok(stream) => stream,
            Err(error) => return End::Lost(error.to_string()),
        };
        loop {
            let next_trim = self.core.next_trim().unwrap_or(self.compact_at);
            tokio::select! {
                answer = stream.message() => if let Some(end) = self.handle(answer) { return end },
                () = sleep_until(next_trim) => drop(self.core.trim()),
                () = sleep_until(self.compact_at) => self.compact().await,
            }
        }
    }

    fn handle(&mut self, answer: Result<Option<WatchResponse>, etcd_client::Error>) -> Option<End> {
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Some(End::Lost("etcd ended the watch".into())),
            Err(error) => return Some(End::Lost(error.to_string())),
        };
        if answer.compact_revision() > 0 || self.is_another_store(&answer) {
            return Some(End::Reload);
        }
        if answer.canceled() {
            return Some(End::Lost(format!(
                "etcd cancelled the watch: {}",
                answer.cancel_reason()
            )));
        }
        self.pause = FIRST_PAUSE;
        self.link.set_trouble(None);
        self.apply(answer.events());
        None
    }

    /// Whether etcd has lost what we know, or is another cluster: then a watch would wait for revisions in vain.
    fn is_another_store(&self, answer: &WatchResponse) -> bool {
        let cluster = answer.header().map_or(0, ResponseHeader::cluster_id);
        cluster != self.cluster || (answer.created() && revision_of(answer.header()) < self.core.revision())
    }

    fn apply(&self, events: &[Event]) {
        let mut draft = Draft::from(self.core.snapshot());
        let known = draft.revision;
        for row in events
            .iter()
            .filter_map(|event| Some((event.event_type(), event.kv()?)))
        {
            let (kind, row) = row;
            let entry = entry_of(row);
            let revision = entry.modified;
            if revision <= known {
                continue;
            }
            match (self.link.own_key(row.key()), kind) {
                (None, _) => draft.revision = draft.revision.max(revision),
                (Some(key), EventType::Put) => draft.apply(revision, key, Some(Arc::new(entry))),
                // Of a key that we never saw there is nothing to tell.
                (Some(key), EventType::Delete) if !draft.tree.contains_key(&key) => {
                    draft.revision = draft.revision.max(revision);
                }
                (Some(key), EventType::Delete) => draft.apply(revision, key, None),
            }
        }
        if draft.revision > known {
            drop(self.core.publish(draft));
        }
    }

    /// Makes what was read anew the state: as events where it goes on from ours, else from the start.
    fn take_over(&mut self, loaded: Loaded) {
        let known = self.core.snapshot();
        if loaded.cluster != self.cluster || loaded.revision < known.revision {
            tracing::warn!(revision = %loaded.revision, "etcd holds another store than before; all watches end");
            self.cluster = loaded.cluster;
            self.old = loaded.revision;
            let tree = loaded.entries.into_iter().collect();
            self.core.reset(Snapshot {
                revision: loaded.revision,
                tree,
            });
            return;
        }
        tracing::info!(from = %known.revision, to = %loaded.revision, "caught up by reading everything");
        let revision = loaded.revision;
        let mut draft = Draft::from(known.clone());
        for (at, key, entry) in differences(&known, loaded) {
            draft.apply(at, key, entry);
        }
        draft.revision = revision;
        self.core.publish_after_gap(draft);
    }

    async fn compact(&mut self) {
        let result = self.link.compact(self.old).await;
        if let Err(error) = result {
            tracing::warn!(%error, "compacting etcd failed; the next attempt follows");
        }
        self.old = self.core.revision();
        self.compact_at = Instant::now() + COMPACTION;
    }
}

/// What changed, in order of revision. When a key was deleted is not known any more; it is told last.
fn differences(known: &Snapshot, loaded: Loaded) -> Vec<(Revision, Bytes, Option<Arc<Entry>>)> {
    let now: HashMap<_, _> = loaded.entries.into_iter().collect();
    let removed = known.tree.keys().filter(|key| !now.contains_key(*key)).cloned();
    let removed: Vec<_> = removed.map(|key| (loaded.revision, key, None)).collect();
    let is_new = |key: &Bytes, entry: &Entry| known.get(key).is_none_or(|old| old.modified != entry.modified);
    let changed = now.into_iter().filter(|(key, entry)| is_new(key, entry));
    let mut all: Vec<_> = changed
        .map(|(key, entry)| (entry.modified, key, Some(entry)))
        .collect();
    all.extend(removed);
    all.sort_by_key(|(revision, _, entry)| (*revision, entry.is_none()));
    all
}
