//! Waiting for signals as process 1 does: blocked first, then taken one by one (`signal(7)`, `sigwaitinfo(2)`).
//!
//! Blocking matters: the kernel drops signals that process 1 neither handles nor blocks.
#![allow(unsafe_code)]

use std::time::Duration;

/// A set of signals, blocked in this thread and all that it starts.
pub struct Blocked(libc::sigset_t);

impl Blocked {
    /// Blocks `signals`. Call it before any thread is started: threads inherit what is blocked.
    pub fn new(signals: &[i32]) -> Self {
        // SAFETY: a zeroed sigset_t is a valid place for sigemptyset to fill, all pointers are to this local, and
        // sigaddset refuses numbers that are no signals.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in signals {
                libc::sigaddset(&mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            Self(set)
        }
    }

    /// The next of the signals, as soon as it comes; `None` when `deadline` passes before.
    pub fn wait(&self, deadline: Option<Duration>) -> Option<i32> {
        let limit = deadline.map(|d| libc::timespec {
            tv_sec: d.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: d.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialised, `limit` is null or points to a timespec that lives until the call returns,
        // and a null information pointer is allowed.
        let signal = unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), limit) };
        (signal > 0).then_some(signal)
    }
}

/// Takes the exit states of all children that have ended, so that none stays behind as a zombie.
pub fn reap() {
    // SAFETY: a null status pointer is allowed; WNOHANG returns at once.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
