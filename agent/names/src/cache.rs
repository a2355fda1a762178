//! Answers about other names, for as long as they may be kept.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// A bounded memory. Time is what a steady clock shows, from any beginning. When it is full, the entry that has been
/// there longest makes room.
#[derive(Debug)]
pub struct Cache<K, V> {
    most: usize,
    entries: HashMap<K, Entry<V>>,
    /// In the order of arrival; a key whose entry is of another arrival has been replaced since.
    order: VecDeque<(K, u64)>,
    arrivals: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    stored: Duration,
    until: Duration,
    arrival: u64,
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    /// One that holds at most `most` entries.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            entries: HashMap::new(),
            order: VecDeque::new(),
            arrivals: 0,
        }
    }

    /// What is kept under `key` and for how long it has been, if it still counts.
    pub fn get(&self, key: &K, now: Duration) -> Option<(&V, Duration)> {
        let entry = self.entries.get(key).filter(|e| now < e.until)?;
        Some((&entry.value, now.saturating_sub(entry.stored)))
    }

    /// Keeps `value` for `life`; nothing happens if that is no time.
    pub fn put(&mut self, key: K, value: V, now: Duration, life: Duration) {
        if life.is_zero() {
            return;
        }
        while self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            self.drop_oldest();
        }
        self.arrivals += 1;
        let entry = Entry {
            value,
            stored: now,
            until: now + life,
            arrival: self.arrivals,
        };
        self.order.push_back((key.clone(), self.arrivals));
        self.entries.insert(key, entry);
        // Replaced entries leave their place in the order behind: it is swept before it outgrows the entries.
        if self.order.len() > 2 * self.most {
            let entries = &self.entries;
            self.order
                .retain(|(key, arrival)| entries.get(key).is_some_and(|e| e.arrival == *arrival));
        }
    }

    fn drop_oldest(&mut self) {
        while let Some((key, arrival)) = self.order.pop_front() {
            if self.entries.get(&key).is_some_and(|e| e.arrival == arrival) {
                self.entries.remove(&key);
                return;
            }
        }
    }

    /// How many entries there are, those included whose time is over.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_counts_until_its_time_is_over_and_says_its_age() {
        let mut cache = Cache::new(4);
        cache.put("a", 1, s(10), s(5));
        assert_eq!(cache.get(&"a", s(14)), Some((&1, s(4))));
        assert_eq!(cache.get(&"a", s(15)), None);
        cache.put("b", 1, s(10), s(0));
        assert_eq!(cache.get(&"b", s(10)), None);
    }

    #[test]
    fn the_oldest_makes_room_and_replacing_makes_young() {
        let mut cache = Cache::new(2);
        cache.put("a", 1, s(0), s(99));
        cache.put("b", 2, s(1), s(99));
        cache.put("a", 3, s(2), s(99));
        cache.put("c", 4, s(3), s(99));
        assert_eq!(cache.get(&"a", s(4)).map(|e| *e.0), Some(3));
        assert_eq!(cache.get(&"b", s(4)), None);
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn replacing_for_ever_does_not_grow() {
        let mut cache = Cache::new(3);
        for n in 0..1000u64 {
            cache.put(n % 2, n, s(n), s(5));
        }
        assert!(cache.order.len() <= 6, "{}", cache.order.len());
        assert_eq!(cache.len(), 2);
    }
}
