//! What a pod's volumes contain, as plain data, and what has to be fetched to know it.

use crate::fields::{self, Facts, FieldError};
use crate::model::PodModel;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, EnvVarSource, KeyToPath, Secret, Service,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use std::collections::{BTreeMap, BTreeSet};

/// Default mode of files in a volume.
const DEFAULT_MODE: u32 = 0o644;

/// A token asked for by a projected volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// Audience; the API server's own when none.
    pub audience: Option<String>,
    /// Lifetime in seconds.
    pub seconds: i64,
}

/// Objects that volumes and environment are made from, by name in the pod's namespace.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Config maps that exist.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets that exist.
    pub secrets: BTreeMap<String, Secret>,
    /// Service account tokens.
    pub tokens: BTreeMap<TokenWish, String>,
    /// Services of the pod's namespace and the API server's.
    pub services: Vec<Service>,
}

/// What a pod refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Config maps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// Tokens.
    pub tokens: BTreeSet<TokenWish>,
}

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Contents.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by relative path.
pub type Files = BTreeMap<String, File>;

/// Why a volume cannot be filled; shown in a `FailedMount` event.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VolumeError {
    /// The object is not there.
    #[error("{kind} {name:?} not found; create it or mark the reference optional")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The key is not in it.
    #[error("references non-existent {kind} key: {key}")]
    NoKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// The downward API has no such thing.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The token has not been issued.
    #[error("the service account's token has not been issued yet")]
    NoToken,
    /// This agent has no such kind of volume.
    #[error(
        "volume {0:?} has a type this node does not support; supported are emptyDir, hostPath, configMap, secret, projected and downwardAPI"
    )]
    Unsupported(String),
}

/// Lists what `pod` refers to in volumes and environment.
#[must_use]
pub fn needs(pod: &PodModel) -> Needs {
    let mut needs = Needs::default();
    for volume in pod.spec().volumes.iter().flatten() {
        volume_needs(volume, &mut needs);
    }
    for member in &pod.members {
        for from in member.spec.env_from.iter().flatten() {
            needs
                .config_maps
                .extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            needs
                .secrets
                .extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in member
            .spec
            .env
            .iter()
            .flatten()
            .filter_map(|v| v.value_from.as_ref())
        {
            env_needs(source, &mut needs);
        }
    }
    let pull = pod.spec().image_pull_secrets.iter().flatten();
    needs
        .secrets
        .extend(pull.map(|s| s.name.clone()).filter(|n| !n.is_empty()));
    needs
}

fn env_needs(source: &EnvVarSource, needs: &mut Needs) {
    needs
        .config_maps
        .extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
    needs
        .secrets
        .extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
}

fn volume_needs(volume: &Volume, needs: &mut Needs) {
    needs
        .config_maps
        .extend(volume.config_map.as_ref().map(|c| c.name.clone()));
    needs
        .secrets
        .extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        needs
            .config_maps
            .extend(source.config_map.as_ref().map(|c| c.name.clone()));
        needs
            .secrets
            .extend(source.secret.as_ref().map(|s| s.name.clone()));
        needs
            .tokens
            .extend(source.service_account_token.as_ref().map(wish));
    }
}

fn wish(token: &ServiceAccountTokenProjection) -> TokenWish {
    let audience = token.audience.clone().filter(|a| !a.is_empty());
    TokenWish {
        audience,
        seconds: token.expiration_seconds.unwrap_or(3600),
    }
}

/// Whether the volume's files are made (and kept up to date) by the agent.
#[must_use]
pub fn has_files(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// The files of a volume that has them.
///
/// # Errors
/// When something that is not optional is missing.
pub fn files(
    pod: &PodModel,
    volume: &Volume,
    sources: &Sources,
    facts: &Facts,
) -> Result<Files, VolumeError> {
    let mut out = Files::new();
    let fill = Fill { pod, sources, facts };
    if let Some(map) = &volume.config_map {
        let mode = mode(map.default_mode);
        fill.config_map(&mut out, &map.name, map.items.as_deref(), map.optional, mode)?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        fill.secret(
            &mut out,
            name,
            secret.items.as_deref(),
            secret.optional,
            mode(secret.default_mode),
        )?;
    } else if let Some(downward) = &volume.downward_api {
        fill.downward(
            &mut out,
            downward.items.as_deref().unwrap_or_default(),
            mode(downward.default_mode),
        )?;
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            fill.projection(&mut out, source, mode(projected.default_mode))?;
        }
    } else {
        return Err(VolumeError::Unsupported(volume.name.clone()));
    }
    Ok(out)
}

fn mode(asked: Option<i32>) -> u32 {
    asked.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE)
}

struct Fill<'a> {
    pod: &'a PodModel,
    sources: &'a Sources,
    facts: &'a Facts,
}

