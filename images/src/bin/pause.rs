//! Holds a pod's namespaces open, and takes the exit states of processes whose parents in the pod have ended.
use images::signals::{Blocked, reap};

fn main() {
    let signals = Blocked::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]);
    loop {
        match signals.wait(None) {
            Some(libc::SIGCHLD) => reap(),
            Some(_) => return,
            None => {}
        }
    }
}
