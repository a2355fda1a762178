//! A pod's volumes on the node's disk, and the mounts they become in its containers.

use crate::dirs::Dirs;
use crate::{atomic, mounts};
use agent_pods::expand::expand;
use agent_pods::fields::Facts;
use agent_pods::model::{Member, PodModel};
use agent_pods::quantity;
use agent_pods::volumes::{Sources, VolumeError, files, has_files};
use k8s_cri::v1::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume, VolumeMount};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Why a volume or one of its mounts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its contents.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {error}")]
    Contents {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        error: VolumeError,
    },
    /// The disk.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {path}: {error}")]
    Disk {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A host path of another type than asked for.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath {
        /// The path.
        path: PathBuf,
        /// `Directory`, `File` …
        wanted: String,
    },
    /// A mount of a volume the pod does not have.
    #[error("container mounts volume {0:?}, which the pod does not define")]
    NoVolume(String),
    /// A sub-path that leaves its volume.
    #[error("subPath {0:?} must stay within the volume")]
    SubPath(String),
}

fn disk(volume: &str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let (volume, path) = (volume.to_owned(), path.to_owned());
    move |error| MountError::Disk { volume, path, error }
}

/// Makes every volume of the pod that is not there and brings its files up to date.
///
/// # Errors
/// [`MountError`] of the first volume that fails.
pub fn set_up(dirs: &Dirs, pod: &PodModel, sources: &Sources, facts: &Facts) -> Result<(), MountError> {
    for volume in pod.spec().volumes.iter().flatten() {
        set_up_one(dirs, pod, volume, sources, facts)?;
    }
    Ok(())
}

/// Brings the volumes made of files up to date; true when one changed.
///
/// # Errors
/// [`MountError`] of the first volume that fails.
pub fn refresh(dirs: &Dirs, pod: &PodModel, sources: &Sources, facts: &Facts) -> Result<bool, MountError> {
    let mut changed = false;
    for volume in pod.spec().volumes.iter().flatten().filter(|v| has_files(v)) {
        changed |= write_files(dirs, pod, volume, sources, facts)?;
    }
    Ok(changed)
}

fn fs_group(pod: &PodModel) -> Option<u32> {
    let context = pod.spec().security_context.as_ref()?;
    context.fs_group.and_then(|g| u32::try_from(g).ok())
}

fn set_up_one(
    dirs: &Dirs,
    pod: &PodModel,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
) -> Result<(), MountError> {
    if let Some(empty) = &volume.empty_dir {
        empty_dir(dirs, pod, &volume.name, empty)
    } else if let Some(host) = &volume.host_path {
        host_path(&volume.name, host)
    } else {
        write_files(dirs, pod, volume, sources, facts).map(|_| ())
    }
}

fn write_files(
    dirs: &Dirs,
    pod: &PodModel,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
) -> Result<bool, MountError> {
    let name = volume.name.as_str();
    let contents = |error| MountError::Contents {
        volume: name.to_owned(),
        error,
    };
    let files = files(pod, volume, sources, facts).map_err(contents)?;
    let folder = dirs.volume(pod.uid(), kind(volume), name);
    if fs::metadata(&folder).is_err() {
        fs::create_dir_all(&folder).map_err(disk(name, &folder))?;
        // Secrets and tokens never reach the disk.
        if volume.secret.is_some() || volume.projected.is_some() {
            mounts::tmpfs(&folder, 0).map_err(disk(name, &folder))?;
        }
        let mode = Permissions::from_mode(0o777);
        fs::set_permissions(&folder, mode).map_err(disk(name, &folder))?;
    }
    atomic::write(&folder, &files, fs_group(pod)).map_err(disk(name, &folder))
}

fn kind(volume: &Volume) -> &'static str {
    if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.projected.is_some() {
        "projected"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else {
        "empty-dir"
    }
}

fn empty_dir(
    dirs: &Dirs,
    pod: &PodModel,
    name: &str,
    empty: &EmptyDirVolumeSource,
) -> Result<(), MountError> {
    let folder = dirs.volume(pod.uid(), "empty-dir", name);
    if fs::metadata(&folder).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(&folder).map_err(disk(name, &folder))?;
    if empty.medium.as_deref() == Some("Memory") {
        let limit = empty.size_limit.as_ref().and_then(quantity::units).unwrap_or(0);
        mounts::tmpfs(&folder, limit).map_err(disk(name, &folder))?;
    }
    let group = fs_group(pod);
    if group.is_some() {
        chown(&folder, None, group).map_err(disk(name, &folder))?;
    }
    // With a group its files belong to the group, too (set-group-id).
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(&folder, Permissions::from_mode(mode)).map_err(disk(name, &folder))
}

fn host_path(name: &str, host: &HostPathVolumeSource) -> Result<(), MountError> {
    let path = Path::new(&host.path);
    let wanted = host.type_.as_deref().unwrap_or_default();
    match wanted {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(path).map_err(disk(name, path))?,
        "FileOrCreate" if !path.exists() => fs::write(path, "").map_err(disk(name, path))?,
        _ => {}
    }
    let kind = fs::metadata(path).map(|m| m.file_type());
    let fits = match wanted.trim_end_matches("OrCreate") {
        "" => true,
        "Directory" => kind.is_ok_and(|k| k.is_dir()),
        "File" => kind.is_ok_and(|k| k.is_file()),
        "Socket" => kind.is_ok_and(|k| k.is_socket()),
        "CharDevice" => kind.is_ok_and(|k| k.is_char_device()),
        "BlockDevice" => kind.is_ok_and(|k| k.is_block_device()),
        _ => false,
    };
    match fits {
        true => Ok(()),
        false => Err(MountError::HostPath {
            path: path.to_owned(),
            wanted: wanted.to_owned(),
        }),
    }
}