impl Fill<'_> {
    fn projection(&self, out: &mut Files, source: &VolumeProjection, mode: u32) -> Result<(), VolumeError> {
        if let Some(map) = &source.config_map {
            self.config_map(out, &map.name, map.items.as_deref(), map.optional, mode)?;
        }
        if let Some(secret) = &source.secret {
            self.secret(out, &secret.name, secret.items.as_deref(), secret.optional, mode)?;
        }
        if let Some(downward) = &source.downward_api {
            self.downward(out, downward.items.as_deref().unwrap_or_default(), mode)?;
        }
        if let Some(token) = &source.service_account_token {
            let text = self
                .sources
                .tokens
                .get(&wish(token))
                .ok_or(VolumeError::NoToken)?;
            // A token for a fixed user is for nobody else to read (upstream does the same with an fsGroup or user).
            out.insert(
                token.path.clone(),
                File {
                    data: text.clone().into_bytes(),
                    mode,
                },
            );
        }
        Ok(())
    }

    fn config_map(
        &self,
        out: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let data = self.sources.config_maps.get(name).map(|map| {
            let text = map
                .data
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
            let binary = map
                .binary_data
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.0.clone()));
            text.chain(binary).collect()
        });
        keys(out, ("configmap", "config", name), data, items, optional, mode)
    }

    fn secret(
        &self,
        out: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let bytes = |(k, v): (&String, &ByteString)| (k.clone(), v.0.clone());
        let data = self
            .sources
            .secrets
            .get(name)
            .map(|s| s.data.iter().flatten().map(bytes).collect());
        keys(out, ("secret", "secret", name), data, items, optional, mode)
    }

    fn downward(
        &self,
        out: &mut Files,
        items: &[DownwardAPIVolumeFile],
        mode: u32,
    ) -> Result<(), VolumeError> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => fields::field(self.pod, self.facts, field)?,
                (None, Some(resource)) => fields::resource(self.pod, self.facts, None, resource)?,
                (None, None) => String::new(),
            };
            let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
            out.insert(
                item.path.clone(),
                File {
                    data: text.into_bytes(),
                    mode,
                },
            );
        }
        Ok(())
    }
}

/// Takes all keys, or the listed ones under their paths. `what` is the kind, its name for keys, and the object's name.
fn keys(
    out: &mut Files,
    what: (&'static str, &'static str, &str),
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), VolumeError> {
    let (kind, key_kind, name) = what;
    let optional = optional == Some(true);
    let data = match data {
        Some(data) => data,
        None if optional => return Ok(()),
        None => {
            return Err(VolumeError::Missing {
                kind,
                name: name.to_owned(),
            });
        }
    };
    let Some(items) = items else {
        out.extend(data.into_iter().map(|(key, data)| (key, File { data, mode })));
        return Ok(());
    };
    for item in items {
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        match data.get(&item.key) {
            Some(bytes) => {
                out.insert(
                    item.path.clone(),
                    File {
                        data: bytes.clone(),
                        mode,
                    },
                );
            }
            None if optional => {}
            None => {
                return Err(VolumeError::NoKey {
                    kind: key_kind,
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}});
        let wish = TokenWish {
            audience: None,
            seconds: 3607,
        };
        Sources {
            config_maps: [("cm".to_owned(), serde_json::from_value(map).unwrap())].into(),
            tokens: [(wish, "tok".to_owned())].into(),
            ..Sources::default()
        }
    }

    fn files_of(volume: Value) -> Result<Files, VolumeError> {
        let pod = pod(json!({"volumes": [volume], "containers": []}));
        let volume = &pod.spec().volumes.as_ref().unwrap()[0];
        files(&pod, volume, &sources(), &Facts::default())
    }

    fn text(files: &Files) -> Vec<(String, String, u32)> {
        let print = |(path, f): (&String, &File)| {
            (
                path.clone(),
                String::from_utf8_lossy(&f.data).into_owned(),
                f.mode,
            )
        };
        files.iter().map(print).collect()
    }

    #[test]
    fn a_config_map_without_items_gives_all_its_keys() {
        let got = files_of(json!({"name": "v", "configMap": {"name": "cm"}})).unwrap();
        assert_eq!(got.len(), 3);
        assert_eq!(got["c"].data, [0, 1]);
        assert_eq!(got["a"].mode, 0o644);
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let items = json!([{"key": "a", "path": "x/y", "mode": 0o400}]);
        let got = files_of(json!({"name": "v", "configMap": {"name": "cm", "items": items}})).unwrap();
        assert_eq!(text(&got), [("x/y".to_owned(), "1".to_owned(), 0o400)]);
    }

    #[test]
    fn missing_objects_and_keys_fail_unless_optional() {
        let missing = files_of(json!({"name": "v", "secret": {"secretName": "none"}})).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "secret \"none\" not found; create it or mark the reference optional"
        );
        assert_eq!(
            files_of(json!({"name": "v", "secret": {"secretName": "none", "optional": true}})),
            Ok(Files::new())
        );
        let items = json!([{"key": "zzz", "path": "z"}]);
        let key = files_of(json!({"name": "v", "configMap": {"name": "cm", "items": items}})).unwrap_err();
        assert_eq!(key.to_string(), "references non-existent config key: zzz");
    }

    #[test]
    fn a_projected_volume_joins_token_config_map_and_downward_files() {
        let sources = json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]);
        let got =
            files_of(json!({"name": "v", "projected": {"defaultMode": 0o600, "sources": sources}})).unwrap();
        let expected = [("ca.crt", "1"), ("namespace", "default"), ("token", "tok")];
        assert_eq!(
            text(&got),
            expected.map(|(p, d)| (p.to_owned(), d.to_owned(), 0o600))
        );
    }

    #[test]
    fn needs_lists_every_reference_once() {
        let pod = pod(json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "configMap": {"name": "cm"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
            "containers": [{"name": "a", "envFrom": [{"secretRef": {"name": "s"}}],
                "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}));
        let got = needs(&pod);
        assert_eq!(got.config_maps, ["cm".to_owned()].into());
        assert_eq!(got.secrets, ["pull".to_owned(), "s".to_owned()].into());
        assert_eq!(
            got.tokens,
            [TokenWish {
                audience: None,
                seconds: 3600
            }]
            .into()
        );
    }
}
