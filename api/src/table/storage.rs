//! Rows of volumes, claims and what provides them.

use super::network::default_name;
use super::{Layout, View};
use crate::catalog::Resource;
use crate::kinds::access::{at, flag, has, list, text};
use serde_json::Value;

pub(super) fn layout(res: &Resource) -> Option<Layout> {
    Some(match (res.group.as_str(), res.plural.as_str()) {
        ("", "persistentvolumes") => Layout {
            columns: &[
                "Name:s",
                "Capacity:s",
                "Access Modes:s",
                "Reclaim Policy:s",
                "Status:s",
                "Claim:s",
                "StorageClass:s",
                "VolumeAttributesClass:s",
                "Reason:s",
                "Age:s",
                "VolumeMode:s!",
            ],
            cells: volume,
        },
        ("", "persistentvolumeclaims") => Layout {
            columns: &[
                "Name:s",
                "Status:s",
                "Volume:s",
                "Capacity:s",
                "Access Modes:s",
                "StorageClass:s",
                "VolumeAttributesClass:s",
                "Age:s",
                "VolumeMode:s!",
            ],
            cells: claim,
        },
        ("storage.k8s.io", "storageclasses") => Layout {
            columns: &[
                "Name:s",
                "Provisioner:s",
                "ReclaimPolicy:s",
                "VolumeBindingMode:s",
                "AllowVolumeExpansion:s",
                "Age:s",
            ],
            cells: class,
        },
        ("storage.k8s.io", "volumeattachments") => Layout {
            columns: &["Name:s", "Attacher:s", "PV:s", "Node:s", "Attached:b", "Age:s"],
            cells: attachment,
        },
        ("storage.k8s.io", "csinodes") => Layout {
            columns: &["Name:s", "Drivers:i", "Age:s"],
            cells: |v| vec![v.name(), v.count("spec.drivers"), v.age()],
        },
        ("storage.k8s.io", "csistoragecapacities") => Layout {
            columns: &["Name:s", "StorageClassName:s", "Capacity:s"],
            cells: |v| {
                vec![
                    v.name(),
                    v.text("storageClassName"),
                    v.text_or("capacity", "<unset>"),
                ]
            },
        },
        ("storage.k8s.io", "csidrivers") => Layout {
            columns: &[
                "Name:s",
                "AttachRequired:b",
                "PodInfoOnMount:b",
                "StorageCapacity:b",
                "TokenRequests:s",
                "RequiresRepublish:b",
                "Modes:s",
                "Age:s",
            ],
            cells: driver,
        },
        ("storage.k8s.io", "volumeattributesclasses") => Layout {
            columns: &["Name:s", "DriverName:s", "Age:s"],
            cells: |v| {
                let name = default_name(v, "volumeattributesclass.alpha.kubernetes.io/is-default-class");
                vec![name, v.text("driverName"), v.age()]
            },
        },
        _ => return None,
    })
}

/// `RWO,ROX,RWX,RWOP`, in this order.
fn modes(object: &Value, path: &str) -> Value {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let have = |mode: &str| list(object, path).iter().any(|m| m == mode);
    let shown: Vec<&str> = short
        .iter()
        .filter(|(mode, _)| have(mode))
        .map(|(_, short)| *short)
        .collect();
    shown.join(",").into()
}

fn phase(v: &View<'_>) -> Value {
    if has(v.object, "metadata.deletionTimestamp") {
        "Terminating".into()
    } else {
        v.text("status.phase")
    }
}

fn size(object: &Value, path: &str) -> Value {
    at(object, path)
        .get("storage")
        .and_then(Value::as_str)
        .unwrap_or("0")
        .into()
}

fn volume(v: &View<'_>) -> Vec<Value> {
    let claim = at(v.object, "spec.claimRef");
    let claim = if claim.is_null() {
        String::new()
    } else {
        format!("{}/{}", text(claim, "namespace"), text(claim, "name"))
    };
    vec![
        v.name(),
        size(v.object, "spec.capacity"),
        modes(v.object, "spec.accessModes"),
        v.text("spec.persistentVolumeReclaimPolicy"),
        phase(v),
        claim.into(),
        v.text("spec.storageClassName"),
        v.text_or("spec.volumeAttributesClassName", "<unset>"),
        v.text("status.reason"),
        v.age(),
        v.text_or("spec.volumeMode", "<unset>"),
    ]
}

fn claim(v: &View<'_>) -> Vec<Value> {
    let bound = !text(v.object, "spec.volumeName").is_empty();
    let (capacity, modes) = if bound {
        (
            size(v.object, "status.capacity"),
            modes(v.object, "status.accessModes"),
        )
    } else {
        ("".into(), "".into())
    };
    vec![
        v.name(),
        phase(v),
        v.text("spec.volumeName"),
        capacity,
        modes,
        v.text("spec.storageClassName"),
        v.text_or("spec.volumeAttributesClassName", "<unset>"),
        v.age(),
        v.text_or("spec.volumeMode", "<unset>"),
    ]
}

fn class(v: &View<'_>) -> Vec<Value> {
    vec![
        default_name(v, "storageclass.kubernetes.io/is-default-class"),
        v.text("provisioner"),
        v.text_or("reclaimPolicy", "Delete"),
        v.text_or("volumeBindingMode", "Immediate"),
        flag(v.object, "allowVolumeExpansion").into(),
        v.age(),
    ]
}

fn attachment(v: &View<'_>) -> Vec<Value> {
    vec![
        v.name(),
        v.text("spec.attacher"),
        v.text("spec.source.persistentVolumeName"),
        v.text("spec.nodeName"),
        flag(v.object, "status.attached").into(),
        v.age(),
    ]
}

fn driver(v: &View<'_>) -> Vec<Value> {
    let audiences: Vec<&str> = list(v.object, "spec.tokenRequests")
        .iter()
        .map(|t| text(t, "audience"))
        .collect();
    let tokens = if audiences.is_empty() {
        "<unset>".to_owned()
    } else {
        audiences.join(",")
    };
    let modes: Vec<&str> = list(v.object, "spec.volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let modes = if modes.is_empty() {
        "<none>".to_owned()
    } else {
        modes.join(",")
    };
    vec![
        v.name(),
        at(v.object, "spec.attachRequired")
            .as_bool()
            .unwrap_or(true)
            .into(),
        flag(v.object, "spec.podInfoOnMount").into(),
        flag(v.object, "spec.storageCapacity").into(),
        tokens.into(),
        flag(v.object, "spec.requiresRepublish").into(),
        modes.into(),
        v.age(),
    ]
}
