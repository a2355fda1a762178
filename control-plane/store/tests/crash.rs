//! Kills a writing process again and again: every acknowledged write must be there, whole, and revisions must grow.
//!
//! The program runs itself as the process to be killed, with the file's path as its argument.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control_plane_store::{Entry, Expect, HistoryLimits, Options, Revision, Store, WatchItem};

const ROUNDS: u64 = 25;
const CLIENTS: u64 = 8;
const KEYS_PER_CLIENT: u64 = 20;
/// The program's own mark for "be the writer".
const WRITER: &str = "--skep-crash-writer";

/// A history short enough that records are removed all the time.
fn options() -> Options {
    let history = HistoryLimits {
        events: 500,
        ..HistoryLimits::default()
    };
    Options {
        history,
        ..Options::default()
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == WRITER) {
        Some(at) => write_until_killed(Path::new(&arguments[at + 1]), arguments[at + 2].parse().unwrap()),
        None if arguments.iter().any(|argument| argument == "--list") => println!("crash: test"),
        None => kill_and_check(),
    }
}

/// A value that can be checked: its number, then bytes that follow from it.
fn value_of(number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let length = random.usize(..if number.is_multiple_of(50) { 200_000 } else { 3_000 });
    let mut value = number.to_le_bytes().to_vec();
    value.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
    value
}

fn number_of(entry: &Entry) -> u64 {
    let number = u64::from_le_bytes(entry.value[..8].try_into().unwrap());
    assert!(entry.value == value_of(number), "the value {number} is torn");
    number
}

#[tokio::main]
async fn write_until_killed(path: &Path, first: u64) {
    let store = Store::open_embedded(path, options())
        .await
        .expect("the file opens after a crash");
    let next = Arc::new(AtomicU64::new(first));
    let clients = (0..CLIENTS).map(|client| tokio::spawn(write(store.clone(), client, Arc::clone(&next))));
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// Each client has keys of its own and one write under way, so per key at most the last write is in doubt.
async fn write(store: Store, client: u64, next: Arc<AtomicU64>) {
    let mut random = fastrand::Rng::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let key = format!("/{client}/{}", random.u64(..KEYS_PER_CLIENT));
        let delete = number.is_multiple_of(7) && store.snapshot().get(key.as_bytes()).is_some();
        let (kind, revision) = if delete {
            (
                "delete",
                store
                    .delete(key.clone(), Expect::Any)
                    .await
                    .map(|(revision, _)| revision),
            )
        } else {
            (
                "put",
                store.put(key.clone(), value_of(number), Expect::Any, None).await,
            )
        };
        let line = format!("{key} {kind} {number} {}\n", revision.expect("writes work"));
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// What was acknowledged last for a key.
#[derive(Clone, Copy)]
struct Acknowledged {
    /// `None` for a delete.
    number: Option<u64>,
    revision: Revision,
}

fn kill_and_check() {
    let folder = tempfile::Builder::new().prefix("store-crash-").tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut known = HashMap::new();
    let mut total = 0;
    let mut random = fastrand::Rng::new();
    for round in 0..ROUNDS {
        let lines = run_and_kill(
            &path,
            round * 1_000_000 + 1,
            Duration::from_millis(random.u64(30..400)),
        );
        total += lines.len();
        for line in &lines {
            note(&mut known, line);
        }
        runtime.block_on(check(&path, &mut known));
    }
    assert!(
        total > 500,
        "only {total} writes were acknowledged: the test says nothing"
    );
    println!("{ROUNDS} kills, {total} acknowledged writes, none lost");
}

/// The whole lines that the writer printed before it was killed, some time after its first.
fn run_and_kill(path: &Path, first: u64, after: Duration) -> Vec<String> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args([WRITER, path.to_str().unwrap(), &first.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(writer.stdout.take().unwrap());
    let mut lines = Vec::new();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let kill_at = Instant::now() + after;
    let killer = std::thread::spawn(move || {
        // At a random moment: there is nothing to wait for but the time.
        let (_open, nothing) = std::sync::mpsc::channel::<()>();
        let _ = nothing.recv_timeout(kill_at.saturating_duration_since(Instant::now()));
        writer.kill().unwrap();
        writer.wait().unwrap()
    });
    while line.ends_with('\n') {
        lines.push(std::mem::take(&mut line));
        output.read_line(&mut line).unwrap();
    }
    let status = killer.join().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "the writer ended by itself: {status}"
    );
    lines
}

fn note(known: &mut HashMap<String, Acknowledged>, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let &[key, kind, number, revision] = words.as_slice() else {
        panic!("{line:?} is not a report")
    };
    let number = (kind == "put").then(|| number.parse().unwrap());
    let acknowledged = Acknowledged {
        number,
        revision: revision.parse().unwrap(),
    };
    let before = known.insert(key.to_owned(), acknowledged);
    assert!(
        before.is_none_or(|before| before.revision < acknowledged.revision),
        "revisions of {key} grow"
    );
}

async fn check(path: &Path, known: &mut HashMap<String, Acknowledged>) {
    let store = Store::open_embedded(path, options())
        .await
        .expect("the file opens after a crash");
    let state = store.snapshot();
    let last = known
        .values()
        .map(|acknowledged| acknowledged.revision)
        .max()
        .unwrap();
    assert!(
        state.revision() >= last,
        "revision {} is before the acknowledged {last}",
        state.revision()
    );
    let mut doubtful = HashMap::<u8, usize>::new();
    for (key, acknowledged) in known.iter() {
        let found = state.get(key.as_bytes());
        let same = match (found, acknowledged.number) {
            (Some(entry), Some(number)) => {
                number_of(entry) == number && entry.modified == acknowledged.revision
            }
            (None, None) => true,
            _ => false,
        };
        if !same {
            // Only a write that was under way may have come after the one acknowledged.
            assert!(
                found.is_none_or(|entry| entry.modified > acknowledged.revision),
                "{key} went back"
            );
            *doubtful.entry(key.as_bytes()[1]).or_default() += 1;
        }
    }
    assert!(
        doubtful.values().all(|count| *count <= 1),
        "lost: {doubtful:?} keys per client are not as acknowledged"
    );
    check_history(&store).await;
    let next = store.put("/check", value_of(0), Expect::Any, None).await.unwrap();
    assert!(next > state.revision());
    let keep = |key: &str| {
        store
            .snapshot()
            .get(key.as_bytes())
            .map(|entry| (number_of(entry), entry.modified))
    };
    for (key, acknowledged) in known.iter_mut() {
        let now = keep(key);
        *acknowledged = Acknowledged {
            number: now.map(|now| now.0),
            revision: now.map_or(next, |now| now.1),
        };
    }
    store.close().await;
}

/// The oldest state kept plus the changes since must be the newest state.
async fn check_history(store: &Store) {
    let oldest = store.status().await.compacted;
    let (mut state, newest) = (store.at(oldest).unwrap(), store.snapshot());
    let mut watch = store.watch(b"", oldest).unwrap();
    let mut replayed: HashMap<_, _> = state
        .range(b"", b"")
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect();
    while state.revision() < newest.revision() {
        let Some(Ok(WatchItem::Event(event))) = watch.next().await else {
            panic!("the history has a gap")
        };
        state = store.at(event.revision).unwrap();
        match &event.entry {
            Some(entry) => replayed.insert(event.key.clone(), entry.clone()),
            None => replayed.remove(&event.key),
        };
    }
    assert_eq!(replayed.len(), newest.len());
    for (key, entry) in newest.range(b"", b"") {
        number_of(entry);
        assert_eq!(replayed.get(key), Some(entry));
    }
}
