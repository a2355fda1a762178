//! What is on disk: one table with a record per revision, appended at its end.
//!
//! The latest record of a key is its entry; there is no second copy of any value. Records that history no longer needs
//! are removed in the same transactions that add new ones.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Durability, Entry, OpenError, Revision};

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const COMPACTED: &str = "compacted";
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// The page cache of the database. Small: all reads but the first come from the tree in memory.
const CACHE_BYTES: usize = 8 << 20;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const HEADER: usize = 1 + 8 + 8 + 8 + 4;

/// One change, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) revision: Revision,
    pub(super) key: Bytes,
    /// `None` for a delete.
    pub(super) entry: Option<Arc<Entry>>,
}

/// Everything that one transaction changes.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    /// Revisions whose records are no longer needed.
    pub(super) garbage: Vec<u64>,
    pub(super) compacted: Revision,
    pub(super) revision: Revision,
    /// Whether the two revisions above have to be written: with garbage, or when the records do not tell them.
    pub(super) note_revisions: bool,
}

/// What a file held when it was opened.
pub(super) struct Loaded {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// In order of revision.
    pub(super) records: Vec<Record>,
    /// Records that nobody needs any more.
    pub(super) garbage: Vec<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("writing the store file failed: {0}")]
pub(super) struct LogError(String);

fn log_error(error: impl Into<redb::Error>) -> LogError {
    LogError(error.into().to_string())
}

fn damaged(error: impl Into<redb::Error>) -> OpenError {
    OpenError::Damaged(error.into().to_string())
}

pub(super) struct Log {
    database: Database,
    durability: redb::Durability,
}

impl Log {
    pub(super) fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let file_error = |reason: String| OpenError::File {
            path: path.display().to_string(),
            reason,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| file_error(error.to_string()))?;
        }
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let database = database.map_err(|error| file_error(error.to_string()))?;
        let durability = match durability {
            Durability::Synced => redb::Durability::Immediate,
            Durability::Relaxed => redb::Durability::None,
        };
        let log = Self { database, durability };
        log.check_format()?;
        Ok(log)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let transaction = self.database.begin_write().map_err(damaged)?;
        let found = {
            let mut meta = transaction.open_table(META).map_err(damaged)?;
            transaction.open_table(RECORDS).map_err(damaged)?;
            let found = meta.get(FORMAT).map_err(damaged)?.map(|version| version.value());
            if found.is_none() {
                meta.insert(FORMAT, FORMAT_VERSION).map_err(damaged)?;
            }
            found
        };
        match found {
            None => transaction.commit().map_err(damaged),
            Some(FORMAT_VERSION) => transaction.abort().map_err(damaged),
            Some(other) => Err(OpenError::Damaged(format!(
                "it has format {other}, this program knows {FORMAT_VERSION}"
            ))),
        }
    }

    /// Reads everything.
    pub(super) fn load(&self) -> Result<Loaded, OpenError> {
        let transaction = self.database.begin_read().map_err(damaged)?;
        let meta = transaction.open_table(META).map_err(damaged)?;
        let number = |name| -> Result<Option<u64>, OpenError> {
            Ok(meta.get(name).map_err(damaged)?.map(|value| value.value()))
        };
        // The first revision of an empty store is 1, as in etcd.
        let compacted = number(COMPACTED)?.unwrap_or(1);
        let revision = number(REVISION)?.unwrap_or(1).max(compacted);
        let records = self.records_after(Revision::default())?;
        let last = records.last().map_or(0, |record| record.revision.get());
        let mut loaded = Loaded {
            revision: Revision::new(revision.max(last)),
            compacted: Revision::new(compacted),
            records,
            garbage: Vec::new(),
        };
        loaded.drop_garbage();
        Ok(loaded)
    }

    /// The records after a revision, in order.
    pub(super) fn records_after(&self, after: Revision) -> Result<Vec<Record>, OpenError> {
        let transaction = self.database.begin_read().map_err(damaged)?;
        let table = transaction.open_table(RECORDS).map_err(damaged)?;
        let rows = table.range(after.next().get()..).map_err(damaged)?;
        rows.map(|row| {
            let (revision, bytes) = row.map_err(damaged)?;
            decode(Revision::new(revision.value()), bytes.value())
        })
        .collect()
    }

    /// Writes one batch; it is on disk when this returns, as a whole or (on an error) perhaps not at all.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), LogError> {
        self.write(batch, self.durability)
    }

    /// Makes sure that everything is on disk, whatever the durability.
    pub(super) fn sync(&self) -> Result<(), LogError> {
        let mut transaction = self.database.begin_write().map_err(log_error)?;
        transaction
            .set_durability(redb::Durability::Immediate)
            .map_err(log_error)?;
        transaction.commit().map_err(log_error)
    }

    fn write(&self, batch: &Batch, durability: redb::Durability) -> Result<(), LogError> {
        let mut transaction = self.database.begin_write().map_err(log_error)?;
        transaction.set_durability(durability).map_err(log_error)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(log_error)?;
            for record in &batch.records {
                insert(&mut table, record)?;
            }
            for revision in &batch.garbage {
                table.remove(revision).map_err(log_error)?;
            }
        }
        if batch.note_revisions || !batch.garbage.is_empty() {
            let mut meta = transaction.open_table(META).map_err(log_error)?;
            meta.insert(COMPACTED, batch.compacted.get()).map_err(log_error)?;
            meta.insert(REVISION, batch.revision.get()).map_err(log_error)?;
        }
        transaction.commit().map_err(log_error)
    }
}

