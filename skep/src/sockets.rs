//! Sockets that a keeper holds for a process which it starts again and again: what arrives while there is none waits in
//! them. They are handed on by the convention of systemd, sd_listen_fds(3).
use crate::kernel;
use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

/// Open sockets and the name they are handed on by.
#[derive(Clone)]
pub struct Held {
    name: &'static str,
    sockets: Arc<[OwnedFd]>,
}

/// The sockets of the cluster's DNS. A node on which they cannot be opened says so, and its agent will try again.
pub fn dns(addresses: &[IpAddr]) -> Held {
    let mut sockets = Vec::new();
    for &address in addresses {
        match agent::dns::sockets::open(SocketAddr::new(address, agent::dns::PORT)) {
            Ok(both) => sockets.extend(both),
            Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
        }
    }
    Held {
        name: agent::dns::sockets::NAME,
        sockets: sockets.into(),
    }
}

impl Held {
    /// The options of `skep tether` that make it hand them on.
    pub fn options(&self) -> Vec<String> {
        let each = |socket: &OwnedFd| format!("--socket={}:{}", self.name, socket.as_raw_fd());
        self.sockets.iter().map(each).collect()
    }
}

/// Takes sockets, named as in [`Held::options`], from the parent process and places them where the program that this
/// process becomes looks for them.
///
/// # Errors
/// When the parent's sockets cannot be had.
pub fn hand_on(parent: i32, sockets: &[String], command: &mut Command) -> Result<()> {
    if sockets.is_empty() {
        return Ok(());
    }
    let parent = Pid::from_raw(parent).context("the parent has no number")?;
    let parent = pidfd_open(parent, PidfdFlags::empty()).context("cannot open the parent process")?;
    let mut taken = Vec::new();
    let mut names = Vec::new();
    for socket in sockets {
        let named = socket
            .split_once(':')
            .and_then(|(name, fd)| Some((name, fd.parse().ok()?)));
        let (name, fd) = named.with_context(|| format!("`{socket}` is no socket"))?;
        let copy = pidfd_getfd(&parent, fd, PidfdGetfdFlags::empty());
        taken.push(copy.context("cannot take the parent's socket")?);
        names.push(name);
    }
    drop(parent);
    kernel::place(taken)?;
    command
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    Ok(())
}
