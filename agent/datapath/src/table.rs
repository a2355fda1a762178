//! One map with typed keys and values, written in batches where the kernel has them.
use crate::error::DatapathError;
use crate::sys::{self, Plain};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Entries a batch may hold: large enough that the call is free, small enough that its copy stays in the processor's cache.
pub(crate) const BATCH: usize = 2048;
/// As many are read at once.
const READ: usize = 8192;

/// A hash map.
pub(crate) struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    capacity: u32,
    /// A trie: kernels differ in whether it has batches, and cursors of its batches are keys.
    singly: bool,
    types: PhantomData<(K, V)>,
}

/// `BPF_MAP_TYPE_LPM_TRIE`.
const TRIE: u32 = 11;

impl<K: Plain, V: Plain> Table<K, V> {
    /// Takes a map; refuses one whose sizes are others than the types'.
    pub fn new(name: &'static str, fd: OwnedFd) -> Result<Self, DatapathError> {
        let info = sys::map_info(fd.as_fd()).map_err(failed(name, "inspected"))?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(DatapathError::Missing(format!("map {name} of this layout")));
        }
        Ok(Self {
            name,
            fd,
            capacity: info.max_entries,
            singly: info.kind == TRIE,
            types: PhantomData,
        })
    }

    /// Opens a pinned map.
    pub fn open(name: &'static str, folder: &Path) -> Result<Self, DatapathError> {
        let path = folder.join(name);
        let fd = sys::open_pinned(&path).map_err(DatapathError::path(&path))?;
        Self::new(name, fd)
    }

    /// Entries that fit.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Writes all entries, in order.
    pub fn write(&self, entries: &[(K, V)]) -> Result<(), DatapathError> {
        if self.singly {
            return self.write_singly(entries);
        }
        for chunk in entries.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            let batch = sys::update_batch(self.fd.as_fd(), &keys, &values);
            match batch.error {
                None => {}
                Some(e) if sys::unsupported(&e) => self.write_singly(chunk)?,
                Some(e) => return Err(self.write_error(e)),
            }
        }
        Ok(())
    }

    fn write_singly(&self, entries: &[(K, V)]) -> Result<(), DatapathError> {
        for (key, value) in entries {
            sys::update(self.fd.as_fd(), key, value).map_err(|e| self.write_error(e))?;
        }
        Ok(())
    }

    fn write_error(&self, e: io::Error) -> DatapathError {
        // A trie says ENOSPC where a hash map says E2BIG.
        if matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
            DatapathError::Full(self.name, self.capacity)
        } else {
            failed(self.name, "written")(e)
        }
    }

    /// Deletes all keys; missing ones are no error.
    pub fn delete(&self, keys: &[K]) -> Result<(), DatapathError> {
        if self.singly {
            return keys.iter().try_for_each(|key| self.delete_one(key).map(drop));
        }
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(BATCH)];
            let batch = sys::delete_batch(self.fd.as_fd(), chunk);
            rest = &rest[batch.done..];
            if batch.error.is_some() {
                // The key that stopped the batch goes alone: missing, or its own error.
                let Some((key, after)) = rest.split_first() else {
                    break;
                };
                sys::delete(self.fd.as_fd(), key).map_err(failed(self.name, "cleaned"))?;
                rest = after;
            }
        }
        Ok(())
    }

    /// One entry.
    pub fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = [V::new_zeroed()];
        let found = sys::lookup(self.fd.as_fd(), key, &mut value).map_err(failed(self.name, "read"))?;
        Ok(found.then_some(value[0]))
    }

    /// Deletes one entry; false if there was none.
    pub fn delete_one(&self, key: &K) -> Result<bool, DatapathError> {
        sys::delete(self.fd.as_fd(), key).map_err(failed(self.name, "cleaned"))
    }

    /// Deletes everything, one by one: for few entries.
    pub fn clear(&self) -> Result<(), DatapathError> {
        let first = || sys::next_key::<K>(self.fd.as_fd(), None).map_err(failed(self.name, "read"));
        while let Some(key) = first()? {
            self.delete_one(&key)?;
        }
        Ok(())
    }

    /// All entries. Entries that come or go meanwhile may or may not be among them.
    pub fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        if self.singly {
            return self.entries_singly();
        }
        let mut all = Vec::new();
        let mut cursor = None;
        let mut room = READ;
        loop {
            match sys::lookup_batch(self.fd.as_fd(), cursor, room) {
                Ok((some, next)) => {
                    all.extend(some);
                    cursor = next;
                    if cursor.is_none() {
                        return Ok(all);
                    }
                }
                // A single bucket holds more than there was room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 24 => room *= 4,
                Err(e) if sys::unsupported(&e) => return self.entries_singly(),
                Err(e) => return Err(failed(self.name, "read")(e)),
            }
        }
    }

    fn entries_singly(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut all = Vec::new();
        let mut key = None;
        while let Some(next) =
            sys::next_key(self.fd.as_fd(), key.as_ref()).map_err(failed(self.name, "read"))?
        {
            let mut value = [V::new_zeroed()];
            if sys::lookup(self.fd.as_fd(), &next, &mut value).map_err(failed(self.name, "read"))? {
                all.push((next, value[0]));
            }
            key = Some(next);
        }
        Ok(all)
    }
}

