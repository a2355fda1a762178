//! Fan-out of changes to watchers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::core::Core;
use crate::{Revision, WatchError, WatchEvent};

/// What a watch hands out.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// A change.
    Event(Arc<WatchEvent>),
    /// Every change up to and with this revision has been handed out.
    Progress(Revision),
}

const OPEN: u8 = 0;
const LAGGED: u8 = 1;
const COMPACTED: u8 = 2;

/// Changes of the keys below a prefix, in order of revision, each once, without a gap.
///
/// Unread changes wait in a bounded queue; a watcher that lets it fill up is cut off ([`WatchError::Lagged`]).
/// Dropping it ends the watch.
pub struct Watch {
    backlog: VecDeque<Arc<WatchEvent>>,
    items: mpsc::Receiver<WatchItem>,
    ending: Arc<AtomicU8>,
    core: Weak<Core>,
    id: WatcherId,
}

#[derive(Clone)]
pub(crate) struct WatcherId {
    prefix: Box<[u8]>,
    number: u64,
}

impl Watch {
    /// The next change or progress. An error comes once and last; `None` after it, or when the store was closed.
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<WatchItem, WatchError>> {
        if let Some(event) = self.backlog.pop_front() {
            return Some(Ok(WatchItem::Event(event)));
        }
        if let Some(item) = self.items.recv().await {
            return Some(Ok(item));
        }
        match self.ending.swap(OPEN, Ordering::AcqRel) {
            LAGGED => Some(Err(WatchError::Lagged)),
            COMPACTED => Some(Err(WatchError::Compacted)),
            _ => None,
        }
    }

    /// Asks for a [`WatchItem::Progress`] after the changes that are known now. Not given when the queue is full.
    pub fn request_progress(&self) {
        if let Some(core) = self.core.upgrade() {
            core.send_progress(&self.id);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.unwatch(&self.id);
        }
    }
}

struct Watcher {
    number: u64,
    after: Revision,
    items: mpsc::Sender<WatchItem>,
    ending: Arc<AtomicU8>,
}

impl Watcher {
    /// Hands an event over; `false` when the watcher is to be removed.
    fn offer(&self, event: &Arc<WatchEvent>) -> bool {
        if event.revision <= self.after {
            return true;
        }
        match self.items.try_send(WatchItem::Event(Arc::clone(event))) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.ending.store(LAGGED, Ordering::Release);
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

/// All watchers, found by prefix: an event costs one look-up per distinct length of prefix, not per watcher.
#[derive(Default)]
pub(crate) struct Watchers {
    by_prefix: HashMap<Box<[u8]>, Vec<Watcher>>,
    lengths: BTreeMap<usize, usize>,
    last_number: u64,
    count: usize,
}

impl Watchers {
    pub(crate) fn add(
        &mut self,
        core: Weak<Core>,
        prefix: &[u8],
        after: Revision,
        backlog: VecDeque<Arc<WatchEvent>>,
        room: usize,
    ) -> Watch {
        let (sender, items) = mpsc::channel(room.max(1));
        let ending = Arc::new(AtomicU8::new(OPEN));
        self.last_number += 1;
        self.count += 1;
        let id = WatcherId {
            prefix: prefix.into(),
            number: self.last_number,
        };
        let watcher = Watcher {
            number: id.number,
            after,
            items: sender,
            ending: Arc::clone(&ending),
        };
        let same = self.by_prefix.entry(prefix.into()).or_default();
        if same.is_empty() {
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
        same.push(watcher);
        Watch {
            backlog,
            items,
            ending,
            core,
            id,
        }
    }

    pub(crate) fn remove(&mut self, id: &WatcherId) {
        self.retain(&id.prefix, |watcher| watcher.number != id.number);
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn send(&mut self, event: &Arc<WatchEvent>) {
        let mut lost = Vec::new();
        for &length in self.lengths.range(..=event.key.len()).map(|(length, _)| length) {
            let prefix = &event.key[..length];
            let Some(watchers) = self.by_prefix.get(prefix) else {
                continue;
            };
            lost.extend(
                watchers
                    .iter()
                    .filter(|w| !w.offer(event))
                    .map(|w| (length, w.number)),
            );
        }
        for (length, number) in lost {
            self.retain(&event.key[..length], |watcher| watcher.number != number);
        }
    }

    /// A full queue gets no progress: what is in it has to be read first, and the next request tells more.
    pub(crate) fn send_progress(&self, id: &WatcherId, revision: Revision) {
        let watchers = self.by_prefix.get(&id.prefix).into_iter().flatten();
        for watcher in watchers.filter(|watcher| watcher.number == id.number) {
            let _ = watcher.items.try_send(WatchItem::Progress(revision));
        }
    }

    /// Ends every watch because changes were missed.
    pub(crate) fn end_all(&mut self) {
        for watcher in self.by_prefix.values().flatten() {
            watcher.ending.store(COMPACTED, Ordering::Release);
        }
        *self = Self {
            last_number: self.last_number,
            ..Self::default()
        };
    }

    /// Ends every watch because the store is closed.
    pub(crate) fn close(&mut self) {
        *self = Self {
            last_number: self.last_number,
            ..Self::default()
        };
    }

    fn retain(&mut self, prefix: &[u8], keep: impl FnMut(&Watcher) -> bool) {
        let Some(watchers) = self.by_prefix.get_mut(prefix) else {
            return;
        };
        let before = watchers.len();
        watchers.retain(keep);
        self.count -= before - watchers.len();
        if !watchers.is_empty() {
            return;
        }
        self.by_prefix.remove(prefix);
        if let Some(users) = self.lengths.get_mut(&prefix.len()) {
            *users -= 1;
            if *users == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }
}
