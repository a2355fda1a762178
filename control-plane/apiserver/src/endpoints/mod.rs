//! Everything that is not a resource: health, version, metrics, discovery, OpenAPI, token keys.

mod discovery;
mod health;

use api::status::Status;
use http::{Method, Response};
use serde_json::json;

use crate::ApiServer;
use crate::body::{self, Body};
use crate::error::{Result, fail};
use crate::layers::Incoming;

/// Serves a path that is no resource.
pub(crate) async fn serve(server: &ApiServer, incoming: Incoming) -> Result<Response<Body>> {
    if !matches!(incoming.parts.method, Method::GET | Method::HEAD) {
        return fail(Status::method_not_supported());
    }
    let path = incoming.info.path.trim_end_matches('/').to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(health::serve(server, &segments, &incoming.query).await),
        ["version"] => Ok(body::json(200, &version())),
        ["metrics"] => Ok(body::response(
            200,
            "text/plain; version=0.0.4",
            body::full(server.inner.metrics.text()),
        )),
        [".well-known", "openid-configuration"] => Ok(body::json(200, &server.inner.signer.discovery())),
        ["openid", "v1", "jwks"] => Ok(body::response(
            200,
            "application/jwk-set+json",
            body::full(server.inner.signer.key_set().to_string()),
        )),
        ["api" | "apis", ..] => discovery::serve(&segments, &incoming),
        ["openapi", ..] => discovery::openapi(&segments, &incoming),
        [] | [""] => Ok(body::json(200, &roots())),
        _ => fail(Status::no_such_resource()),
    }
}

/// `/version`. The minor version is that of the API tables.
fn version() -> serde_json::Value {
    json!({"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": concat!("v1.36.0+skep", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none (Rust)",
        "compiler": "rustc", "platform": format!("linux/{}", goarch())})
}

/// The machine's name in the words of Go, which clients expect.
fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn roots() -> serde_json::Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(Into::into)
    .into();
    for group in api::catalog::catalog()
        .groups()
        .iter()
        .filter(|g| !g.name.is_empty())
    {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    paths.sort();
    json!({"paths": paths})
}
