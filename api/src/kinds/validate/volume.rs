//! Rules for volumes and for what mounts them.

use super::super::access::{at, entries, has, int, list, text};
use super::{Causes, child, invalid_each, required};
use crate::names;
use crate::status::Cause;
use serde_json::Value;
use std::collections::HashMap;

/// The volumes of a pod without faults, by name.
pub(super) type Volumes<'a> = HashMap<&'a str, &'a Value>;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// Checks all volumes; those that are fine can be mounted.
pub(super) fn volumes<'a>(volumes: &'a [Value], path: &str, out: &mut Causes) -> Volumes<'a> {
    let mut good = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let before = out.len();
        source(volume, &path, out);
        let name = text(volume, "name");
        if required(volume, "name", &path, out).is_some() {
            invalid_each(out, &child(&path, "name"), name, names::dns_label(name));
        }
        if good.contains_key(name) {
            out.push(Cause::duplicate(child(&path, "name"), &name.into()));
        }
        if out.len() == before {
            good.insert(name, volume);
        }
    }
    good
}

fn source(volume: &Value, path: &str, out: &mut Causes) {
    let mut sources = entries(volume, "").filter(|(key, value)| *key != "name" && !value.is_null());
    let Some((kind, value)) = sources.next() else {
        out.push(Cause::required(path, "must specify a volume type"));
        return;
    };
    one_source(kind, value, &child(path, kind), out);
    for (other, _) in sources {
        out.push(Cause::forbidden(
            child(path, other),
            "may not specify more than 1 volume type",
        ));
    }
}

fn one_source(kind: &str, value: &Value, path: &str, out: &mut Causes) {
    match kind {
        "secret" => {
            required(value, "secretName", path, out);
            mode(value, "defaultMode", path, out);
            items(value, path, out);
        }
        "configMap" => {
            required(value, "name", path, out);
            mode(value, "defaultMode", path, out);
            items(value, path, out);
        }
        "downwardAPI" => mode(value, "defaultMode", path, out),
        "projected" => projected(value, path, out),
        "persistentVolumeClaim" => drop(required(value, "claimName", path, out)),
        "hostPath" => host_path(value, path, out),
        "nfs" => nfs(value, path, out),
        "csi" => drop(required(value, "driver", path, out)),
        "ephemeral" if !has(value, "volumeClaimTemplate") => {
            out.push(Cause::required(child(path, "volumeClaimTemplate"), ""));
        }
        _ => {}
    }
}

fn host_path(value: &Value, path: &str, out: &mut Causes) {
    if let Some(target) = required(value, "path", path, out) {
        no_backsteps(target, &child(path, "path"), out);
    }
    let kind = text(value, "type");
    if !HOST_PATH.contains(&kind) {
        out.push(Cause::not_supported(child(path, "type"), &kind.into(), HOST_PATH));
    }
}

fn nfs(value: &Value, path: &str, out: &mut Causes) {
    required(value, "server", path, out);
    if let Some(target) = required(value, "path", path, out).filter(|target| !target.starts_with('/')) {
        out.push(Cause::invalid_str(
            child(path, "path"),
            target,
            "must be an absolute path",
        ));
    }
}

fn mode(value: &Value, field: &str, path: &str, out: &mut Causes) {
    if let Some(mode) = int(value, field).filter(|mode| !(0..=0o777).contains(mode)) {
        out.push(Cause::invalid(child(path, field), &mode.into(), MODE));
    }
}

fn items(source: &Value, path: &str, out: &mut Causes) {
    for (index, item) in list(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        required(item, "key", &path, out);
        if let Some(target) = required(item, "path", &path, out) {
            descending(target, &child(&path, "path"), out);
            if target.starts_with("..") && !target.starts_with("../") && target != ".." {
                out.push(Cause::invalid_str(
                    child(&path, "path"),
                    target,
                    "must not start with '..'",
                ));
            }
        }
        mode(item, "mode", &path, out);
    }
}

