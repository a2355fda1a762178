//! A disk that fills up: writes fail with the reason, reads go on, and once there is room again all is as before.
//!
//! The program runs itself in a mount namespace of its own, on a small file system that goes away with it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use control_plane_store::{Expect, Options, Revision, Store, StoreError};

const INNER: &str = "--skep-full-disk";
const DISK: &str = "size=24m";
const FILLER: usize = 12 << 20;
const VALUE: usize = 100_000;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == INNER) {
        Some(at) => fill(Path::new(&arguments[at + 1])),
        None if arguments.iter().any(|argument| argument == "--list") => println!("full_disk: test"),
        None => run_on_small_disk(),
    }
}

fn run_on_small_disk() {
    let folder = tempfile::Builder::new().prefix("store-full-").tempdir().unwrap();
    let script = format!("mount -t tmpfs -o {DISK} none \"$2\" && exec \"$1\" {INNER} \"$2\"");
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .arg(folder.path())
        .status()
        .expect("cannot run `unshare`; run `cargo xtask setup`, which installs util-linux");
    assert!(
        status.success(),
        "{status}: needs root or user namespaces, and a store that stands a full disk"
    );
}

fn value(n: usize) -> Vec<u8> {
    vec![u8::try_from(n % 251).unwrap(); VALUE]
}

#[tokio::main]
async fn fill(disk: &Path) {
    let (path, filler) = (disk.join("store.redb"), disk.join("filler"));
    std::fs::write(&filler, vec![1; FILLER]).unwrap();
    let store = Store::open_embedded(&path, Options::default()).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    let error = loop {
        let n = acknowledged.len();
        match store
            .put(format!("/{n:05}"), value(n), Expect::Absent, None)
            .await
        {
            Ok(revision) => acknowledged.insert(n, revision),
            Err(error) => break error,
        };
        assert!(n < 1000, "the disk does not fill up");
    };
    println!("full after {} writes: {error}", acknowledged.len());
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(!acknowledged.is_empty() && store.status().await.trouble.is_some());
    check(&store, &acknowledged);
    std::fs::remove_file(&filler).unwrap();
    let n = acknowledged.len();
    let began = Instant::now();
    let revision = loop {
        match store.put(format!("/{n:05}"), value(n), Expect::Any, None).await {
            Ok(revision) => break revision,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "no recovery: {error}"),
        }
    };
    acknowledged.insert(n, revision);
    assert_eq!(store.status().await.trouble, None);
    check(&store, &acknowledged);
    store.close().await;
    let store = Store::open_embedded(&path, Options::default()).await.unwrap();
    check(&store, &acknowledged);
    store.close().await;
}

/// All that was acknowledged is there, and nothing else but perhaps the write that was refused.
fn check(store: &Store, acknowledged: &BTreeMap<usize, Revision>) {
    let state = store.snapshot();
    assert!(state.len() - acknowledged.len() <= 1);
    for (n, revision) in acknowledged {
        let entry = state
            .get(format!("/{n:05}").as_bytes())
            .expect("an acknowledged write is there");
        assert!(entry.modified == *revision && entry.value == value(*n));
    }
}
