//! The store over a real etcd: the contract, and what is its own.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod contract;
mod support;

use std::time::{Duration, Instant};

use contract::{event, put, set};
use control_plane_store::{EventKind, Expect, OpenError, Options, Store, StoreError, WatchError};
use etcd_client::{Txn, TxnOp};
use support::{Etcd, Place, options};

contract!(Etcd);

#[test]
fn random_histories_are_as_the_model_says() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(Etcd::new());
    contract::model::holds(&place, &runtime, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_etcd_can_be_the_store() {
    let mut place = Etcd::new().await;
    place.prefix = String::new();
    let store = place.open(options()).await;
    set(&store, "/a", "1").await;
    place.foreign().await.put("/b", "2", None).await.unwrap();
    assert_eq!(store.fresh().await.unwrap().len(), 2);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_others_are_events_and_a_fresh_read_has_them() {
    let place = Etcd::new().await;
    let store = place.open(options()).await;
    let mut watch = store.watch(b"/a", store.snapshot().revision()).unwrap();
    let mut foreign = place.foreign().await;
    for n in 0..50 {
        foreign.put("/test/a", n.to_string(), None).await.unwrap();
        // Outside the prefix: moves etcd's revision, and no event will come of it.
        foreign.put("/other", n.to_string(), None).await.unwrap();
        assert_eq!(
            store.fresh().await.unwrap().get(b"/a").unwrap().value,
            n.to_string()
        );
        assert_eq!(event(&mut watch).await.entry.unwrap().value, n.to_string());
    }
    assert_eq!(store.snapshot().len(), 1, "the marker is not a key");
    let both = [
        TxnOp::put("/test/a/1", "x", None),
        TxnOp::put("/test/a/2", "x", None),
    ];
    foreign.txn(Txn::new().and_then(both)).await.unwrap();
    let (first, second) = (event(&mut watch).await, event(&mut watch).await);
    assert_eq!(first.revision, second.revision);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_etcd_agree() {
    let place = Etcd::new().await;
    let (one, two) = (place.open(options()).await, place.open(options()).await);
    let first = put(&one, "/a", "one", Expect::Absent).await.unwrap();
    assert_eq!(two.fresh().await.unwrap().get(b"/a").unwrap().modified, first);
    assert!(put(&two, "/a", "two", Expect::Absent).await.is_err());
    let second = put(&two, "/a", "two", Expect::Modified(first)).await.unwrap();
    match put(&one, "/a", "x", Expect::Modified(first)).await {
        Err(StoreError::Conflict { current }) => assert_eq!(current.unwrap().modified, second),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        one.snapshot().get(b"/a").unwrap().modified,
        second,
        "a conflict can be tried again at once"
    );
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_etcd_hangs_and_writes_fail_in_time() {
    let place = Etcd::new().await;
    let store = place
        .open(Options {
            deadline: Duration::from_millis(500),
            ..options()
        })
        .await;
    set(&store, "/a", "1").await;
    place.signal("-STOP");
    let began = Instant::now();
    assert!(matches!(
        put(&store, "/a", "2", Expect::Any).await,
        Err(StoreError::Timeout(_))
    ));
    assert!(store.fresh().await.is_err());
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(store.snapshot().get(b"/a").unwrap().value, "1");
    place.signal("-CONT");
    let state = async {
        while store.fresh().await.is_err() {}
        store.snapshot()
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), state).await.is_ok());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_a_restart_of_etcd() {
    let place = Etcd::new().await;
    let store = place.open(options()).await;
    let start = set(&store, "/a", "1").await;
    let mut watch = store.watch(b"", start).unwrap();
    place.kill();
    assert_eq!(store.snapshot().len(), 1);
    place.start();
    let mut foreign = place.foreign().await;
    foreign.put("/test/b", "2", None).await.unwrap();
    assert_eq!(event(&mut watch).await.key, "/b");
    set(&store, "/c", "3").await;
    assert_eq!(event(&mut watch).await.key, "/c");
    assert_eq!(store.status().await.trouble, None);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_compacted_meanwhile_comes_as_differences() {
    let place = Etcd::new().await;
    let store = place.open(options()).await;
    set(&store, "/kept", "1").await;
    set(&store, "/changed", "1").await;
    let start = set(&store, "/deleted", "1").await;
    let mut watch = store.watch(b"", start).unwrap();
    // Changed and compacted at another address, where the store cannot see it, and only then back.
    place.kill();
    let revision = place
        .change_offline(|mut client| async move {
            client.put("/test/changed", "2", None).await.unwrap();
            client.delete("/test/deleted", None).await.unwrap();
            client.put("/test/added", "1", None).await.unwrap();
            let last = client.put("/other", "1", None).await.unwrap();
            let revision = last.header().unwrap().revision();
            client.compact(revision, None).await.unwrap();
            revision
        })
        .await;
    place.start();
    let mut told = Vec::new();
    for _ in 0..3 {
        let event = event(&mut watch).await;
        told.push((event.kind(), String::from_utf8(event.key.to_vec()).unwrap()));
    }
    let put = |key: &str| (EventKind::Put, key.to_owned());
    assert_eq!(
        told,
        [
            put("/changed"),
            put("/added"),
            (EventKind::Delete, "/deleted".to_owned())
        ]
    );
    assert!(store.snapshot().revision().get() >= u64::try_from(revision).unwrap());
    assert!(
        matches!(store.at(start), Err(StoreError::Compacted { .. })),
        "the way there is not known"
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_lost_everything_ends_the_watches() {
    let place = Etcd::new().await;
    let store = place.open(options()).await;
    for n in 0..10 {
        set(&store, "/a", &n.to_string()).await;
    }
    let mut watch = store.watch(b"", store.snapshot().revision()).unwrap();
    place.kill();
    place.wipe();
    place.start();
    let ended = tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .unwrap();
    assert!(matches!(ended, Some(Err(WatchError::Compacted))), "{ended:?}");
    assert!(store.fresh().await.unwrap().is_empty());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_not_there_is_said_in_time() {
    let place = Etcd::new().await;
    place.kill();
    let opened = Store::connect_etcd(place.config(Options {
        deadline: Duration::from_secs(1),
        ..options()
    }))
    .await;
    assert!(matches!(opened, Err(OpenError::Etcd { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_and_checked() {
    let place = Etcd::with_tls().await;
    let store = place.open(options()).await;
    set(&store, "/a", "1").await;
    let mut config = place.config(Options {
        deadline: Duration::from_secs(1),
        ..options()
    });
    let tls = config.tls.as_mut().unwrap();
    tls.client = None;
    assert!(
        Store::connect_etcd(config).await.is_err(),
        "etcd wants a certificate"
    );
    store.close().await;
}
