//! Images: whether the node has one, and pulling it.

use crate::client::{Runtime, RuntimeError};
use k8s_cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PullImageRequest};
use k8s_openapi::api::core::v1::Secret;

/// What the image says about its user, and the reference under which the runtime has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The runtime's reference.
    pub id: String,
    /// Numeric user, if it names one so.
    pub uid: Option<i64>,
    /// User by name, if it names one so.
    pub user: String,
    /// Bytes.
    pub size: u64,
}

impl From<Image> for Present {
    fn from(image: Image) -> Self {
        Self {
            id: image.id,
            uid: image.uid.map(|u| u.value),
            user: image.username,
            size: image.size,
        }
    }
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    })
}

/// The image, if the node has it.
///
/// # Errors
/// [`RuntimeError`]
pub async fn find(runtime: &Runtime, image: &str) -> Result<Option<Present>, RuntimeError> {
    let request = ImageStatusRequest {
        image: spec(image),
        verbose: false,
    };
    let answer = runtime.images().image_status(request).await;
    let answer = answer.map_err(|s| RuntimeError::new("ImageStatus", s))?;
    Ok(answer.into_inner().image.map(Present::from))
}

/// Pulls the image with the first credentials that work, or without any. Waits as long as it takes.
///
/// # Errors
/// [`RuntimeError`] of the last try.
pub async fn pull(runtime: &Runtime, image: &str, credentials: &[AuthConfig]) -> Result<(), RuntimeError> {
    let mut tries = credentials.iter().cloned().map(Some).chain([None]).peekable();
    loop {
        let auth = tries.next().flatten();
        let request = PullImageRequest {
            image: spec(image),
            auth,
            sandbox_config: None,
        };
        match runtime.images().pull_image(request).await {
            Ok(_) => return Ok(()),
            Err(status) if tries.peek().is_none() => return Err(RuntimeError::new("PullImage", status)),
            Err(status) => tracing::debug!(image, %status, "pull failed with these credentials"),
        }
    }
}

/// Credentials for `image` in `kubernetes.io/dockerconfigjson` secrets.
#[must_use]
pub fn credentials<'a>(secrets: impl Iterator<Item = &'a Secret>, image: &str) -> Vec<AuthConfig> {
    let registry = registry(image);
    secrets.flat_map(|s| of_secret(s, &registry)).collect()
}

/// The registry's host; an image without one is on Docker Hub.
fn registry(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

fn of_secret(secret: &Secret, registry: &str) -> Vec<AuthConfig> {
    let Some(data) = secret.data.as_ref().and_then(|d| d.get(".dockerconfigjson")) else {
        return Vec::new();
    };
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(&data.0) else {
        return Vec::new();
    };
    let auths = config["auths"].as_object().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let matching = auths.iter().filter(|(host, _)| same_registry(host, registry));
    matching
        .map(|(_, entry)| AuthConfig {
            username: text(&entry["username"]),
            password: text(&entry["password"]),
            auth: text(&entry["auth"]),
            ..AuthConfig::default()
        })
        .collect()
}

fn same_registry(entry: &str, registry: &str) -> bool {
    let host = entry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    host == registry || (registry == "docker.io" && host == "index.docker.io")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn credentials_are_chosen_by_the_images_registry() {
        let json =
            r#"{"auths": {"https://r.test:5000/v1/": {"username": "u", "password": "p"}, "other": {}}}"#;
        let data = [(".dockerconfigjson".to_owned(), ByteString(json.into()))].into();
        let secret = Secret {
            data: Some(data),
            ..Secret::default()
        };
        let found = credentials([&secret].into_iter(), "r.test:5000/a/b:1");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].username, "u");
        assert!(credentials([&secret].into_iter(), "busybox").is_empty());
    }
}
