//! The schedule of one controller, shared between those who add keys and the runner.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::schedule::Schedule;

struct Inner<K> {
    schedule: Mutex<Schedule<K>>,
    news: Notify,
}

/// Keys to work on; each at most once at a time. Clones share the content.
pub struct Queue<K>(Arc<Inner<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            schedule: Mutex::new(Schedule::default()),
            news: Notify::new(),
        }))
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// The key is due now.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.0.news.notify_one();
    }

    /// The key is due after `delay`, unless it is due earlier anyway.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.lock().add_at(key, Instant::now() + delay);
        self.0.news.notify_one();
    }

    /// Keys that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key that is due. For one consumer; it has to call [`Queue::done`].
    pub(crate) async fn next(&self) -> K {
        loop {
            let due = {
                let mut schedule = self.lock();
                if let Some(key) = schedule.take(Instant::now()) {
                    return key;
                }
                schedule.next_due()
            };
            match due {
                Some(due) => {
                    tokio::select! { () = self.0.news.notified() => {}, () = sleep_until(due) => {} }
                }
                None => self.0.news.notified().await,
            }
        }
    }

    pub(crate) fn done(&self, key: &K) {
        self.lock().done(key);
        self.0.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Schedule<K>> {
        self.0.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
