//! The embedded store: the contract, and what is its own.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod contract;
mod support;

use std::time::{Duration, Instant};

use contract::{event, set};
use control_plane_store::{Durability, Expect, HistoryLimits, OpenError, Options, Store};
use support::{File, Place, options};

contract!(File);

#[test]
fn random_histories_are_as_the_model_says() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(File::new());
    contract::model::holds(&place, &runtime, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_one_user_at_a_time() {
    let place = File::new().await;
    let store = place.open(options()).await;
    let second = Store::open_embedded(&place.path(), options()).await;
    assert!(matches!(second, Err(OpenError::File { .. })));
    store.close().await;
    place.open(options()).await.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_something_else_is_refused_and_left_alone() {
    let place = File::new().await;
    let text = "this is a letter, not a store ".repeat(1000);
    std::fs::write(place.path(), &text).unwrap();
    assert!(Store::open_embedded(&place.path(), options()).await.is_err());
    assert_eq!(std::fs::read_to_string(place.path()).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_a_restart_where_it_was() {
    let place = File::new().await;
    let store = place.open(options()).await;
    let seen = set(&store, "/a", "1").await;
    let missed = [set(&store, "/a", "2").await, set(&store, "/a", "3").await];
    store.close().await;
    let store = place.open(options()).await;
    let mut watch = store.watch(b"", seen).unwrap();
    assert_eq!(event(&mut watch).await.revision, missed[0]);
    let last = event(&mut watch).await;
    assert_eq!(
        (last.revision, &last.prev.unwrap().value[..]),
        (missed[1], &b"2"[..])
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_to_live_runs_on_while_the_store_is_closed() {
    let place = File::new().await;
    let store = place.open(options()).await;
    let put = store
        .put("/short", "x", Expect::Absent, Some(Duration::from_millis(300)))
        .await
        .unwrap();
    store.close().await;
    let store = place.open(options()).await;
    let mut watch = store.watch(b"", put).unwrap();
    assert!(event(&mut watch).await.entry.is_none());
    assert!(store.snapshot().is_empty());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_values_leave_the_file() {
    let place = File::new().await;
    let history = HistoryLimits {
        events: 100,
        ..HistoryLimits::default()
    };
    let options = Options {
        history,
        durability: Durability::Relaxed,
        ..options()
    };
    let store = place.open(options).await;
    let value = "v".repeat(10_000);
    let sizes = [2_000, 8_000].map(|count| (count, value.clone()));
    let mut bytes = Vec::new();
    for (count, value) in sizes {
        for n in 0..count {
            store
                .put(format!("/{}", n % 10), value.clone(), Expect::Any, None)
                .await
                .unwrap();
        }
        bytes.push(store.status().await.bytes_on_disk.unwrap());
    }
    store.close().await;
    assert!(
        bytes[1] < 100_000_000 / 2,
        "100 MB were written, {bytes:?} bytes are on disk"
    );
    let store = place.open(options).await;
    assert_eq!(store.snapshot().len(), 10);
    assert!(
        store
            .snapshot()
            .range(b"", b"")
            .all(|(_, entry)| entry.value == value)
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_open_quickly() {
    let place = File::new().await;
    let relaxed = Options {
        durability: Durability::Relaxed,
        ..options()
    };
    let store = place.open(relaxed).await;
    let writers = (0..32).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..100_000 / 32 {
                let key = format!("/registry/configmaps/ns-{writer}/name-{n}");
                store
                    .put(key, vec![b'v'; 500], Expect::Absent, None)
                    .await
                    .unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    store.close().await;
    let began = Instant::now();
    let store = place.open(options()).await;
    let took = began.elapsed();
    println!("opened {} keys in {took:?}", store.snapshot().len());
    assert_eq!(store.snapshot().len(), 100_000);
    assert!(took < Duration::from_secs(10), "{took:?}");
    store.close().await;
}
