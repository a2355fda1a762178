//! ServiceAccount: every pod runs as an account, with its token in a projected volume.

use api::meta::Meta;
use api::status::Status;
use control_plane_store::Snapshot;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::{Result, fail};
use crate::object;

/// Where programs look for their credentials.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The life of the mounted token, in seconds: an hour and a bit, so that the kubelet renews it.
const TOKEN_SECONDS: i64 = 3607;

/// Sets the account, checks that it exists, and adds token volume, mounts and pull secrets.
pub(super) fn admit(call: &Call, snapshot: &Snapshot, pod: &mut Value) -> Result<()> {
    if !pod["spec"].is_object() || Meta::of(pod).annotation("kubernetes.io/config.mirror").is_some() {
        return Ok(());
    }
    let given = pod["spec"]["serviceAccountName"]
        .as_str()
        .or(pod["spec"]["serviceAccount"].as_str());
    let name = given.filter(|n| !n.is_empty()).unwrap_or("default").to_owned();
    pod["spec"]["serviceAccountName"] = name.clone().into();
    pod["spec"]["serviceAccount"] = name.clone().into();
    let account = account(call, snapshot, pod, &name)?;
    let mount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mount {
        mount_token(pod);
    }
    let none = pod["spec"]["imagePullSecrets"]
        .as_array()
        .is_none_or(Vec::is_empty);
    if none
        && account["imagePullSecrets"]
            .as_array()
            .is_some_and(|s| !s.is_empty())
    {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

fn account(call: &Call, snapshot: &Snapshot, pod: &Value, name: &str) -> Result<Value> {
    let namespace = call.namespace().unwrap_or_default();
    if let Some(entry) = snapshot.get(format!("/registry/serviceaccounts/{namespace}/{name}").as_bytes()) {
        return object::value(entry);
    }
    let why =
        format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    fail(Status::forbidden(
        call.group_resource(),
        Meta::of(pod).name(),
        &why,
    ))
}

fn mount_token(pod: &mut Value) {
    let present = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let known = present
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let suffix = api::names::generate_name_suffix(crate::random::number());
    let name = known
        .clone()
        .unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            mounted |= mount_in(container, &name);
        }
    }
    if mounted && known.is_none() {
        push(&mut pod["spec"], "volumes", volume(&name));
    }
}

/// Mounts the volume unless something is mounted there; whether it did.
fn mount_in(container: &mut Value, volume: &str) -> bool {
    let mounts = container["volumeMounts"].as_array();
    if mounts.into_iter().flatten().any(|m| m["mountPath"] == MOUNT_PATH) {
        return false;
    }
    push(
        container,
        "volumeMounts",
        json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}),
    );
    true
}

fn push(object: &mut Value, list: &str, item: Value) {
    if !object[list].is_array() {
        object[list] = json!([]);
    }
    if let Some(list) = object[list].as_array_mut() {
        list.push(item);
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}})
}
