//! Writing many entries on several processors: maps take entries on each of them at once, and making an entry costs the kernel more than
//! its call does.
use crate::error::DatapathError;
use crate::sys::Plain;
use crate::table::{BATCH, Table};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Fewer entries are written by the calling thread: beyond, threads are worth their start.
const ALONE: usize = 2048;
/// More processors are not taken for it: a node has other work.
const MOST_THREADS: usize = 4;

type Job<'a> = Box<dyn Fn() -> Result<(), DatapathError> + Send + Sync + 'a>;

/// Things to do in any order.
#[derive(Default)]
pub(crate) struct Jobs<'a> {
    jobs: Vec<Job<'a>>,
    entries: usize,
}

impl<'a> Jobs<'a> {
    /// Writes entries.
    pub fn write<K: Plain + Send + Sync, V: Plain + Send + Sync>(
        mut self,
        table: &'a Table<K, V>,
        entries: &'a [(K, V)],
    ) -> Self {
        self.entries += entries.len();
        let parts = entries.chunks(BATCH);
        self.jobs
            .extend(parts.map(|part| Box::new(move || table.write(part)) as Job<'a>));
        self
    }

    /// Deletes entries.
    pub fn delete<K: Plain + Send + Sync, V: Plain + Send + Sync>(
        mut self,
        table: &'a Table<K, V>,
        keys: &'a [K],
    ) -> Self {
        self.entries += keys.len();
        let parts = keys.chunks(BATCH);
        self.jobs
            .extend(parts.map(|part| Box::new(move || table.delete(part)) as Job<'a>));
        self
    }

    /// Does everything; after an error no more is begun. The first error counts.
    pub fn run(self) -> Result<(), DatapathError> {
        let threads = if self.entries <= ALONE { 1 } else { processors() };
        run(threads.min(self.jobs.len()), self.jobs.len(), |i| self.jobs[i]())
    }
}

fn processors() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MOST_THREADS)
}

/// Does jobs `0..count` on so many threads, the calling one among them. After an error no more is begun.
pub(crate) fn run<E: Send>(
    threads: usize,
    count: usize,
    job: impl Fn(usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            if let Err(e) = job(i) {
                next.store(count, Ordering::Relaxed);
                failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(e);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // One that cannot be started leaves its work to the others.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_on_any_number_of_threads() {
        for threads in [0, 1, 3] {
            let done: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let result: Result<(), ()> = run(threads, done.len(), |i| {
                done[i].fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            assert_eq!(result, Ok(()));
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn an_error_is_told_and_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let result = run(1, 100, |i| {
            begun.fetch_add(1, Ordering::Relaxed);
            if i == 4 { Err("full") } else { Ok(()) }
        });
        assert_eq!(result, Err("full"));
        assert_eq!(begun.load(Ordering::Relaxed), 5);
    }
}