impl Loaded {
    /// Moves records to the garbage that are superseded by a record that history does not tell about any more: a crash
    /// can come between forgetting and removing.
    fn drop_garbage(&mut self) {
        let mut latest = HashMap::new();
        for record in self
            .records
            .iter()
            .filter(|record| record.revision <= self.compacted)
        {
            latest.insert(record.key.clone(), record.revision);
        }
        let compacted = self.compacted;
        let (kept, gone): (Vec<_>, Vec<_>) = self.records.drain(..).partition(|record| {
            record.revision > compacted
                || (record.entry.is_some() && latest.get(&record.key) == Some(&record.revision))
        });
        self.records = kept;
        self.garbage = gone.iter().map(|record| record.revision.get()).collect();
    }
}

fn insert(table: &mut redb::Table<'_, u64, &'static [u8]>, record: &Record) -> Result<(), LogError> {
    let value = record.entry.as_ref().map_or(0, |entry| entry.value.len());
    let length = HEADER + record.key.len() + value;
    let mut room = table
        .insert_reserve(record.revision.get(), length)
        .map_err(log_error)?;
    encode(record, room.as_mut());
    Ok(())
}

/// Kind, created, version, term, length of the key, key, value; numbers in little endian.
fn encode(record: &Record, room: &mut [u8]) {
    let (kind, created, version, term) = match &record.entry {
        Some(entry) => (PUT, entry.created.get(), entry.version, entry.term),
        None => (DELETE, 0, 0, 0),
    };
    let key_length = u32::try_from(record.key.len()).expect("keys are checked to be short when they come in");
    room[0] = kind;
    room[1..9].copy_from_slice(&created.to_le_bytes());
    room[9..17].copy_from_slice(&version.to_le_bytes());
    room[17..25].copy_from_slice(&term.to_le_bytes());
    room[25..HEADER].copy_from_slice(&key_length.to_le_bytes());
    let (key, value) = room[HEADER..].split_at_mut(record.key.len());
    key.copy_from_slice(&record.key);
    if let Some(entry) = &record.entry {
        value.copy_from_slice(&entry.value);
    }
}

fn decode(revision: Revision, bytes: &[u8]) -> Result<Record, OpenError> {
    let torn = || OpenError::Damaged(format!("the record of revision {revision} cannot be read"));
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(torn)?;
    let number = |at: usize| -> Result<u64, OpenError> {
        Ok(u64::from_le_bytes(
            header[at..at + 8].try_into().map_err(|_| torn())?,
        ))
    };
    let key_length = u32::from_le_bytes(header[25..HEADER].try_into().map_err(|_| torn())?);
    let (key, value) = rest.split_at_checked(key_length as usize).ok_or_else(torn)?;
    let entry = match header[0] {
        PUT => Some(Arc::new(Entry {
            value: Bytes::copy_from_slice(value),
            created: Revision::new(number(1)?),
            modified: revision,
            version: number(9)?,
            term: number(17)?,
        })),
        DELETE if value.is_empty() => None,
        _ => return Err(torn()),
    };
    Ok(Record {
        revision,
        key: Bytes::copy_from_slice(key),
        entry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(revision: u64, key: &'static str, value: Option<&'static str>) -> Record {
        let entry = value.map(|value| {
            Arc::new(Entry {
                value: Bytes::from_static(value.as_bytes()),
                created: Revision::new(1),
                modified: Revision::new(revision),
                version: 2,
                term: 9,
            })
        });
        Record {
            revision: Revision::new(revision),
            key: Bytes::from_static(key.as_bytes()),
            entry,
        }
    }

    fn encoded(record: &Record) -> Vec<u8> {
        let value = record.entry.as_ref().map_or(0, |entry| entry.value.len());
        let mut room = vec![0; HEADER + record.key.len() + value];
        encode(record, &mut room);
        room
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for record in [
            record(7, "/a", Some("value")),
            record(8, "/a", None),
            record(9, "", Some("")),
        ] {
            assert_eq!(decode(record.revision, &encoded(&record)).unwrap(), record);
        }
    }

    #[test]
    fn a_cut_record_is_refused() {
        let bytes = encoded(&record(7, "/key", Some("")));
        for length in 0..bytes.len() {
            assert!(
                decode(Revision::new(7), &bytes[..length]).is_err(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn what_a_crash_left_behind_is_found_when_the_file_is_loaded() {
        let mut loaded = Loaded {
            revision: Revision::new(9),
            compacted: Revision::new(5),
            records: vec![
                record(2, "/a", Some("old")),
                record(3, "/b", Some("kept")),
                record(4, "/c", Some("deleted")),
                record(5, "/c", None),
                record(6, "/a", Some("history")),
                record(7, "/a", Some("new")),
            ],
            garbage: Vec::new(),
        };
        loaded.drop_garbage();
        assert_eq!(loaded.garbage, [4, 5]);
        assert_eq!(loaded.records.len(), 4);
    }
}
