//! Doing something in another network namespace.
use crate::link::{self, LinkError, Netlink};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

/// An open network namespace: a file of `/proc/<pid>/ns/net` or a bind mount of one.
#[derive(Debug)]
pub struct NetNs(File);

impl NetNs {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`LinkError::Namespace`] when the file is missing, as when its last process has ended.
    pub fn open(path: &Path) -> Result<Self, LinkError> {
        File::open(path).map(Self).map_err(|source| LinkError::Namespace {
            path: path.to_owned(),
            source,
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn current() -> Result<Self, LinkError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The descriptor, for netlink messages that name a namespace by it.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Moves the calling thread into this namespace, for good.
    ///
    /// # Errors
    /// The kernel's refusal: the caller lacks `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> std::io::Result<()> {
        Ok(move_into_link_name_space(
            self.0.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Runs `work` with a netlink connection of this namespace, on a thread of its own that lives in it. Files under
    /// `/proc/sys/net` that `work` touches are this namespace's, too.
    ///
    /// # Errors
    /// What `work` returns, or [`LinkError`] when the namespace cannot be entered.
    pub fn run<T, E, F, W>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(Netlink) -> W + Send,
        W: Future<Output = Result<T, E>>,
        T: Send,
        E: Send + From<LinkError>,
    {
        let inside = || -> Result<T, E> {
            self.enter().map_err(LinkError::Enter)?;
            link::block_on(work)
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}
