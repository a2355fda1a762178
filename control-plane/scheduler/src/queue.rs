//! Which pod is next: by priority, then by age; one that did not fit waits for a change that may help it.

use crate::pod::PodInfo;
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

type Key = (String, String);

/// First and longest wait of a pod that did not fit, doubling in between.
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// A pod that no change has woken is looked at again after this time: a change may have been judged wrongly.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(5);

/// Something that may make room or fulfil a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node came, or its labels, taints or capacity changed.
    Node,
    /// A pod went away, or freed resources.
    PodGone,
    /// A pod was placed or its labels changed: matters to those that want other pods near.
    PodPlaced,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    last_attempt: Option<Timestamp>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    /// In the hands of the scheduler.
    Taken,
    /// Woken, but not before this time.
    Backoff(Timestamp),
    /// Waits for a change, at the latest until this time.
    Waiting(Timestamp),
    Gated,
}

/// Pods without a node.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Key, Entry>,
    active: BTreeSet<(Reverse<i32>, Timestamp, Key)>,
    timers: BTreeSet<(Timestamp, Key)>,
}

impl Queue {
    /// Takes in a pod without a node, or what changed about it. A changed specification is a new chance.
    pub fn upsert(&mut self, pod: Arc<PodInfo>) {
        let key = pod.key();
        let old = self.take_out(&key);
        let same_uid = old.as_ref().is_some_and(|e| e.pod.uid == pod.uid);
        let unchanged = old
            .as_ref()
            .is_some_and(|e| e.pod.pod.spec == pod.pod.spec && e.pod.labels == pod.labels);
        let state = match &old {
            _ if pod.gated => State::Gated,
            Some(entry) if same_uid && (unchanged || entry.state == State::Taken) => entry.state,
            _ => State::Active,
        };
        let kept = old.filter(|_| same_uid);
        let attempts = kept.as_ref().map_or(0, |e| e.attempts);
        let last_attempt = kept.and_then(|e| e.last_attempt);
        self.put(
            key,
            Entry {
                pod,
                attempts,
                last_attempt,
                state,
            },
        );
    }

    pub fn remove(&mut self, key: &Key) {
        self.take_out(key);
    }

    /// The next pod to place; it stays known until [`Queue::remove`] or [`Queue::unschedulable`].
    pub fn pop(&mut self, now: Timestamp) -> Option<Arc<PodInfo>> {
        self.wake_due(now);
        let (_, _, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.state = State::Taken;
        entry.attempts += 1;
        entry.last_attempt = Some(now);
        Some(entry.pod.clone())
    }

    /// The pod fitted nowhere.
    pub fn unschedulable(&mut self, key: &Key, now: Timestamp) {
        if let Some(mut entry) = self.take_out(key) {
            entry.state = State::Waiting(now + FORGOTTEN);
            self.put(key.clone(), entry);
        }
    }

    /// Placing the pod failed for a passing reason.
    pub fn retry(&mut self, key: &Key, now: Timestamp) {
        if let Some(mut entry) = self.take_out(key) {
            entry.state = State::Backoff(now + backoff(entry.attempts));
            self.put(key.clone(), entry);
        }
    }

    /// Wakes the pods that the change may help.
    pub fn changed(&mut self, change: Change, now: Timestamp) {
        let waiting: Vec<Key> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.state, State::Waiting(_)) && may_help(change, &e.pod))
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            self.wake(&key, now);
        }
    }

    fn wake(&mut self, key: &Key, now: Timestamp) {
        let Some(mut entry) = self.take_out(key) else {
            return;
        };
        let earliest = entry
            .last_attempt
            .map_or(now, |last| last + backoff(entry.attempts));
        entry.state = if earliest > now {
            State::Backoff(earliest)
        } else {
            State::Active
        };
        self.put(key.clone(), entry);
    }

    /// When [`Queue::pop`] may give something without any further change; None if only a change can help.
    pub fn next_time(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn wake_due(&mut self, now: Timestamp) {
        while let Some((at, key)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key.clone()));
            if let Some(mut entry) = self.take_out(&key) {
                entry.state = State::Active;
                self.put(key, entry);
            }
        }
    }

    fn put(&mut self, key: Key, entry: Entry) {
        match entry.state {
            State::Active => {
                self.active.insert(order(&key, &entry.pod));
            }
            State::Backoff(at) | State::Waiting(at) => {
                self.timers.insert((at, key.clone()));
            }
            State::Taken | State::Gated => {}
        }
        self.entries.insert(key, entry);
    }

    fn take_out(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        match entry.state {
            State::Active => {
                self.active.remove(&order(key, &entry.pod));
            }
            State::Backoff(at) | State::Waiting(at) => {
                self.timers.remove(&(at, key.clone()));
            }
            State::Taken | State::Gated => {}
        }
        Some(entry)
    }

    /// Pods that wait, by state: active, in back-off, unschedulable, gated.
    pub fn depth(&self) -> BTreeMap<&'static str, usize> {
        let mut depth = BTreeMap::from([("active", 0), ("backoff", 0), ("unschedulable", 0), ("gated", 0)]);
        for entry in self.entries.values() {
            let name = match entry.state {
                State::Active | State::Taken => "active",
                State::Backoff(_) => "backoff",
                State::Waiting(_) => "unschedulable",
                State::Gated => "gated",
            };
            *depth.entry(name).or_default() += 1;
        }
        depth
    }
}

/// A pod's place among the active ones; it depends on nothing that changes while it waits.
fn order(key: &Key, pod: &PodInfo) -> (Reverse<i32>, Timestamp, Key) {
    let created = pod
        .pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0);
    (Reverse(pod.priority), created, key.clone())
}

fn backoff(attempts: u32) -> SignedDuration {
    let doubled = FIRST_BACKOFF * 2_i32.pow(attempts.saturating_sub(1).min(10));
    doubled.min(LONGEST_BACKOFF)
}

/// A placed pod helps only those that want others near or count them; all else may help anyone.
fn may_help(change: Change, pod: &PodInfo) -> bool {
    change != Change::PodPlaced || !pod.affinity.is_empty() || pod.spread.iter().any(|c| c.hard)
}
