//! What every store does, whatever is behind it.
#![allow(clippy::unwrap_used)]

pub mod model;

use std::time::Duration;

use control_plane_store::{
    Entry, EventKind, Expect, HistoryLimits, Options, Revision, Snapshot, Store, StoreError, Watch,
    WatchError, WatchEvent, WatchItem,
};
use tokio::time::timeout;

use crate::support::{Place, options};

const SOON: Duration = Duration::from_secs(20);

pub async fn put(store: &Store, key: &str, value: &str, expect: Expect) -> Result<Revision, StoreError> {
    store.put(key.to_owned(), value.to_owned(), expect, None).await
}

pub async fn set(store: &Store, key: &str, value: &str) -> Revision {
    put(store, key, value, Expect::Any).await.unwrap()
}

pub async fn event(watch: &mut Watch) -> WatchEvent {
    match timeout(SOON, watch.next()).await.expect("an event comes soon") {
        Some(Ok(WatchItem::Event(event))) => (*event).clone(),
        other => panic!("{other:?} instead of an event"),
    }
}

fn values(snapshot: &Snapshot, prefix: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    snapshot
        .range(prefix, b"")
        .map(|(key, entry)| (text(key), text(&entry.value)))
        .collect()
}

fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Option<Entry> {
    match result {
        Err(StoreError::Conflict { current }) => current.map(|entry| (*entry).clone()),
        other => panic!("{other:?} instead of a conflict"),
    }
}

pub async fn a_write_is_in_the_snapshot_when_it_returns(place: &impl Place) {
    let store = place.open(options()).await;
    let before = store.snapshot();
    let revision = put(&store, "/a", "1", Expect::Absent).await.unwrap();
    let after = store.snapshot();
    assert!(revision > before.revision() && after.revision() >= revision);
    let entry = after.get(b"/a").unwrap();
    assert_eq!(
        (&entry.value[..], entry.created, entry.modified, entry.version),
        (&b"1"[..], revision, revision, 1)
    );
    assert!(before.get(b"/a").is_none(), "a snapshot does not change");
    let second = put(&store, "/a", "2", Expect::Modified(revision)).await.unwrap();
    let entry = store.snapshot().get(b"/a").unwrap().clone();
    assert_eq!(
        (entry.created, entry.modified, entry.version),
        (revision, second, 2)
    );
    store.close().await;
}

pub async fn a_refused_write_tells_what_is_there(place: &impl Place) {
    let store = place.open(options()).await;
    let first = set(&store, "/a", "1").await;
    assert_eq!(
        conflict(put(&store, "/a", "x", Expect::Absent).await)
            .unwrap()
            .modified,
        first
    );
    let second = set(&store, "/a", "2").await;
    assert_eq!(
        conflict(put(&store, "/a", "x", Expect::Modified(first)).await)
            .unwrap()
            .modified,
        second
    );
    assert_eq!(
        conflict(store.delete("/a", Expect::Modified(first)).await)
            .unwrap()
            .value,
        "2"
    );
    assert_eq!(
        conflict(put(&store, "/b", "x", Expect::Modified(first)).await),
        None
    );
    assert_eq!(conflict(store.delete("/b", Expect::Any).await), None);
    assert_eq!(values(&store.snapshot(), b""), [("/a".into(), "2".into())]);
    store.close().await;
}

pub async fn a_delete_gives_what_was_there_and_a_new_life_starts_afresh(place: &impl Place) {
    let store = place.open(options()).await;
    let first = set(&store, "/a", "1").await;
    let (deleted, entry) = store.delete("/a", Expect::Modified(first)).await.unwrap();
    assert!(deleted > first && store.snapshot().get(b"/a").is_none());
    assert_eq!((&entry.value[..], entry.modified), (&b"1"[..], first));
    let again = put(&store, "/a", "2", Expect::Absent).await.unwrap();
    let entry = store.snapshot().get(b"/a").unwrap().clone();
    assert_eq!((entry.created, entry.version), (again, 1));
    store.close().await;
}

