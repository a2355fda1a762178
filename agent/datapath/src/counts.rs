//! The pages of counts: made as numbers are given out, read as a whole.
use crate::error::DatapathError;
use crate::sys;
use crate::table::Table;
use datapath_abi::{COUNT_PAGE, COUNT_PAGES, CountNumber, Counts, SetId, maps};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many places each number has on this machine, as a power of two.
pub(crate) fn shards() -> Result<u8, DatapathError> {
    let cpus = aya::util::nr_cpus().map_err(|(file, source)| DatapathError::Path {
        path: file.into(),
        source,
    })?;
    Ok(CountNumber::shards(cpus))
}

/// What was counted under each number, all CPUs together, and for whose set.
pub(crate) type Counted = BTreeMap<(SetId, CountNumber), Counts>;

/// The array of arrays.
pub(crate) struct CountPages {
    outer: OwnedFd,
    shards: u8,
    pages: Mutex<Vec<Table<u32, Counts>>>,
}

impl CountPages {
    /// Opens what is pinned.
    pub fn open(folder: &Path) -> Result<Self, DatapathError> {
        let path = folder.join(maps::COUNTS);
        let outer = sys::open_pinned(&path).map_err(DatapathError::path(&path))?;
        let mut pages = Vec::new();
        while let Some(page) = standing(&outer, pages.len())? {
            pages.push(page);
        }
        Ok(Self {
            outer,
            shards: shards()?,
            pages: Mutex::new(pages),
        })
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Table<u32, Counts>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the places of all numbers below this one.
    pub fn grow(&self, numbers: u32) -> Result<(), DatapathError> {
        let wanted = numbers
            .div_ceil(CountNumber::per_page(self.shards))
            .min(COUNT_PAGES);
        let mut pages = self.pages();
        while pages.len() < wanted as usize {
            let page = create_page().map_err(failed("given another page"))?;
            let number = pages.len() as u32;
            sys::put_page(self.outer.as_fd(), number, page.as_fd()).map_err(failed("made larger"))?;
            pages.push(Table::new(maps::COUNTS, page)?);
        }
        Ok(())
    }

    /// Clears what was counted under these numbers.
    pub fn clear(&self, numbers: impl IntoIterator<Item = CountNumber>) -> Result<(), DatapathError> {
        let mut by_page: BTreeMap<u32, Vec<(u32, Counts)>> = BTreeMap::new();
        for number in numbers {
            for cpu in 0..1 << self.shards {
                let (page, index) = number.place(self.shards, cpu);
                by_page.entry(page).or_default().push((index, Counts::default()));
            }
        }
        let pages = self.pages();
        for (page, places) in by_page {
            if let Some(page) = pages.get(page as usize) {
                page.write(&places)?;
            }
        }
        Ok(())
    }

    /// Clears what was counted under this number and all behind it.
    pub fn clear_from(&self, first: CountNumber) -> Result<(), DatapathError> {
        let room = self.pages().len() as u32 * CountNumber::per_page(self.shards);
        self.clear((first.0..room).map(CountNumber))
    }

    /// Everything that is not zero.
    pub fn read(&self) -> Result<Counted, DatapathError> {
        let mut all = Counted::new();
        for (number, page) in (0_u32..).zip(self.pages().iter()) {
            let first = number * CountNumber::per_page(self.shards);
            for (index, counts) in page.entries()? {
                if counts.set != SetId::default() {
                    let number = CountNumber(first + (index >> self.shards));
                    let sum = all.entry((counts.set, number)).or_default();
                    *sum = counts.plus(sum);
                }
            }
        }
        Ok(all)
    }
}

/// A page like those that the object declares. Linux 5.15 to 6.2 takes it for one only if it says what types it has, as the
/// object does.
fn create_page() -> std::io::Result<OwnedFd> {
    let size = size_of::<Counts>() as u32;
    let types = sys::load_types(&types(size))?;
    sys::create_count_page(COUNT_PAGE, size, types.as_fd(), (KEY_TYPE, VALUE_TYPE))
}

/// Numbers of the two types that [`types`] describes.
const KEY_TYPE: u32 = 1;
const VALUE_TYPE: u32 = 2;

/// BTF of a number of 32 bits, and of a structure of so many bytes that begins with one
/// (<https://docs.kernel.org/bpf/btf.html>).
fn types(size: u32) -> Vec<u8> {
    const INT: u32 = 1 << 24;
    const STRUCT_OF_ONE: u32 = (4 << 24) | 1;
    let names = b"\0u32\0counts\0set\0";
    let types = [
        // Name, kind, bytes, bits.
        [1, INT, 4, 32].as_slice(),
        // Name, kind, bytes; the member's name, type and place.
        &[5, STRUCT_OF_ONE, size, 12, KEY_TYPE, 0],
    ]
    .concat();
    let length = (types.len() * 4) as u32;
    let header = [0x0001_eb9f, 24, 0, length, length, names.len() as u32];
    let words = header.iter().chain(&types).flat_map(|w| w.to_le_bytes());
    words.chain(names.iter().copied()).collect()
}

/// The page with this index, if it was made.
fn standing(outer: &OwnedFd, index: usize) -> Result<Option<Table<u32, Counts>>, DatapathError> {
    let mut id = [0_u32];
    let index = index as u32;
    if index >= COUNT_PAGES || !sys::lookup(outer.as_fd(), &index, &mut id).map_err(failed("read"))? {
        return Ok(None);
    }
    let page = sys::map_by_id(id[0]).map_err(failed("opened"))?;
    Table::new(maps::COUNTS, page).map(Some)
}

fn failed(verb: &'static str) -> impl FnOnce(std::io::Error) -> DatapathError {
    move |source| DatapathError::Map {
        map: maps::COUNTS,
        verb,
        source,
    }
}