fn projected(value: &Value, path: &str, out: &mut Causes) {
    mode(value, "defaultMode", path, out);
    for (index, source) in list(value, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let mut kinds = entries(source, "").filter(|(_, value)| !value.is_null());
        let Some((kind, value)) = kinds.next() else {
            out.push(Cause::required(path, "must specify a volume type"));
            continue;
        };
        match kind {
            "secret" | "configMap" => {
                required(value, "name", &child(&path, kind), out);
                items(value, &child(&path, kind), out);
            }
            "serviceAccountToken" => token(value, &child(&path, kind), out),
            _ => {}
        }
        for (other, _) in kinds {
            out.push(Cause::forbidden(
                child(&path, other),
                "may not specify more than 1 volume type",
            ));
        }
    }
}

fn token(value: &Value, path: &str, out: &mut Causes) {
    let seconds = int(value, "expirationSeconds").unwrap_or(3600);
    let field = child(path, "expirationSeconds");
    if seconds < 600 {
        out.push(Cause::invalid(
            field,
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        ));
    } else if seconds > 1 << 32 {
        out.push(Cause::invalid(
            field,
            &seconds.into(),
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if let Some(target) = required(value, "path", path, out) {
        descending(target, &child(path, "path"), out);
    }
}

fn no_backsteps(target: &str, path: &str, out: &mut Causes) {
    if target.split('/').any(|part| part == "..") {
        out.push(Cause::invalid_str(path, target, "must not contain '..'"));
    }
}

/// A path below something: relative and without steps back.
fn descending(target: &str, path: &str, out: &mut Causes) {
    if target.starts_with('/') {
        out.push(Cause::invalid_str(path, target, "must be a relative path"));
    }
    no_backsteps(target, path, out);
}

/// `volumeMounts` and `volumeDevices` of a container.
pub(super) fn mounts(container: &Value, path: &str, volumes: &Volumes<'_>, out: &mut Causes) {
    let mut seen: Vec<&str> = Vec::new();
    let devices = list(container, "volumeDevices");
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = text(mount, "name");
        required(mount, "name", &path, out);
        if !volumes.contains_key(name) {
            out.push(Cause::not_found(child(&path, "name"), &name.into()));
        }
        required(mount, "mountPath", &path, out);
        let target = text(mount, "mountPath");
        if seen.contains(&target) {
            out.push(Cause::invalid_str(
                child(&path, "mountPath"),
                target,
                "must be unique",
            ));
        }
        seen.push(target);
        if devices.iter().any(|device| text(device, "name") == name) {
            out.push(Cause::invalid_str(
                child(&path, "name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        sub_paths(mount, &path, out);
    }
    self::devices(devices, &child(path, "volumeDevices"), volumes, out);
}

fn sub_paths(mount: &Value, path: &str, out: &mut Causes) {
    let (plain, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    if !plain.is_empty() {
        descending(plain, &child(path, "subPath"), out);
    }
    if !expression.is_empty() {
        if !plain.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            out.push(Cause::invalid_str(child(path, "subPathExpr"), expression, why));
        }
        descending(expression, &child(path, "subPathExpr"), out);
    }
}

fn devices(devices: &[Value], path: &str, volumes: &Volumes<'_>, out: &mut Causes) {
    for (index, device) in devices.iter().enumerate() {
        let path = format!("{path}[{index}]");
        required(device, "name", &path, out);
        let name = text(device, "name");
        match volumes.get(name) {
            None => out.push(Cause::not_found(child(&path, "name"), &name.into())),
            Some(volume)
                if at(volume, "persistentVolumeClaim").is_null() && at(volume, "ephemeral").is_null() =>
            {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                out.push(Cause::invalid_str(child(&path, "name"), name, why));
            }
            Some(_) => {}
        }
        required(device, "devicePath", &path, out);
    }
}
