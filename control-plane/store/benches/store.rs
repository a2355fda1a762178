//! Puts with one and with many writers, reads of a range, fan-out of a change to watchers.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use control_plane_store::{Durability, Expect, Options, Store, WatchItem};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Etcd, Place};
use tokio::runtime::Runtime;

const VALUE: usize = 1000;

async fn open(folder: &tempfile::TempDir, durability: Durability) -> Store {
    let options = Options {
        durability,
        watch_room: 100_000,
        ..Options::default()
    };
    Store::open_embedded(&folder.path().join("store.redb"), options)
        .await
        .unwrap()
}

/// Time for `count` creates by so many writers at once.
async fn create(store: &Store, writers: u64, count: u64) -> Duration {
    let salt = fastrand::u64(..);
    let began = Instant::now();
    let writers = (0..writers).map(|writer| {
        let store = store.clone();
        let share = count / writers + u64::from(writer < count % writers);
        tokio::spawn(async move {
            for n in 0..share {
                let key = format!("/registry/configmaps/{salt:x}/{writer}-{n}");
                store
                    .put(key, vec![b'v'; VALUE], Expect::Absent, None)
                    .await
                    .unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    began.elapsed()
}

fn puts(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("put");
    group.throughput(Throughput::Elements(1));
    for (name, durability, writers) in [
        ("synced/1", Durability::Synced, 1),
        ("synced/32", Durability::Synced, 32),
        ("synced/256", Durability::Synced, 256),
        ("relaxed/32", Durability::Relaxed, 32),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = runtime.block_on(open(&folder, durability));
        group.bench_function(name, |bench| {
            bench.iter_custom(|count| runtime.block_on(create(&store, writers, count)));
        });
        runtime.block_on(store.close());
    }
    group.finish();
}

fn ranges(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(open(&folder, Durability::Relaxed));
    runtime.block_on(create(&store, 32, 20_000));
    let oldest = store.snapshot().revision();
    runtime.block_on(create(&store, 32, 5_000));
    let mut group = criterion.benchmark_group("read");
    group.bench_function("snapshot", |bench| {
        bench.iter(|| black_box(store.snapshot().revision()))
    });
    group.bench_function("range of 25k", |bench| {
        bench.iter(|| {
            store
                .snapshot()
                .range(b"/registry/", b"")
                .map(|(_, entry)| entry.value.len())
                .sum::<usize>()
        });
    });
    group.bench_function("5k revisions ago, read again", |bench| {
        bench.iter(|| store.at(oldest).unwrap().len())
    });
    group.finish();
    runtime.block_on(store.close());
}

fn etcd_puts(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let place = runtime.block_on(Etcd::new());
    let store = runtime.block_on(place.open(Options::default()));
    let mut group = criterion.benchmark_group("put on etcd");
    group.throughput(Throughput::Elements(1));
    for writers in [1, 32] {
        group.bench_function(writers.to_string(), |bench| {
            bench.iter_custom(|count| runtime.block_on(create(&store, writers, count)));
        });
    }
    group.bench_function("fresh read", |bench| {
        bench.iter(|| runtime.block_on(store.fresh()).unwrap().len());
    });
    group.finish();
    runtime.block_on(store.close());
}

/// Time to open a copy of the file, so often. A copy of an open file is what a crash leaves.
fn open_copies(runtime: &Runtime, folder: &tempfile::TempDir, count: u64) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..count {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
        let began = Instant::now();
        let store = runtime.block_on(open(&copy, Durability::Synced));
        took += began.elapsed();
        assert_eq!(store.snapshot().len(), 100_000);
        runtime.block_on(store.close());
    }
    took
}

fn opening(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(open(&folder, Durability::Synced));
    runtime.block_on(create(&store, 256, 100_000));
    let mut group = criterion.benchmark_group("open 100k keys");
    group.bench_function("after a crash", |bench| {
        bench.iter_custom(|count| open_copies(&runtime, &folder, count));
    });
    runtime.block_on(store.close());
    group.bench_function("closed well", |bench| {
        bench.iter_custom(|count| open_copies(&runtime, &folder, count));
    });
    group.finish();
}

fn fan_out(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(open(&folder, Durability::Relaxed));
    let mut group = criterion.benchmark_group("watch");
    for (name, same, others) in [
        ("1 watcher", 1, 0),
        ("1 watcher and 5000 of others", 1, 5000),
        ("100 watchers", 100, 0),
    ] {
        let start = store.snapshot().revision();
        let others: Vec<_> = (0..others)
            .map(|n| {
                store
                    .watch(format!("/registry/other/{n}/").as_bytes(), start)
                    .unwrap()
            })
            .collect();
        let mut watches: Vec<_> = (0..same)
            .map(|_| store.watch(b"/registry/pods/", start).unwrap())
            .collect();
        group.bench_function(name, |bench| {
            bench.iter(|| {
                runtime.block_on(async {
                    store
                        .put("/registry/pods/ns/name", "v", Expect::Any, None)
                        .await
                        .unwrap();
                    for watch in &mut watches {
                        assert!(matches!(watch.next().await, Some(Ok(WatchItem::Event(_)))));
                    }
                });
            });
        });
        drop(others);
    }
    group.finish();
    runtime.block_on(store.close());
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    targets = puts, etcd_puts, ranges, opening, fan_out
}
criterion_main!(benches);
