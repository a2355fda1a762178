//! The file system side of mounts: tmpfs for volumes in memory, and unmounting what a pod leaves.

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Mounts a tmpfs of at most `bytes` (half the memory when zero) on `folder`, unless one is there.
///
/// # Errors
/// I/O errors of `mount(2)`.
pub fn tmpfs(folder: &Path, bytes: i64) -> io::Result<()> {
    if mounted_below(folder)?.iter().any(|m| m == folder) {
        return Ok(());
    }
    let options = if bytes > 0 {
        format!("size={bytes},mode=1777")
    } else {
        "mode=1777".to_owned()
    };
    let options = std::ffi::CString::new(options)?;
    mount(
        "tmpfs",
        folder,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Mount points at or below `folder`, the deepest first.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mounted_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|p| p.starts_with(folder)).collect();
    below.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(below)
}

/// The mount table writes spaces and the like as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out.into()
}

/// Unmounts everything at or below `folder` and removes it. Fine when it is not there.
///
/// # Errors
/// I/O errors; the rest stays.
pub fn remove_all(folder: &Path) -> io::Result<()> {
    for point in mounted_below(folder)? {
        unmount(&point, UnmountFlags::DETACH)?;
    }
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_spaces_are_spaces() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from("/a b\\c"));
    }

    #[test]
    fn removing_a_folder_that_is_not_there_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        remove_all(&dir.path().join("none")).unwrap();
    }
}
