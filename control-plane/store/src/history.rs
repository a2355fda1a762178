//! The latest changes, for watches that start in the past and for exact reads of old revisions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Revision, WatchEvent};

/// How much of the past is kept. What is beyond any of these bounds is forgotten, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Changes.
    pub events: usize,
    /// Bytes of values that only the history still holds.
    pub bytes: usize,
    /// Age of a change.
    pub age: Duration,
}

impl Default for HistoryLimits {
    /// 16 384 changes, 32 MiB, ten minutes (a client's paged list lives about five).
    fn default() -> Self {
        Self {
            events: 16_384,
            bytes: 32 << 20,
            age: Duration::from_secs(600),
        }
    }
}

struct Past {
    at: Instant,
    event: Arc<WatchEvent>,
}

/// Every change after [`History::compacted`], in order.
pub(crate) struct History {
    limits: HistoryLimits,
    events: VecDeque<Past>,
    bytes: usize,
    compacted: Revision,
}

fn held_bytes(event: &WatchEvent) -> usize {
    event.prev.as_ref().map_or(0, |prev| prev.value.len())
}

impl History {
    pub(crate) fn new(limits: HistoryLimits, compacted: Revision) -> Self {
        Self {
            limits,
            events: VecDeque::new(),
            bytes: 0,
            compacted,
        }
    }

    /// The oldest revision whose state can be told.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn push(&mut self, event: Arc<WatchEvent>, at: Instant) {
        self.bytes += held_bytes(&event);
        self.events.push_back(Past { at, event });
    }

    /// Forgets what is beyond the limits and hands it out.
    pub(crate) fn trim(&mut self, now: Instant) -> Vec<Arc<WatchEvent>> {
        let mut gone = Vec::new();
        while let Some(first) = self.events.front() {
            let old = now.saturating_duration_since(first.at) >= self.limits.age;
            if !old && self.events.len() <= self.limits.events && self.bytes <= self.limits.bytes {
                break;
            }
            self.forget_revision(first.event.revision, &mut gone);
        }
        gone
    }

    /// Forgets everything up to and with `revision`, and hands it out.
    pub(crate) fn compact(&mut self, revision: Revision) -> Vec<Arc<WatchEvent>> {
        let mut gone = Vec::new();
        self.forget_revision(revision, &mut gone);
        gone
    }

    fn forget_revision(&mut self, revision: Revision, gone: &mut Vec<Arc<WatchEvent>>) {
        while let Some(past) = self.events.pop_front_if(|past| past.event.revision <= revision) {
            self.bytes -= held_bytes(&past.event);
            gone.push(past.event);
        }
        self.compacted = self.compacted.max(revision);
    }

    /// When the oldest change will be too old. A little later than exact, so that an idle store wakes rarely.
    pub(crate) fn next_trim(&self) -> Option<Instant> {
        self.events
            .front()
            .map(|past| past.at + self.limits.age + self.limits.age / 16)
    }

    /// The changes after `after`, in order; `None` when some of them are forgotten.
    pub(crate) fn after(&self, after: Revision) -> Option<impl Iterator<Item = &Arc<WatchEvent>>> {
        if after < self.compacted {
            return None;
        }
        let start = self.events.partition_point(|past| past.event.revision <= after);
        Some(self.events.range(start..).map(|past| &past.event))
    }
}
