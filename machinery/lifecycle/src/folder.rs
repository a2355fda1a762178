//! Waiting for what another process does to a folder, as the kernel tells it (inotify(7)), instead of looking again and
//! again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Changes in a folder: entries that come, go, are replaced, or get another owner or mode.
pub struct Folder {
    events: AsyncFd<OwnedFd>,
}

impl Folder {
    /// Watches the folder, or where it does not exist yet the nearest one above it that does. Has to be called within
    /// a runtime.
    ///
    /// # Errors
    /// When the kernel has no room for another watch (`fs.inotify.max_user_instances`).
    pub fn watch(path: &Path) -> io::Result<Self> {
        let wanted = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE;
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        for folder in path.ancestors() {
            match add_watch(&events, folder, wanted) {
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        #[allow(
            deprecated,
            reason = "safe for a descriptor that is owned and never replaced, as here"
        )]
        let events = AsyncFd::with_interest(events, Interest::READABLE)?;
        Ok(Self { events })
    }

    /// Ready once something has changed since the watch began or since this was last ready.
    ///
    /// # Errors
    /// When the watch cannot be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            match ready.try_io(|events| drain(events.get_ref())) {
                Ok(read) => return read,
                Err(_) => continue,
            }
        }
    }
}

/// Takes what has been told; `WouldBlock` when that is nothing.
fn drain(events: &OwnedFd) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(events, &mut room);
    reader.next()?;
    while reader.next().is_ok() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_new_entry_is_told_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::watch(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        timeout(SOON, folder.changed()).await.unwrap().unwrap();
        assert!(
            timeout(Duration::from_millis(20), folder.changed())
                .await
                .is_err()
        );
        std::fs::write(dir.path().join("b"), "x").unwrap();
        timeout(SOON, folder.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_yet_to_be_made_is_awaited_in_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("x/y");
        let mut folder = Folder::watch(&below).unwrap();
        std::fs::create_dir_all(&below).unwrap();
        timeout(SOON, folder.changed()).await.unwrap().unwrap();
    }
}
