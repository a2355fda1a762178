//! Writes a volume's files so that a reader sees all of one version or all of the next.
//!
//! The layout is upstream's (`AtomicWriter`): a folder per version, `..data` pointing at the current one, and a link
//! through `..data` for each top-level name. One rename of `..data` changes everything.

use agent_pods::volumes::{File, Files};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const CURRENT: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Writes `files` into `folder`, which exists. True when something changed.
///
/// # Errors
/// I/O errors; the old version then still stands. Paths that leave the folder are refused.
pub fn write(folder: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let current = folder.join(CURRENT);
    if fs::metadata(&current).is_ok() && same(&current, files)? {
        return Ok(false);
    }
    let old = fs::read_link(&current).ok();
    let version = new_version(folder)?;
    for (path, file) in files {
        write_file(&version, path, file, group)?;
    }
    let name = version.file_name().map(PathBuf::from).unwrap_or_default();
    let next = folder.join(NEXT);
    remove_if_there(fs::remove_file(&next))?;
    symlink(name, &next)?;
    fs::rename(&next, &current)?;
    link_names(folder, files)?;
    if let Some(old) = old {
        remove_if_there(fs::remove_dir_all(folder.join(old)))?;
    }
    Ok(true)
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A new folder `..<time>.<n>`; hidden names that begin with two dots are reserved for this.
fn new_version(folder: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    for n in 0..u32::MAX {
        let path = folder.join(format!("..{stamp}.{n}"));
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                return Ok(path);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn write_file(version: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("path {path:?} leaves the volume"),
        ));
    }
    let target = version.join(relative);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&target, &file.data)?;
    // The group of the pod may read what the owner may (upstream's SetVolumeOwnership).
    let mode = if group.is_some() {
        file.mode | 0o040 | ((file.mode & 0o100) >> 3)
    } else {
        file.mode
    };
    fs::set_permissions(&target, Permissions::from_mode(mode))?;
    if group.is_some() {
        std::os::unix::fs::chown(&target, None, group)?;
    }
    Ok(())
}

/// Whether the version at `current` holds exactly `files`.
fn same(current: &Path, files: &Files) -> io::Result<bool> {
    let mut there = BTreeSet::new();
    collect(current, Path::new(""), &mut there)?;
    if !there
        .iter()
        .map(String::as_str)
        .eq(files.keys().map(String::as_str))
    {
        return Ok(false);
    }
    for (path, file) in files {
        if fs::read(current.join(path))? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(root: &Path, below: &Path, out: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, out)?;
        } else {
            out.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Links each top-level name through `..data` and removes links to names that are gone.
fn link_names(folder: &Path, files: &Files) -> io::Result<()> {
    let names: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &names {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File {
            data: data.into(),
            mode: 0o640,
        };
        list.iter()
            .map(|(path, data)| ((*path).to_owned(), file(data)))
            .collect()
    }

    #[test]
    fn files_appear_under_their_names_and_paths_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &files(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("d/e")).unwrap(), "2");
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn an_update_replaces_removes_and_leaves_one_version_behind() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files(&[("a", "1"), ("b", "1")]), None).unwrap();
        assert!(write(dir.path(), &files(&[("a", "2"), ("c", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
        assert!(fs::symlink_metadata(dir.path().join("b")).is_err());
        let versions = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(versions.count(), 1);
    }

    #[test]
    fn writing_the_same_again_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files(&[("a", "1")]), None).unwrap();
        let before = fs::read_link(dir.path().join(CURRENT)).unwrap();
        assert!(!write(dir.path(), &files(&[("a", "1")]), None).unwrap());
        assert_eq!(fs::read_link(dir.path().join(CURRENT)).unwrap(), before);
    }

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &files(&[("../x", "1")]), None).is_err());
        assert!(write(dir.path(), &files(&[("/x", "1")]), None).is_err());
    }

    #[test]
    fn an_empty_volume_is_a_version_without_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Files::new(), None).unwrap());
        assert!(!write(dir.path(), &Files::new(), None).unwrap());
    }
}
