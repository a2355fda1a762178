//! What is stored under a key, and what happens to it.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// A point in the history of the whole store. Grows with each write and never goes back, not over restarts either.
///
/// The first revision of an empty store is 1, so 0 is before everything (as in etcd).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// The revision with this number, for one that was handed out before (a resource version of a client, say).
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// The value of a key, and its place in history. Cheap to clone: the value is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value, as it was put.
    pub value: Bytes,
    /// The revision that created the key.
    pub created: Revision,
    /// The revision of the last put.
    pub modified: Revision,
    /// How many puts the key has seen since it was created, from 1.
    pub version: u64,
    /// When it vanishes, in the back end's own terms (embedded: Unix time in ms; etcd: lease id); 0 is never.
    pub(crate) term: u64,
}

/// What a write expects to find under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such key.
    Absent,
    /// The key as that revision left it ([`Entry::modified`]).
    Modified(Revision),
    /// Whatever is there. A delete still needs the key to exist.
    Any,
}

impl Expect {
    pub(crate) fn holds(self, current: Option<&Arc<Entry>>) -> bool {
        match (self, current) {
            (Self::Absent, None) | (Self::Any, _) => true,
            (Self::Modified(wanted), Some(entry)) => entry.modified == wanted,
            (Self::Absent, Some(_)) | (Self::Modified(_), None) => false,
        }
    }
}

/// Whether a key was written or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created or changed.
    Put,
    /// Deleted, or its time to live ended.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The revision that the change made. Foreign transactions on etcd can change several keys in one revision.
    pub revision: Revision,
    /// The key.
    pub key: Bytes,
    /// The entry after the change; `None` for a delete.
    pub entry: Option<Arc<Entry>>,
    /// The entry before the change; `None` when the key was created.
    pub prev: Option<Arc<Entry>>,
}

impl WatchEvent {
    /// Whether the key was written or removed.
    pub fn kind(&self) -> EventKind {
        if self.entry.is_some() {
            EventKind::Put
        } else {
            EventKind::Delete
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(modified: u64) -> Arc<Entry> {
        let modified = Revision::new(modified);
        Arc::new(Entry {
            value: Bytes::new(),
            created: modified,
            modified,
            version: 1,
            term: 0,
        })
    }

    #[test]
    fn an_expectation_holds_only_for_the_state_it_names() {
        assert!(Expect::Absent.holds(None));
        assert!(!Expect::Absent.holds(Some(&entry(3))));
        assert!(Expect::Modified(Revision::new(3)).holds(Some(&entry(3))));
        assert!(!Expect::Modified(Revision::new(2)).holds(Some(&entry(3))));
        assert!(!Expect::Modified(Revision::new(2)).holds(None));
        assert!(Expect::Any.holds(None) && Expect::Any.holds(Some(&entry(3))));
    }

    #[test]
    fn a_revision_reads_back_from_its_text() {
        assert_eq!(
            Revision::new(42).to_string().parse::<Revision>().unwrap(),
            Revision::new(42)
        );
        assert!("-1".parse::<Revision>().is_err());
    }
}