/// The mounts of one container; sub-path folders are made on the way.
///
/// # Errors
/// [`MountError`]
pub fn container_mounts(
    dirs: &Dirs,
    pod: &PodModel,
    member: &Member,
    env: &[(String, String)],
) -> Result<Vec<Mount>, MountError> {
    let mounts = member.spec.volume_mounts.iter().flatten();
    mounts.map(|mount| one(dirs, pod, mount, env)).collect()
}

fn one(
    dirs: &Dirs,
    pod: &PodModel,
    mount: &VolumeMount,
    env: &[(String, String)],
) -> Result<Mount, MountError> {
    let mut volumes = pod.spec().volumes.iter().flatten();
    let volume = volumes.find(|v| v.name == mount.name);
    let volume = volume.ok_or_else(|| MountError::NoVolume(mount.name.clone()))?;
    let root = match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => dirs.volume(pod.uid(), kind(volume), &volume.name),
    };
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let below = match &mount.sub_path_expr {
        Some(text) => Some(expand(text, lookup)),
        None => mount.sub_path.clone(),
    };
    let host_path = match below.filter(|p| !p.is_empty()) {
        Some(below) => sub_path(&volume.name, &root, &below)?,
        None => {
            make_host_folder(volume, &root)?;
            root
        }
    };
    let read_only = mount.read_only == Some(true) || projected(volume);
    Ok(Mount {
        container_path: mount.mount_path.clone(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: read_only,
        propagation: propagation(mount.mount_propagation.as_deref()) as i32,
        ..Mount::default()
    })
}

/// An untyped host path that is not there becomes a folder, as with every runtime before.
fn make_host_folder(volume: &Volume, root: &Path) -> Result<(), MountError> {
    if volume.host_path.is_some() && !root.exists() {
        fs::create_dir_all(root).map_err(disk(&volume.name, root))?;
    }
    Ok(())
}

/// Volumes the agent writes are read-only inside.
fn projected(volume: &Volume) -> bool {
    has_files(volume)
}

fn propagation(asked: Option<&str>) -> MountPropagation {
    match asked {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

/// The real path of `below` in the volume: made as a folder when missing, and refused when a link leads out.
fn sub_path(volume: &str, root: &Path, below: &str) -> Result<PathBuf, MountError> {
    let refused = || MountError::SubPath(below.to_owned());
    let relative = Path::new(below);
    if relative.is_absolute()
        || relative
            .components()
            .any(|c| c == std::path::Component::ParentDir)
    {
        return Err(refused());
    }
    let root = fs::canonicalize(root).map_err(disk(volume, root))?;
    let path = root.join(relative);
    if fs::symlink_metadata(&path).is_err() {
        // Never through a link: the part that exists is checked before anything is made below it.
        let there = path.ancestors().find(|p| p.exists()).unwrap_or(&root);
        let real = fs::canonicalize(there).map_err(disk(volume, there))?;
        if !real.starts_with(&root) {
            return Err(refused());
        }
        fs::create_dir_all(&path).map_err(disk(volume, &path))?;
        let mode = fs::metadata(&root)
            .map(|m| m.permissions().mode() & 0o7777)
            .unwrap_or(0o750);
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(disk(volume, &path))?;
    }
    let real = fs::canonicalize(&path).map_err(disk(volume, &path))?;
    if real.starts_with(&root) {
        Ok(real)
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> PodModel {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        PodModel::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_config_map_volume_is_a_read_only_mount_of_its_folder() {
        let state = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(state.path());
        let pod = pod(
            json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "a", "volumeMounts": [
                {"name": "v", "mountPath": "/v"}, {"name": "e", "mountPath": "/e", "subPath": "x/y"}]}]}),
        );
        let map = serde_json::from_value(json!({"data": {"k": "1"}})).unwrap();
        let sources = Sources {
            config_maps: [("cm".to_owned(), map)].into(),
            ..Sources::default()
        };
        set_up(&dirs, &pod, &sources, &Facts::default()).unwrap();
        let mounts = container_mounts(&dirs, &pod, &pod.members[0], &[]).unwrap();
        assert!(mounts[0].readonly && !mounts[1].readonly);
        assert_eq!(
            fs::read_to_string(Path::new(&mounts[0].host_path).join("k")).unwrap(),
            "1"
        );
        assert!(Path::new(&mounts[1].host_path).is_dir());
        assert!(!refresh(&dirs, &pod, &sources, &Facts::default()).unwrap());
    }

    #[test]
    fn a_sub_path_must_not_leave_its_volume_even_by_a_link() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        assert!(matches!(
            sub_path("v", root.path(), "../x"),
            Err(MountError::SubPath(_))
        ));
        assert!(matches!(
            sub_path("v", root.path(), "out"),
            Err(MountError::SubPath(_))
        ));
        assert!(matches!(
            sub_path("v", root.path(), "out/new"),
            Err(MountError::SubPath(_))
        ));
        assert!(sub_path("v", root.path(), "in/side").unwrap().is_dir());
    }

    #[test]
    fn host_paths_are_made_or_checked_by_type() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("d").to_string_lossy().into_owned();
        let source = |type_: &str| HostPathVolumeSource {
            path: path.clone(),
            type_: Some(type_.into()),
        };
        assert!(host_path("v", &source("Directory")).is_err());
        host_path("v", &source("DirectoryOrCreate")).unwrap();
        host_path("v", &source("Directory")).unwrap();
        assert!(host_path("v", &source("File")).is_err());
    }
}
