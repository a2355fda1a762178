//! The ordered tree at one revision.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use imbl::shared_ptr::DefaultSharedPtr;

use crate::{Entry, Revision, WatchEvent};

pub(crate) type Tree = OrdMap<Bytes, Arc<Entry>>;

/// The whole store as it was at one revision. Taking and cloning one costs the same however large the store is.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) tree: Tree,
}

impl Snapshot {
    /// The revision that this is the state of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The entry of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.tree.get(key)
    }

    /// The keys that begin with `prefix` and are not before `from`, in order of their bytes, with their entries.
    pub fn range<'a>(&'a self, prefix: &'a [u8], from: &[u8]) -> Range<'a> {
        let start = if from > prefix { from } else { prefix };
        Range {
            entries: self
                .tree
                .range::<_, [u8]>((Bound::Included(start), Bound::Unbounded)),
            prefix,
        }
    }

    /// How many keys the store holds.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether the store holds no key.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }
}

impl Snapshot {
    /// Undoes changes, the newest first, to get the state at `revision`.
    pub(crate) fn rewind<'e>(
        &mut self,
        revision: Revision,
        changes: impl Iterator<Item = &'e Arc<WatchEvent>>,
    ) {
        for event in changes {
            match &event.prev {
                Some(prev) => self.tree.insert(event.key.clone(), Arc::clone(prev)),
                None => self.tree.remove(&event.key),
            };
        }
        self.revision = revision;
    }
}

/// Iterator of [`Snapshot::range`].
pub struct Range<'a> {
    entries: imbl::ordmap::RangedIter<'a, Bytes, Arc<Entry>, DefaultSharedPtr>,
    prefix: &'a [u8],
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a Bytes, &'a Arc<Entry>);

    fn next(&mut self) -> Option<Self::Item> {
        self.entries
            .next()
            .filter(|(key, _)| key.starts_with(self.prefix))
    }
}
