//! Which key is due when. Pure data: time is passed in.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// How long a failing key waits: doubling from `first` up to `cap`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first: Duration,
    /// Longest delay.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(10),
            cap: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row (at least one), scaled by `jitter` in 0..1 to between a half and
    /// the whole.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.cap);
        whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// Keys that are due, under way, or due later. Each key is held once, so the size is bounded by the number of keys.
#[derive(Debug)]
pub(crate) struct Schedule<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, or to be put there as soon as they are no longer under way.
    wanted: HashSet<K>,
    under_way: HashSet<K>,
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    next_id: u64,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            wanted: HashSet::new(),
            under_way: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            next_id: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Schedule<K> {
    /// The key is due now. While it is under way it becomes due again afterwards.
    pub(crate) fn add(&mut self, key: K) {
        if self.wanted.insert(key.clone()) && !self.under_way.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The key is due at `when`, unless it is due earlier anyway.
    pub(crate) fn add_at(&mut self, key: K, when: Instant) {
        if self.due.get(&key).is_some_and(|(due, _)| *due <= when) {
            return;
        }
        self.cancel(&key);
        let slot = (when, self.next_id);
        self.next_id += 1;
        self.due.insert(key.clone(), slot);
        self.later.insert(slot, key);
    }

    /// Takes the next key that is due; whoever gets it looks at its newest state, so a later date is void.
    pub(crate) fn take(&mut self, now: Instant) -> Option<K> {
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.wanted.remove(&key);
        self.under_way.insert(key.clone());
        self.cancel(&key);
        Some(key)
    }

    /// Work on the key has ended.
    pub(crate) fn done(&mut self, key: &K) {
        self.under_way.remove(key);
        if self.wanted.contains(key) {
            self.ready.push_back(key.clone());
        }
    }

    /// When the next later key becomes due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.later.first_key_value().map(|((when, _), _)| *when)
    }

    /// Keys that are due now or later, without those under way.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len() + self.later.len()
    }

    fn cancel(&mut self, key: &K) {
        if let Some(slot) = self.due.remove(key) {
            self.later.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_added_many_times_is_worked_on_once() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.add("a");
        schedule.add("a");
        assert_eq!((schedule.take(now), schedule.take(now)), (Some("a"), None));
    }

    #[test]
    fn a_key_is_never_worked_on_twice_at_a_time_but_its_news_are_not_lost() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.add("a");
        schedule.take(now);
        schedule.add("a");
        assert_eq!(schedule.take(now), None);
        schedule.done(&"a");
        assert_eq!(schedule.take(now), Some("a"));
    }

    #[test]
    fn the_earliest_of_several_dates_counts_and_work_voids_it() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.add_at("a", now + Duration::from_secs(5));
        schedule.add_at("a", now + Duration::from_secs(2));
        schedule.add_at("a", now + Duration::from_secs(9));
        assert_eq!(schedule.take(now + Duration::from_secs(1)), None);
        assert_eq!(schedule.take(now + Duration::from_secs(2)), Some("a"));
        schedule.done(&"a");
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn the_delay_doubles_up_to_the_cap_and_jitter_only_shortens_it() {
        let backoff = Backoff {
            first: Duration::from_millis(10),
            cap: Duration::from_secs(1),
        };
        assert_eq!(backoff.delay(1, 1.0), Duration::from_millis(10));
        assert_eq!(backoff.delay(3, 1.0), Duration::from_millis(40));
        assert_eq!(backoff.delay(3, 0.0), Duration::from_millis(20));
        assert_eq!(backoff.delay(500, 1.0), Duration::from_secs(1));
    }
}
