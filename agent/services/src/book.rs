//! The services that are known, by number, by their own names and by those of their slices.
use crate::packed::{PackedService, PackedSlice};
use crate::programmed::Programmed;
use crate::texts::Texts;
use crate::view::{ObjectName, ServiceView};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher as _;

/// One service: what was observed and what stands in the maps.
pub(crate) struct Entry {
    pub name: ObjectName,
    pub view: Option<PackedService>,
    /// In order of their names.
    slices: Vec<PackedSlice>,
    pub sets: Vec<Programmed>,
    pub dirty: bool,
}

impl Entry {
    pub fn slices(&self) -> &[PackedSlice] {
        &self.slices
    }

    pub fn slice(&self, name: &str) -> Option<&PackedSlice> {
        Some(&self.slices[self.place(name).ok()?])
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|s| s.name().cmp(name))
    }

    /// Whether nothing is known of it any more.
    pub fn is_over(&self) -> bool {
        self.view.is_none() && self.slices.is_empty() && self.sets.is_empty()
    }
}

/// All services. Their numbers are used again once a service is gone.
#[derive(Default)]
pub(crate) struct Book {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    by_slice: HashTable<SliceOf>,
    hasher: DefaultHashBuilder,
    texts: Texts,
}

/// A slice: a part of its name's hash, which is enough to move it within the table, and the service that has it.
#[derive(Clone, Copy)]
struct SliceOf {
    hash: u32,
    service: u32,
}

/// The halves of a table's hash mean different things, and only one is kept.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Book {
    /// The number of a service, if anything is known of it.
    pub fn find(&self, name: &ObjectName) -> Option<u32> {
        let is_it = |n: &u32| self.get(*n).is_some_and(|e| e.name == *name);
        self.by_name.find(self.hash(name), is_it).copied()
    }

    /// The number of a service, which from now on is known.
    pub fn enter(&mut self, name: &ObjectName) -> u32 {
        if let Some(number) = self.find(name) {
            return number;
        }
        let entry = Entry {
            name: ObjectName {
                namespace: self.texts.shared(&name.namespace),
                name: name.name.clone(),
            },
            view: None,
            slices: Vec::new(),
            sets: Vec::new(),
            dirty: false,
        };
        let number = self.free.pop().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(number as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        let Self {
            by_name,
            entries,
            hasher,
            ..
        } = self;
        let again = |n: &u32| {
            let entry = entries[*n as usize].as_ref();
            entry.map_or(0, |e| hasher.hash_one(&e.name))
        };
        by_name.insert_unique(hasher.hash_one(name), number, again);
        number
    }

    pub fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number as usize)?.as_mut()
    }

    pub fn by_name(&self, name: &ObjectName) -> Option<&Entry> {
        self.get(self.find(name)?)
    }

    /// A service as it was observed.
    pub fn view(&mut self, number: u32) -> Option<ServiceView> {
        let entry = self.entries.get(number as usize)?.as_ref()?;
        Some(entry.view.as_ref()?.view(entry.name.clone(), &mut self.texts))
    }

    /// Forgets a service that is over.
    pub fn remove(&mut self, number: u32) {
        let Some(entry) = self.get(number) else { return };
        let hash = self.hash(&entry.name);
        if let Ok(place) = self.by_name.find_entry(hash, |n| *n == number) {
            place.remove();
        }
        self.entries[number as usize] = None;
        self.free.push(number);
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.entries.len() as u32
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// The service to which a slice of this name belongs.
    pub fn owner(&self, slice: &ObjectName) -> Option<u32> {
        let hash = self.slice_hash(slice);
        let found = self.by_slice.find(spread(hash), self.is_slice(hash, slice))?;
        Some(found.service)
    }

    /// Puts a slice into a service, in the place of the one of this name there; no other service may have one.
    pub fn put_slice(&mut self, service: u32, own: &ObjectName, slice: PackedSlice) {
        let Some(entry) = self.get_mut(service) else {
            return;
        };
        match entry.place(&own.name) {
            Ok(i) => entry.slices[i] = slice,
            Err(i) => {
                entry.slices.reserve_exact(1);
                entry.slices.insert(i, slice);
                let hash = self.slice_hash(own);
                let new = SliceOf { hash, service };
                self.by_slice.insert_unique(spread(hash), new, |s| spread(s.hash));
            }
        }
    }

    /// Takes a slice away and returns the service that had it.
    pub fn take_slice(&mut self, own: &ObjectName) -> Option<u32> {
        let service = self.owner(own)?;
        let hash = self.slice_hash(own);
        let is_it = |s: &SliceOf| s.hash == hash && s.service == service;
        if let Ok(place) = self.by_slice.find_entry(spread(hash), is_it) {
            place.remove();
        }
        let entry = self.get_mut(service)?;
        if let Ok(i) = entry.place(&own.name) {
            entry.slices.remove(i);
        }
        Some(service)
    }

    /// Whether this is the slice of that name.
    fn is_slice<'a>(&'a self, hash: u32, own: &'a ObjectName) -> impl Fn(&SliceOf) -> bool + 'a {
        move |s| {
            let entry = self.get(s.service).filter(|_| s.hash == hash);
            entry.is_some_and(|e| e.name.namespace == own.namespace && e.place(&own.name).is_ok())
        }
    }

    fn hash(&self, name: &ObjectName) -> u64 {
        self.hasher.hash_one(name)
    }

    fn slice_hash(&self, own: &ObjectName) -> u32 {
        self.hasher.hash_one(own) as u32
    }
}
