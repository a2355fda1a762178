//! What both back ends feed and all readers use: the published tree, the history and the watchers.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::history::{History, HistoryLimits};
use crate::snapshot::{Snapshot, Tree};
use crate::watch::{Watch, WatcherId, Watchers};
use crate::{Entry, Revision, StoreError, WatchEvent};

/// Old states that were read lately, so that the pages of one list undo the changes only once.
const KEPT_OLD_STATES: usize = 8;

pub(crate) struct Core {
    published: watch::Sender<Snapshot>,
    state: Mutex<State>,
    watch_room: usize,
}

struct State {
    history: History,
    watchers: Watchers,
    old: Vec<Snapshot>,
}

/// Changes on the way to become the next published state.
pub(crate) struct Draft {
    pub(crate) tree: Tree,
    pub(crate) revision: Revision,
    pub(crate) events: Vec<Arc<WatchEvent>>,
}

impl Draft {
    /// Takes over a change as the back end reports it. `entry` is `None` for a delete.
    pub(crate) fn apply(&mut self, revision: Revision, key: Bytes, entry: Option<Arc<Entry>>) {
        let prev = match &entry {
            Some(entry) => self.tree.insert(key.clone(), Arc::clone(entry)),
            None => self.tree.remove(&key),
        };
        self.revision = self.revision.max(revision);
        self.events.push(Arc::new(WatchEvent {
            revision,
            key,
            entry,
            prev,
        }));
    }
}

impl From<Snapshot> for Draft {
    fn from(base: Snapshot) -> Self {
        Self {
            tree: base.tree,
            revision: base.revision,
            events: Vec::new(),
        }
    }
}

impl Core {
    /// A core that starts at `base`, with no history before it.
    pub(crate) fn new(base: Snapshot, history: HistoryLimits, watch_room: usize) -> Arc<Self> {
        let state = State {
            history: History::new(history, base.revision),
            watchers: Watchers::default(),
            old: Vec::new(),
        };
        Arc::new(Self {
            published: watch::Sender::new(base),
            state: Mutex::new(state),
            watch_room,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.published.borrow().clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.published.borrow().revision
    }

    /// Makes a draft the newest state, tells the watchers, and hands out the history that is forgotten by it.
    pub(crate) fn publish(&self, draft: Draft) -> Vec<Arc<WatchEvent>> {
        let now = Instant::now();
        let mut state = self.lock();
        self.set_newest(Snapshot {
            revision: draft.revision,
            tree: draft.tree,
        });
        for event in draft.events {
            state.watchers.send(&event);
            state.history.push(event, now);
        }
        let gone = state.history.trim(now);
        state.drop_old_states();
        gone
    }

    /// Like [`Core::publish`], for a draft that only knows the outcome of the changes and not each of them: live
    /// watchers see the differences, but no state before the draft can be told any more.
    pub(crate) fn publish_after_gap(&self, draft: Draft) {
        let mut state = self.lock();
        state.history.compact(draft.revision);
        state.drop_old_states();
        self.set_newest(Snapshot {
            revision: draft.revision,
            tree: draft.tree,
        });
        for event in &draft.events {
            state.watchers.send(event);
        }
    }

    /// Comes before the watchers hear of a revision, so that a snapshot has it by then.
    fn set_newest(&self, snapshot: Snapshot) {
        self.published.send_replace(snapshot);
    }

    /// Starts over with another state; every watch ends.
    pub(crate) fn reset(&self, base: Snapshot) {
        let mut state = self.lock();
        let revision = base.revision;
        self.published.send_replace(base);
        state.history.compact(revision);
        state.watchers.end_all();
        state.drop_old_states();
    }

    pub(crate) fn trim(&self) -> Vec<Arc<WatchEvent>> {
        let mut state = self.lock();
        let gone = state.history.trim(Instant::now());
        state.drop_old_states();
        gone
    }

    pub(crate) fn compact(&self, revision: Revision) -> Vec<Arc<WatchEvent>> {
        let revision = revision.min(self.revision());
        let mut state = self.lock();
        let gone = state.history.compact(revision);
        state.drop_old_states();
        gone
    }

    pub(crate) fn next_trim(&self) -> Option<Instant> {
        self.lock().history.next_trim()
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.lock().history.compacted()
    }

    /// Changes kept, and watchers.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.history.len(), state.watchers.len())
    }

    pub(crate) async fn at_least(
        &self,
        revision: Revision,
        deadline: Duration,
    ) -> Result<Snapshot, StoreError> {
        let mut published = self.published.subscribe();
        let reached = timeout(
            deadline,
            published.wait_for(|snapshot| snapshot.revision >= revision),
        )
        .await;
        match reached {
            Ok(Ok(snapshot)) => Ok(snapshot.clone()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Future {
                current: self.revision(),
            }),
        }
    }

    pub(crate) fn at(&self, revision: Revision) -> Result<Snapshot, StoreError> {
        let (mut base, newest, undo) = self.way_back(revision)?;
        base.rewind(revision, undo.iter().rev());
        if revision < newest {
            self.lock().keep_old_state(&base);
        }
        Ok(base)
    }

    /// A known state at or after `revision`, the newest revision, and the changes between `revision` and that state.
    /// Undoing them is left to the reader, without the lock.
    fn way_back(&self, revision: Revision) -> Result<(Snapshot, Revision, Vec<Arc<WatchEvent>>), StoreError> {
        let state = self.lock();
        let newest = self.snapshot();
        if revision > newest.revision {
            return Err(StoreError::Future {
                current: newest.revision,
            });
        }
        let current = newest.revision;
        let nearest = state
            .old
            .iter()
            .filter(|old| old.revision >= revision)
            .min_by_key(|old| old.revision);
        let base = nearest.cloned().unwrap_or(newest);
        let oldest = state.history.compacted();
        let since = state
            .history
            .after(revision)
            .ok_or(StoreError::Compacted { oldest })?;
        let undo = since
            .take_while(|event| event.revision <= base.revision)
            .cloned()
            .collect();
        Ok((base, current, undo))
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &[u8], after: Revision) -> Result<Watch, StoreError> {
        let mut state = self.lock();
        let oldest = state.history.compacted();
        let past = state
            .history
            .after(after)
            .ok_or(StoreError::Compacted { oldest })?;
        let backlog = past
            .filter(|event| event.key.starts_with(prefix))
            .cloned()
            .collect();
        let weak: Weak<Self> = Arc::downgrade(self);
        Ok(state.watchers.add(weak, prefix, after, backlog, self.watch_room))
    }

    pub(crate) fn unwatch(&self, id: &WatcherId) {
        self.lock().watchers.remove(id);
    }

    pub(crate) fn send_progress(&self, id: &WatcherId) {
        let state = self.lock();
        state.watchers.send_progress(id, self.revision());
    }

    pub(crate) fn close(&self) {
        self.lock().watchers.close();
    }
}

impl State {
    fn drop_old_states(&mut self) {
        let oldest = self.history.compacted();
        self.old.retain(|old| old.revision >= oldest);
    }

    fn keep_old_state(&mut self, snapshot: &Snapshot) {
        let known = self.old.iter().any(|old| old.revision == snapshot.revision);
        if known || snapshot.revision < self.history.compacted() {
            return;
        }
        if self.old.len() == KEPT_OLD_STATES {
            self.old.remove(0);
        }
        self.old.push(snapshot.clone());
    }
}
