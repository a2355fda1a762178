//! Random operations against a model of the store.

use std::collections::BTreeMap;

use control_plane_store::{Expect, Revision, Store, StoreError, Watch};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::event;
use crate::support::{Place, options};

const KEYS: [&str; 5] = ["/a", "/a/b", "/a/c", "/b", "/b/\u{ff}"];
const PREFIXES: [&str; 5] = ["", "/a", "/a/", "/b/\u{ff}", "/none"];

#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Update(usize),
    /// With a revision that the key no longer has.
    UpdateStale(usize),
    Delete(usize),
    /// Of a prefix, so many changes back.
    Watch(usize, usize),
    ReadBack(usize),
    Compact(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..KEYS.len();
    vec(
        prop_oneof![
            4 => key.clone().prop_map(Op::Create),
            6 => key.clone().prop_map(Op::Update),
            1 => key.clone().prop_map(Op::UpdateStale),
            3 => key.prop_map(Op::Delete),
            2 => (0..PREFIXES.len(), 0..20usize).prop_map(|(prefix, back)| Op::Watch(prefix, back)),
            2 => (0..40usize).prop_map(Op::ReadBack),
            1 => (0..40usize).prop_map(Op::Compact),
        ],
        1..60,
    )
}

type State = BTreeMap<&'static str, (String, Revision)>;

struct Model {
    /// The state after each revision, the first before any.
    states: Vec<(Revision, State)>,
    /// Key, and the new value unless deleted.
    log: Vec<(Revision, &'static str, Option<String>)>,
    compacted: Revision,
    watches: Vec<(Watch, &'static str, Revision)>,
}

impl Model {
    fn now(&self) -> &State {
        &self.states.last().expect("there is a first state").1
    }

    fn back(&self, count: usize) -> Revision {
        self.states[self.states.len().saturating_sub(1 + count)].0
    }

    fn record(&mut self, revision: Revision, key: &'static str, value: Option<String>) {
        assert!(revision > self.back(0), "revisions grow");
        let mut state = self.now().clone();
        match &value {
            Some(value) => state.insert(key, (value.clone(), revision)),
            None => state.remove(key),
        };
        self.states.push((revision, state));
        self.log.push((revision, key, value));
    }

    async fn run(&mut self, store: &Store, op: &Op, n: usize) {
        let value = n.to_string();
        match *op {
            Op::Create(key) => {
                let key = KEYS[key];
                let result = store.put(key, value.clone(), Expect::Absent, None).await;
                self.wrote(key, !self.now().contains_key(key), result, Some(value));
            }
            Op::Update(key) | Op::UpdateStale(key) => {
                let key = KEYS[key];
                let present = self.now().get(key).map(|(_, modified)| *modified);
                let stale = matches!(op, Op::UpdateStale(_));
                let expected = if stale {
                    Revision::new(1)
                } else {
                    present.unwrap_or_default()
                };
                let result = store
                    .put(key, value.clone(), Expect::Modified(expected), None)
                    .await;
                self.wrote(key, present.is_some() && !stale, result, Some(value));
            }
            Op::Delete(key) => {
                let key = KEYS[key];
                let result = store.delete(key, Expect::Any).await.map(|(revision, _)| revision);
                self.wrote(key, self.now().contains_key(key), result, None);
            }
            Op::Watch(prefix, back) => self.watch(store, PREFIXES[prefix], self.back(back)),
            Op::ReadBack(back) => self.read(store, self.back(back)),
            Op::Compact(back) => {
                let revision = self.back(back);
                store.compact(revision).await.expect("compaction works");
                self.compacted = self.compacted.max(revision);
            }
        }
    }

    fn wrote(
        &mut self,
        key: &'static str,
        allowed: bool,
        result: Result<Revision, StoreError>,
        value: Option<String>,
    ) {
        match result {
            Ok(revision) => {
                assert!(allowed, "the model refuses this write of {key}");
                self.record(revision, key, value);
            }
            Err(StoreError::Conflict { current }) => {
                assert!(!allowed, "the model allows this write of {key}");
                assert_eq!(
                    current.map(|entry| entry.modified),
                    self.now().get(key).map(|(_, modified)| *modified)
                );
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn watch(&mut self, store: &Store, prefix: &'static str, after: Revision) {
        match store.watch(prefix.as_bytes(), after) {
            Ok(watch) => {
                assert!(after >= self.compacted);
                self.watches.push((watch, prefix, after));
            }
            Err(error) => assert!(after < self.compacted, "{error}"),
        }
    }

    fn read(&self, store: &Store, revision: Revision) {
        let Ok(snapshot) = store.at(revision) else {
            return assert!(revision < self.compacted);
        };
        let (_, wanted) = self
            .states
            .iter()
            .find(|(at, _)| *at == revision)
            .expect("the model has it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found: Vec<_> = snapshot
            .range(b"", b"")
            .map(|(k, e)| (text(k), text(&e.value), e.modified))
            .collect();
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(k, (v, at))| ((*k).to_owned(), v.clone(), *at))
            .collect();
        assert_eq!(found, wanted);
    }

    async fn check_watches(&mut self) {
        for (watch, prefix, after) in &mut self.watches {
            for (revision, key, value) in &self.log {
                if revision <= after || !key.starts_with(*prefix) {
                    continue;
                }
                let told = event(watch).await;
                assert_eq!((told.revision, &told.key[..]), (*revision, key.as_bytes()));
                assert_eq!(
                    told.entry.map(|entry| entry.value.clone()),
                    value.clone().map(Into::into)
                );
            }
            watch.request_progress();
            let last = watch.next().await;
            assert!(
                matches!(last, Some(Ok(control_plane_store::WatchItem::Progress(_)))),
                "{last:?} was one too many"
            );
        }
    }
}

async fn run(store: &Store, ops: &[Op]) {
    let keys: Vec<_> = store
        .snapshot()
        .range(b"", b"")
        .map(|(key, _)| key.clone())
        .collect();
    for key in keys {
        store.delete(key, Expect::Any).await.expect("cleaning up works");
    }
    let first = store.snapshot().revision();
    let mut model = Model {
        states: vec![(first, State::new())],
        log: Vec::new(),
        compacted: first,
        watches: Vec::new(),
    };
    for (n, op) in ops.iter().enumerate() {
        model.run(store, op, n).await;
    }
    model.read(store, model.back(0));
    model.check_watches().await;
}

/// Runs random histories one after the other on the same store; each empties it first.
pub fn holds(place: &impl Place, runtime: &tokio::runtime::Runtime, cases: u32) {
    let store = runtime.block_on(place.open(options()));
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&ops(), |ops| {
        runtime.block_on(run(&store, &ops));
        Ok(())
    });
    runtime.block_on(store.close());
    result.expect("the store does what the model does");
}