pub async fn of_many_writers_on_one_key_exactly_one_wins(place: &impl Place) {
    let store = place.open(options()).await;
    let mut last = Expect::Absent;
    for round in 0..10 {
        let writers = (0..16).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, "/a", &format!("{round}.{n}"), last).await })
        });
        let mut won = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(revision) => won.push(revision),
                Err(StoreError::Conflict { current }) => assert!(current.is_some()),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(store.snapshot().get(b"/a").unwrap().modified, won[0]);
        last = Expect::Modified(won[0]);
    }
    store.close().await;
}

pub async fn a_prefix_ends_where_its_last_key_ends(place: &impl Place) {
    let store = place.open(options()).await;
    let keys: [&[u8]; 6] = [b"a", b"a/", b"a/\xff", b"a/\xff\xff", b"a0", b"b"];
    for key in keys {
        store.put(key, "v", Expect::Absent, None).await.unwrap();
    }
    let state = store.fresh().await.unwrap();
    let below = |prefix: &[u8], from: &[u8]| {
        state
            .range(prefix, from)
            .map(|(key, _)| key.to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(below(b"a/", b""), keys[1..4]);
    assert_eq!(below(b"a/\xff", b""), keys[2..4]);
    assert_eq!(below(b"a/", b"a/\xff"), keys[2..4], "the start is part of it");
    assert_eq!(below(b"a/", b"a/\xff\0"), keys[3..4]);
    assert_eq!(below(b"a/", b"z"), Vec::<Vec<u8>>::new());
    assert_eq!(below(b"", b""), keys);
    assert_eq!(state.len(), keys.len());
    let mut watch = store
        .watch(b"a/\xff", Revision::default())
        .or_else(|_| store.watch(b"a/\xff", store_start(&store)))
        .unwrap();
    store
        .put(&b"a/\xff\xff"[..], "w", Expect::Any, None)
        .await
        .unwrap();
    while event(&mut watch).await.entry.unwrap().value != "w" {}
    store.close().await;
}

/// The oldest revision a watch can start after.
fn store_start(store: &Store) -> Revision {
    match store.at(Revision::default()) {
        Err(StoreError::Compacted { oldest }) => oldest,
        _ => Revision::default(),
    }
}

pub async fn a_watch_tells_each_change_once_and_in_order(place: &impl Place) {
    let store = place.open(options()).await;
    let start = store.snapshot().revision();
    let first = set(&store, "/a/1", "x").await;
    set(&store, "/b/1", "x").await;
    let mut past = store.watch(b"/a/", start).unwrap();
    let mut live = store.watch(b"/a/", store.snapshot().revision()).unwrap();
    let second = set(&store, "/a/1", "y").await;
    let (third, _) = store.delete("/a/1", Expect::Any).await.unwrap();
    let seen = event(&mut past).await;
    assert_eq!(
        (seen.revision, seen.kind(), seen.prev),
        (first, EventKind::Put, None)
    );
    for watch in [&mut past, &mut live] {
        let changed = event(watch).await;
        assert_eq!((changed.revision, &changed.key[..]), (second, &b"/a/1"[..]));
        assert_eq!(
            (
                &changed.entry.unwrap().value[..],
                &changed.prev.unwrap().value[..]
            ),
            (&b"y"[..], &b"x"[..])
        );
        let removed = event(watch).await;
        assert_eq!((removed.revision, removed.kind()), (third, EventKind::Delete));
        assert_eq!(removed.prev.unwrap().modified, second);
    }
    store.close().await;
    assert!(
        timeout(SOON, live.next()).await.unwrap().is_none(),
        "a closed store ends its watches"
    );
}

pub async fn progress_comes_after_the_changes_before_it(place: &impl Place) {
    let store = place.open(options()).await;
    let mut watch = store.watch(b"/a/", store.snapshot().revision()).unwrap();
    set(&store, "/a/1", "x").await;
    let other = set(&store, "/b/1", "x").await;
    watch.request_progress();
    event(&mut watch).await;
    match timeout(SOON, watch.next()).await.unwrap() {
        Some(Ok(WatchItem::Progress(revision))) => assert!(revision >= other),
        other => panic!("{other:?} instead of progress"),
    }
    store.close().await;
}

pub async fn a_watcher_that_lags_is_cut_off_and_others_are_not(place: &impl Place) {
    let store = place
        .open(Options {
            watch_room: 4,
            ..options()
        })
        .await;
    let start = store.snapshot().revision();
    let mut slow = store.watch(b"/a/", start).unwrap();
    let mut other = store.watch(b"/b/", start).unwrap();
    for n in 0..10 {
        set(&store, &format!("/a/{n}"), "x").await;
    }
    set(&store, "/b/1", "x").await;
    for n in 0..4 {
        assert_eq!(event(&mut slow).await.key, format!("/a/{n}"));
    }
    assert_eq!(
        timeout(SOON, slow.next()).await.unwrap().unwrap().unwrap_err(),
        WatchError::Lagged
    );
    assert!(timeout(SOON, slow.next()).await.unwrap().is_none());
    assert_eq!(event(&mut other).await.key, "/b/1");
    let mut again = store.watch(b"/a/", start).unwrap();
    for n in 0..10 {
        assert_eq!(
            event(&mut again).await.key,
            format!("/a/{n}"),
            "history is not bound to the room for unread changes"
        );
    }
    assert_eq!(store.status().await.watchers, 2);
    drop((slow, other, again));
    assert_eq!(store.status().await.watchers, 0);
    store.close().await;
}

pub async fn old_revisions_read_exactly_until_they_are_compacted(place: &impl Place) {
    let store = place.open(options()).await;
    let mut states = Vec::new();
    for n in 0..30 {
        let revision = if n % 5 == 4 {
            store
                .delete(format!("/a/{}", n % 3), Expect::Any)
                .await
                .map(|(revision, _)| revision)
        } else {
            put(&store, &format!("/a/{}", n % 3), &n.to_string(), Expect::Any).await
        };
        if let Ok(revision) = revision {
            states.push((revision, values(&store.snapshot(), b"")));
        }
    }
    for (revision, state) in states.iter().rev().chain(&states) {
        let old = store.at(*revision).unwrap();
        assert_eq!((old.revision(), &values(&old, b"")), (*revision, state));
    }
    let newest = store.snapshot().revision();
    let future = Revision::new(newest.get() + 1000);
    assert!(matches!(store.at(future), Err(StoreError::Future { current }) if current >= newest));
    let middle = states[15].0;
    store.compact(middle).await.unwrap();
    assert!(matches!(store.at(states[14].0), Err(StoreError::Compacted { oldest }) if oldest == middle));
    assert!(matches!(
        store.watch(b"", states[14].0),
        Err(StoreError::Compacted { .. })
    ));
    assert_eq!(values(&store.at(middle).unwrap(), b""), states[15].1);
    let mut watch = store.watch(b"", middle).unwrap();
    assert_eq!(event(&mut watch).await.revision, states[16].0);
    assert_eq!(store.status().await.compacted, middle);
    store.compact(future).await.unwrap();
    assert_eq!(
        values(&store.snapshot(), b""),
        states.last().unwrap().1,
        "the newest state stays"
    );
    store.close().await;
}

pub async fn history_is_bounded_by_count(place: &impl Place) {
    let history = HistoryLimits {
        events: 10,
        ..HistoryLimits::default()
    };
    let store = place.open(Options { history, ..options() }).await;
    let mut revisions = Vec::new();
    for n in 0..30 {
        revisions.push(set(&store, "/a", &n.to_string()).await);
    }
    assert!(store.at(revisions[18]).is_err());
    assert_eq!(store.at(revisions[19]).unwrap().get(b"/a").unwrap().value, "19");
    assert_eq!(store.status().await.history, 10);
    store.close().await;
}

pub async fn a_key_with_a_time_to_live_vanishes_with_an_event(place: &impl Place) {
    let store = place.open(options()).await;
    let ttl = Some(Duration::from_secs(2));
    let began = std::time::Instant::now();
    let put = store.put("/short", "x", Expect::Absent, ttl).await.unwrap();
    store.put("/renewed", "x", Expect::Absent, ttl).await.unwrap();
    let kept = store.put("/renewed", "y", Expect::Any, None).await.unwrap();
    let mut watch = store.watch(b"", kept).unwrap();
    let gone = event(&mut watch).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "too early");
    assert!(began.elapsed() < Duration::from_secs(8), "too late");
    assert_eq!(
        (gone.kind(), &gone.key[..], gone.prev.unwrap().modified),
        (EventKind::Delete, &b"/short"[..], put)
    );
    assert_eq!(values(&store.snapshot(), b""), [("/renewed".into(), "y".into())]);
    store.close().await;
}

pub async fn large_values_pass(place: &impl Place) {
    let store = place.open(options()).await;
    let start = store.snapshot().revision();
    let value = |n: u8| vec![n; (3 << 20) + usize::from(n)];
    for n in 0..4 {
        store
            .put(format!("/large/{n}"), value(n), Expect::Absent, None)
            .await
            .unwrap();
    }
    let mut watch = store.watch(b"/large/", start).unwrap();
    for n in 0..4 {
        assert!(event(&mut watch).await.entry.unwrap().value == value(n));
    }
    store.close().await;
    let store = place.open(options()).await;
    assert!((0..4).all(|n| {
        store
            .snapshot()
            .get(format!("/large/{n}").as_bytes())
            .unwrap()
            .value
            == value(n)
    }));
    store.close().await;
}

pub async fn a_restart_keeps_keys_and_revisions(place: &impl Place) {
    let store = place.open(options()).await;
    let first = set(&store, "/a", "1").await;
    set(&store, "/b", "1").await;
    set(&store, "/a", "2").await;
    let (last, _) = store.delete("/b", Expect::Any).await.unwrap();
    let before = store.snapshot();
    store.close().await;
    assert!(matches!(
        put(&store, "/a", "x", Expect::Any).await,
        Err(StoreError::Closed)
    ));
    let store = place.open(options()).await;
    let after = store.snapshot();
    assert_eq!(after.revision(), last);
    assert_eq!(after.get(b"/a"), before.get(b"/a"));
    assert_eq!(values(&after, b""), [("/a".into(), "2".into())]);
    assert!(set(&store, "/c", "1").await > last);
    assert_eq!(store.at(first).is_ok(), <_ as KeepsHistory>::keeps(place));
    // The very newest record is a delete, and it is compacted away: the revision must not go back all the same.
    let (last, _) = store.delete("/c", Expect::Any).await.unwrap();
    store.compact(last).await.unwrap();
    store.close().await;
    let store = place.open(options()).await;
    assert_eq!(store.snapshot().revision(), last);
    assert!(store.at(first).is_err());
    assert!(set(&store, "/d", "1").await > last);
    store.close().await;
}

trait KeepsHistory {
    fn keeps(&self) -> bool;
}

impl<P: Place> KeepsHistory for P {
    fn keeps(&self) -> bool {
        P::KEEPS_HISTORY
    }
}

pub async fn a_reader_can_wait_for_a_revision(place: &impl Place) {
    let store = place.open(options()).await;
    let next = Revision::new(store.snapshot().revision().get() + 1);
    let early = store.at_least(next, Duration::from_millis(20)).await;
    assert!(matches!(early, Err(StoreError::Future { .. })));
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.at_least(next, SOON).await })
    };
    set(&store, "/a", "1").await;
    assert!(waiting.await.unwrap().unwrap().get(b"/a").is_some());
    store.close().await;
}