/// A map with one value per CPU and key: an array of counters, or a hash map of them.
pub(crate) struct PerCpu<K, V> {
    name: &'static str,
    fd: OwnedFd,
    cpus: usize,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> PerCpu<K, V> {
    /// Opens a pinned map of values of a multiple of eight bytes.
    pub fn open(name: &'static str, folder: &Path) -> Result<Self, DatapathError> {
        let path = folder.join(name);
        let fd = sys::open_pinned(&path).map_err(DatapathError::path(&path))?;
        Self::new(name, fd)
    }

    /// Takes a map; refuses one whose sizes are others than the types'.
    pub fn new(name: &'static str, fd: OwnedFd) -> Result<Self, DatapathError> {
        let info = sys::map_info(fd.as_fd()).map_err(failed(name, "inspected"))?;
        if info.key_size as usize != size_of::<K>()
            || info.value_size as usize != size_of::<V>()
            || !size_of::<V>().is_multiple_of(8)
        {
            return Err(DatapathError::Missing(format!("map {name} of this layout")));
        }
        let cpus = aya::util::nr_cpus().map_err(|(file, source)| DatapathError::Path {
            path: file.into(),
            source,
        })?;
        Ok(Self {
            name,
            fd,
            cpus,
            types: PhantomData,
        })
    }

    /// The values of all CPUs; empty where there is no entry.
    pub fn get(&self, key: &K) -> Result<Vec<V>, DatapathError> {
        let mut values = vec![V::new_zeroed(); self.cpus];
        let found = sys::lookup(self.fd.as_fd(), key, &mut values).map_err(failed(self.name, "read"))?;
        Ok(if found { values } else { Vec::new() })
    }
}

/// An array of one value.
pub(crate) struct Single<V> {
    name: &'static str,
    fd: OwnedFd,
    types: PhantomData<V>,
}

impl<V: Plain> Single<V> {
    /// Opens a pinned map.
    pub fn open(name: &'static str, folder: &Path) -> Result<Self, DatapathError> {
        let path = folder.join(name);
        let fd = sys::open_pinned(&path).map_err(DatapathError::path(&path))?;
        let info = sys::map_info(fd.as_fd()).map_err(failed(name, "inspected"))?;
        if info.value_size as usize != size_of::<V>() {
            return Err(DatapathError::Missing(format!("map {name} of this layout")));
        }
        Ok(Self {
            name,
            fd,
            types: PhantomData,
        })
    }

    /// The value.
    pub fn get(&self) -> Result<V, DatapathError> {
        let mut value = [V::new_zeroed()];
        sys::lookup(self.fd.as_fd(), &0_u32, &mut value).map_err(failed(self.name, "read"))?;
        Ok(value[0])
    }

    /// Replaces the value.
    pub fn set(&self, value: &V) -> Result<(), DatapathError> {
        sys::update(self.fd.as_fd(), &0_u32, value).map_err(failed(self.name, "written"))
    }
}

fn failed(map: &'static str, verb: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
    move |source| DatapathError::Map { map, verb, source }
}
