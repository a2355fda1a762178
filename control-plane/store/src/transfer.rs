//! Export and import of everything, to move between back ends or to keep a copy.
//!
//! The file: a line `skep-store 1 REVISION KEYS`, then per key its revisions, version and time left in ms (0 is for
//! ever), the lengths of key and value, all as little-endian numbers, then key and value; at the end `end`.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::store::Back;
use crate::{Entry, Revision, Snapshot, Store, StoreError, TransferError};

const MAGIC: &str = "skep-store";
const VERSION: &str = "1";
const END: &[u8] = b"end\n";
/// Larger keys or values are taken for damage, before memory is asked for.
const LARGEST: u64 = 64 << 20;

/// What an export or import moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Keys.
    pub keys: usize,
    /// The revision that the export is the state of.
    pub revision: Revision,
}

struct Row {
    key: Bytes,
    entry: Arc<Entry>,
    left: Option<Duration>,
}

impl Store {
    /// Writes the newest state to `to`; writes that come meanwhile are not part of it.
    ///
    /// # Errors
    /// When `to` cannot be written, or etcd cannot tell how long keys have to live.
    pub async fn export(&self, to: &mut (dyn Write + Send)) -> Result<Transferred, TransferError> {
        let state = self.fresh().await?;
        let left = self.times_left(&state).await?;
        let moved = Transferred {
            keys: state.len(),
            revision: state.revision(),
        };
        writeln!(to, "{MAGIC} {VERSION} {} {}", moved.revision, moved.keys)?;
        for (key, entry) in state.range(b"", b"") {
            write_row(to, key, entry, left.get(&entry.term).copied())?;
        }
        to.write_all(END)?;
        to.flush()?;
        Ok(moved)
    }

    /// Reads an export into this store, which must be empty. The embedded store keeps the exact revisions and goes on
    /// from there; etcd gives new ones. Nothing else may use the store meanwhile.
    ///
    /// # Errors
    /// When the store is not empty, or the export cannot be read; then the store is unchanged.
    pub async fn import(&self, from: &mut (dyn BufRead + Send)) -> Result<Transferred, TransferError> {
        let present = self.fresh().await?.len();
        if present > 0 {
            return Err(TransferError::NotEmpty(present));
        }
        let (moved, rows) = read_all(from)?;
        match &self.back {
            Back::Embedded(embedded) => {
                let now = unix_ms();
                let entries = rows.into_iter().map(|row| row.with_term(now)).collect();
                embedded.import(entries, moved.revision).await?;
            }
            Back::Etcd(etcd) => {
                let entries = rows
                    .into_iter()
                    .map(|row| (row.key, row.entry, row.left))
                    .collect();
                etcd.import(entries).await?;
            }
        }
        Ok(moved)
    }

    /// The time left by term, for the keys that do not stay for ever.
    async fn times_left(&self, state: &Snapshot) -> Result<HashMap<u64, Duration>, StoreError> {
        let mut left = HashMap::new();
        for term in state
            .tree
            .values()
            .map(|entry| entry.term)
            .filter(|term| *term != 0)
        {
            if left.contains_key(&term) {
                continue;
            }
            let time = match &self.back {
                Back::Embedded(_) => Duration::from_millis(term.saturating_sub(unix_ms())),
                Back::Etcd(etcd) => etcd.time_left(term).await?,
            };
            left.insert(term, time);
        }
        Ok(left)
    }
}

impl Row {
    fn with_term(self, now: u64) -> (Bytes, Arc<Entry>) {
        let mut entry = Arc::unwrap_or_clone(self.entry);
        entry.term = self.left.map_or(0, |left| {
            now + u64::try_from(left.as_millis()).unwrap_or_default()
        });
        (self.key, Arc::new(entry))
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn write_row(to: &mut dyn Write, key: &[u8], entry: &Entry, left: Option<Duration>) -> std::io::Result<()> {
    // A key whose time is just up gets the shortest time, since 0 is for ever.
    let left = left.map_or(0, |left| {
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
    });
    let lengths = [key.len() as u64, entry.value.len() as u64];
    let numbers = [
        entry.created.get(),
        entry.modified.get(),
        entry.version,
        left,
        lengths[0],
        lengths[1],
    ];
    for number in numbers {
        to.write_all(&number.to_le_bytes())?;
    }
    to.write_all(key)?;
    to.write_all(&entry.value)
}

fn read_all(from: &mut dyn BufRead) -> Result<(Transferred, Vec<Row>), TransferError> {
    let moved = read_header(from)?;
    let mut rows = Vec::new();
    for _ in 0..moved.keys {
        rows.push(read_row(from)?);
    }
    let mut end = Vec::new();
    from.take(END.len() as u64 + 1).read_to_end(&mut end)?;
    if end != END {
        return Err(TransferError::Format("it does not end where it should".into()));
    }
    Ok((moved, rows))
}

fn read_header(from: &mut dyn BufRead) -> Result<Transferred, TransferError> {
    let bad = |what: &str| TransferError::Format(what.into());
    let mut line = Vec::new();
    from.take(128).read_until(b'\n', &mut line)?;
    let line = String::from_utf8(line).map_err(|_| bad("its first line is not text"))?;
    let words: Vec<_> = line.split_whitespace().collect();
    let &[magic, version, revision, keys] = words.as_slice() else {
        return Err(bad("its first line is not ours"));
    };
    if magic != MAGIC || version != VERSION {
        return Err(bad("it is of another program or version"));
    }
    let revision = revision
        .parse()
        .map_err(|_| bad("its revision is not a number"))?;
    Ok(Transferred {
        revision,
        keys: keys
            .parse()
            .map_err(|_| bad("its count of keys is not a number"))?,
    })
}

fn read_row(from: &mut dyn BufRead) -> Result<Row, TransferError> {
    let mut numbers = [0; 6];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        *number = u64::from_le_bytes(bytes);
    }
    let [created, modified, version, left, key, value] = numbers;
    let key = read_bytes(from, key)?;
    let value = read_bytes(from, value)?;
    let (created, modified) = (Revision::new(created), Revision::new(modified));
    let entry = Arc::new(Entry {
        value,
        created,
        modified,
        version,
        term: 0,
    });
    Ok(Row {
        key,
        entry,
        left: (left > 0).then(|| Duration::from_millis(left)),
    })
}

fn read_bytes(from: &mut dyn BufRead, length: u64) -> Result<Bytes, TransferError> {
    if length > LARGEST {
        return Err(TransferError::Format(format!("a key or value of {length} bytes")));
    }
    let mut bytes = Vec::new();
    if from.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(TransferError::Format("it ends within a value".into()));
    }
    Ok(bytes.into())
}