/// Writers race; what the watch told, replayed, must be the state, and each acknowledged write must be told once.
pub async fn the_watch_replayed_is_the_state(place: &impl Place) {
    let store = place.open(options()).await;
    let start = store.snapshot().revision();
    let mut watch = store.watch(b"", start).unwrap();
    let writers = (0..8u64).map(|seed| tokio::spawn(write_at_random(store.clone(), seed, 60)));
    let mut acknowledged = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        acknowledged.extend(writer.await.unwrap());
    }
    acknowledged.sort();
    let (mut replayed, mut told) = (std::collections::BTreeMap::new(), Vec::new());
    while told.len() < acknowledged.len() {
        let event = event(&mut watch).await;
        told.push(event.revision);
        let prev = match event.entry {
            Some(entry) => replayed.insert(event.key, entry),
            None => replayed.remove(&event.key),
        };
        assert_eq!(prev, event.prev);
    }
    assert_eq!(told, acknowledged);
    let state: Vec<_> = replayed.into_iter().collect();
    let now = store.snapshot();
    assert_eq!(
        now.range(b"", b"")
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect::<Vec<_>>(),
        state
    );
    store.close().await;
}

async fn write_at_random(store: Store, seed: u64, count: usize) -> Vec<Revision> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    for n in 0..count {
        let key = format!("/{}", random.u8(..12));
        let current = store.snapshot().get(key.as_bytes()).map(|entry| entry.modified);
        let result = match (random.u8(..4), current) {
            (0, Some(modified)) => store
                .delete(key, Expect::Modified(modified))
                .await
                .map(|(revision, _)| revision),
            (_, Some(modified)) => put(&store, &key, &n.to_string(), Expect::Modified(modified)).await,
            (_, None) => put(&store, &key, &n.to_string(), Expect::Absent).await,
        };
        match result {
            Ok(revision) => done.push(revision),
            Err(StoreError::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    done
}

pub async fn an_export_moves_to_an_empty_store(place: &impl Place) {
    let source = place.open(options()).await;
    for n in 0..300 {
        set(&source, &format!("/a/{n}"), &"v".repeat(n * 7)).await;
    }
    source
        .put("/mortal", "x", Expect::Any, Some(Duration::from_secs(3600)))
        .await
        .unwrap();
    source.delete("/a/7", Expect::Any).await.unwrap();
    let mut file = Vec::new();
    let moved = source.export(&mut file).await.unwrap();
    assert_eq!(moved.keys, 300);
    assert!(source.import(&mut &file[..]).await.is_err(), "it is not empty");
    let embedded = crate::support::File::new().await;
    let target = embedded.open(options()).await;
    assert!(
        target.import(&mut &file[..file.len() - 1]).await.is_err(),
        "cut off"
    );
    assert!(target.snapshot().is_empty());
    target.import(&mut &file[..]).await.unwrap();
    let all = |store: &Store| {
        store
            .snapshot()
            .range(b"", b"")
            .map(|(k, e)| (k.clone(), e.value.clone(), e.modified))
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&target), all(&source));
    assert!(set(&target, "/new", "1").await > moved.revision);
    target.close().await;
    source.close().await;
    let target = embedded.open(options()).await;
    assert_eq!(target.snapshot().len(), 301);
    target.close().await;
}

/// Makes a test of each case, each in a place of its own.
#[macro_export]
macro_rules! contract {
    ($place:ty) => {
        contract! { $place;
            a_write_is_in_the_snapshot_when_it_returns,
            a_refused_write_tells_what_is_there,
            a_delete_gives_what_was_there_and_a_new_life_starts_afresh,
            of_many_writers_on_one_key_exactly_one_wins,
            a_prefix_ends_where_its_last_key_ends,
            a_watch_tells_each_change_once_and_in_order,
            progress_comes_after_the_changes_before_it,
            a_watcher_that_lags_is_cut_off_and_others_are_not,
            old_revisions_read_exactly_until_they_are_compacted,
            history_is_bounded_by_count,
            a_key_with_a_time_to_live_vanishes_with_an_event,
            large_values_pass,
            a_restart_keeps_keys_and_revisions,
            a_reader_can_wait_for_a_revision,
            the_watch_replayed_is_the_state,
            an_export_moves_to_an_empty_store,
        }
    };
    ($place:ty; $($case:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            contract::$case(&<$place>::new().await).await;
        })*
    };
}
